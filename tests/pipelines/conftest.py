"""Tiny pipelines, made once."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_pipelines import FAMILIES

from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline


@pytest.fixture(scope="session")
def tiny() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Pipelines of every family with their call arguments."""
    return {name: make() for name, make in FAMILIES.items()}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tiny: Any) -> tuple[Any, dict[str, Any]]:
    """One family's pipeline and call arguments."""
    found: tuple[Any, dict[str, Any]] = tiny[request.param]
    return found


@pytest.fixture
def driven(family: tuple[Any, dict[str, Any]]) -> DiffusersPipeline:
    """It, as osp-opt drives it."""
    return DiffusersPipeline(*family)
