"""`--help` answers without the heavy libraries, and shows what there is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from osp_opt import __version__
from osp_opt.cli.app import main
from osp_opt.cli.flags import resolve
from osp_opt.options import COMMANDS, flag_of, option_extra

HEAVY = ("torch", "diffusers", "transformers", "numpy", "einops", "imageio_ffmpeg")
PROBE = f"""
import sys
from osp_opt.cli.app import main
code = main(sys.argv[1:])
print("LOADED", [name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""


Show = Callable[..., str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """What `osp-opt` prints for these arguments."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("args", [(), *((command,) for command in COMMANDS)])
def test_help_loads_nothing_heavy(args: tuple[str, ...]) -> None:
    line = [sys.executable, "-c", PROBE, *args, "-h"]
    output = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "<bool>" not in output
    assert "LOADED []" in output
    assert "Usage: osp-opt" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_people_use_with_an_example(command: str, show: Show) -> None:
    """The rest is folded away, and where it is stands below."""
    model = COMMANDS[command]
    words = show(command, "--help").replace("│", " ").split()
    flags = {
        name for name, field in model.model_fields.items() if not option_extra(field)["positional"]
    }
    assert {flag_of(name) for name in flags & set(model.common)} <= set(words)
    if model.common:
        assert len(model.common) <= 12
        assert "--help-all" in words
        assert "--master-port" not in words
        assert model.example.split()[0] in words
        resolve(model, {}, None)
    launched = show(command, "--help-all").replace("│", " ").split()
    assert {flag_of(name) for name in flags} <= set(launched)


def test_help_all_lists_every_option_in_panels(show: Show) -> None:
    output = show("search-cache", "--help-all")
    for panel in ("Job", "Model", "Sampling", "Device", "Launch"):
        assert f" {panel} " in output
    words = output.replace("│", " ").split()
    for name in COMMANDS["search-cache"].model_fields:
        assert flag_of(name) in words


def test_version(show: Show) -> None:
    assert show("--version") == f"osp-opt {__version__}\n"


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, osp_opt; print([n for n in ('torch', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
