"""Constraints that hold every package at the lowest version that pyproject.toml allows.

`make test-lowest` installs by them: what is claimed to work is then what was tried.
"""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

_EXTRAS = ("pipelines", "report")  # what a user may install; the rest is for developers
_BOUND = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?\s*>=\s*([\d.]+)")


def lowest(pyproject: Path) -> list[str]:
    """`name==version` of every dependency with a lower bound."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in _EXTRAS:
        wanted += project["optional-dependencies"][extra]
    found = [match.groups() for each in wanted if (match := _BOUND.match(each))]
    return sorted({f"{name}=={version}" for name, version in found})


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")))
