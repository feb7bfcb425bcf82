"""Writes docs/cli.md and docs/api.md from options and docstrings: `python -m tools.reference`.

A test keeps the files in step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import osp_opt
from osp_opt.cli.app import app
from osp_opt.options import COMMANDS, Options, flag_of, option_extra
from osp_opt.options.base import PANELS

DOCS = Path(__file__).parents[1] / "docs"
_MADE = "*Made by `python -m tools.reference`; do not edit.*\n"


def command_line() -> str:
    """Every command with every option."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", _MADE]
    for name, model in COMMANDS.items():
        command = group.commands[name]
        parts += [f"## osp-opt {name}", str(command.help)]
        if model.example:
            parts.append(f"```bash\nosp-opt {name} {model.example}\n```")
        values = {param.name: param.metavar for param in command.params}
        for panel in PANELS:
            rows = list(_rows(model, panel, values))
            if rows:
                head = f"| {panel} | | |\n| --- | --- | --- |\n"
                parts.append(head + "\n".join(rows))
    parts += [
        "## For every command",
        "`-q` tells the result only, `-v` tells details, `--json` prints the result as JSON and "
        "nothing else on stdout; `--config FILE` takes options from YAML, which flags override; "
        "`-h` and `--help-all` show the options. Underscores and dashes mean the same.",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(model: type[Options], panel: str, values: dict[str, str]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        extra = option_extra(field)
        if extra["panel"] != panel:
            continue
        flags = [name.upper()] if extra["positional"] else [flag_of(name)]
        flags += [f"-{extra['short']}"] if extra["short"] else []
        flags += [flag_of(alias) for alias in extra["aliases"]]
        given = field.default not in (None, False, ())
        default = f" Default: {_shown(field.default)}." if given else ""
        unit = f" ({extra['unit']})" if extra["unit"] else ""
        value = (values.get(name) or "").replace("|", "\\|")
        text = (field.description or "").replace("|", "\\|")
        yield f"| {', '.join(f'`{flag}`' for flag in flags)} | {value} | {text}{unit}{default} |"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def library() -> str:
    """Every public name: signature and docstring."""
    parts = ["# Library", _MADE, "Everything here is imported from `osp_opt`, on first use."]
    for name in sorted(osp_opt.__all__):
        value = getattr(osp_opt, name)
        if not callable(value):
            continue
        parts += [f"## {name}", f"```python\n{name}{_signature(value)}\n```", _doc(value)]
        if inspect.isclass(value):
            parts += list(_members(value))
    return "\n\n".join(parts) + "\n"


def _members(owner: type) -> Iterator[str]:
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)
        documented = inspect.isfunction(function) or isinstance(member, property)
        if name.startswith("_") or not documented or not inspect.getdoc(member):
            continue
        signature = "" if isinstance(member, property) else _signature(function)
        yield f"**`.{name}{signature}`**: {_doc(member)}"


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value)).replace("(self, ", "(").replace("(self)", "()")
    except ValueError:
        return "(...)"
    text = re.sub(r"\(cls(, )?", "(", text)
    # Defaults that are objects have no stable text.
    return re.sub(r"<([\w. ]+?)( at 0x[0-9a-f]+)?>", r"\1", text).replace("'", "")


def _doc(value: Any) -> str:
    """A docstring as Markdown; indented parts stay as they are."""
    return (inspect.getdoc(value) or "").replace("``", "`")


def pages() -> dict[Path, str]:
    """What each file has to hold."""
    return {DOCS / "cli.md": command_line(), DOCS / "api.md": library()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
