"""The prompts a job uses when the user gives none."""

from __future__ import annotations

from pathlib import Path

from osp_opt.generate.prompts import read_prompt_file
from osp_opt.options import ModelOptions
from osp_opt.tiny.prompts import load_prompts

__all__ = ["default_prompts"]

_FOLDER = Path(__file__).parents[1] / "assets" / "prompts"


def default_prompts(options: ModelOptions, name: str) -> list[str]:
    """The bundled prompts of set `name`: "calibration" or "verification".

    Without a model path they are in the bundled model's own small language, which its checker
    can read; for other models they describe everyday scenes. The two sets share no prompt, so that
    what was calibrated on is never what decides.
    """
    if options.is_bundled:
        return list(load_prompts(name))
    return read_prompt_file(_FOLDER / f"{name}.txt")
