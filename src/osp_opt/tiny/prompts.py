"""The bundled model's prompt files: what they are for, and how they are read.

One prompt a line, in `assets/tiny/prompts/<name>.txt`. Only `calibration` uses combinations the
model was trained on; what decides or reports uses combinations it never saw, and `verification`
words them differently from `evaluation`, so that no prompt both chooses a candidate and judges it.
No torch here; `tools.train_tiny.prompts` writes them.
"""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.errors import FileError

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny"
"""The bundled model: transformer, vae, text_encoder, prompts and defaults.json."""
PROMPT_FOLDER = BUNDLED / "prompts"


def prompt_path(name: str) -> Path:
    """Where the bundled prompt file of that name lies."""
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
