"""The bundled model's prompt files: which clips they ask for, and how they are read and written.

One prompt a line, in `assets/tiny/prompts/<name>.txt`. Only `calibration` uses combinations the
model was trained on; what decides or reports uses combinations it never saw, and `verification`
words them differently from `evaluation`, so that no prompt both chooses a candidate and judges it.
No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from osp_opt.base.artifacts import atomic_write_text
from osp_opt.base.errors import FileError
from osp_opt.tiny.captions import caption
from osp_opt.tiny.specs import split_specs, spread

PROMPT_FOLDER = Path(__file__).parents[1] / "assets" / "tiny" / "prompts"

CALIBRATION_PROMPTS = 16
VERIFICATION_PROMPTS = 32
SAMPLE_PROMPTS = 4


def _calibration() -> tuple[str, ...]:
    train, _ = split_specs()
    return tuple(caption(spec) for spec in spread(train, CALIBRATION_PROMPTS, seed=1))


def _verification() -> tuple[str, ...]:
    _, held_out = split_specs()
    return tuple(caption(spec, 1) for spec in spread(held_out, VERIFICATION_PROMPTS, seed=2))


def _evaluation() -> tuple[str, ...]:
    _, held_out = split_specs()
    return tuple(caption(spec) for spec in spread(held_out, len(held_out), seed=3))


def _sample() -> tuple[str, ...]:
    return _evaluation()[:SAMPLE_PROMPTS]


PROMPT_SETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "calibration": _calibration,
    "verification": _verification,
    "evaluation": _evaluation,
    "sample": _sample,
}


def prompt_path(name: str) -> Path:
    """Where the bundled prompt file of that name lies; `name` is one of PROMPT_SETS."""
    return PROMPT_FOLDER / f"{name}.txt"


def load_prompts(name: str) -> tuple[str, ...]:
    """The prompts of a bundled file. Raises FileError when the package lacks it."""
    path = prompt_path(name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(
            f"bundled prompts {path.name}: {error.strerror}, reinstall osp-opt"
        ) from error
    return tuple(line for line in lines if line)


def write_prompts(folder: Path = PROMPT_FOLDER) -> None:
    """Write all bundled prompt files; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in PROMPT_SETS.items():
        atomic_write_text(folder / f"{name}.txt", "\n".join(prompts()) + "\n")
