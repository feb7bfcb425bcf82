"""The house plan, held: who may import whom, and one home for each concern."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "osp_opt"
MODULES = sorted(SOURCE.rglob("*.py"))
TEXT_FILES = sorted(
    path
    for place in ("src", "tests", "configs", "docs", "benchmarks", ".ci")
    for path in (ROOT / place).rglob("*")
    if path.suffix in (".py", ".yaml", ".md", ".txt", ".json", ".sh", ".toml", "")
    and path.is_file()
    and "golden" not in path.parts
    and "__pycache__" not in path.parts
    and ROOT / "benchmarks" / "work" not in path.parents
) + sorted(path for path in ROOT.glob("*") if path.is_file() and path.name != ".coverage")

# Top to bottom; a module imports from its own layer or from below.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("run",),
    ("report",),
    ("evaluate",),
    ("export",),
    ("search.recipe",),
    ("api",),
    ("search.steps", "search.cache"),
    ("search",),
    ("calibration",),
    ("generate",),
    ("pipelines",),
    ("sampling",),
    ("model",),
    ("cache",),
    ("tiny",),
    ("system",),
    ("options",),
    ("quality",),
    ("base",),
)
MAY_PRINT = {"cli", "evaluate", "run", "base"}
NO_TORCH = (
    *("cli.app", "cli.doctor", "run.launch", "run.folder", "run.checks", "run.failures"),
    *("options", "generate.prompts", "system.ranks", "cache.policy"),
    *("base.progress", "base.artifacts", "base.errors", "base.shape"),
)
DRAWS = {"rand", "rand_like", "randn", "randn_like", "randint", "randperm", "normal", "bernoulli"}


def name_of(path: Path) -> str:
    """``cache.policy`` for ``src/osp_opt/cache/policy.py``."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def layer_of(name: str) -> int:
    """The layer of a module: that of its longest listed prefix."""
    assert name, "a module outside the house plan: give it a layer"
    for level, members in enumerate(LAYERS):
        if name in members:
            return level
    return layer_of(name.rpartition(".")[0])


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, at_import_time_only: bool = False) -> Iterator[str]:
    """Full names of what a module imports, at module level or anywhere."""
    tree = tree_of(path)
    for node in _top_level(tree.body) if at_import_time_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["osp_opt", *name_of(path).split(".")[: -node.level]] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if _is_module(full) else module


def _top_level(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run on import: not those of functions or under TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from _top_level(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from _top_level(node.body)


def _is_module(full: str) -> bool:
    if not full.startswith("osp_opt."):
        return False
    place = SOURCE.joinpath(*full.split(".")[1:])
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def attributes(path: Path) -> Iterator[str]:
    """Every dotted name that a module writes down, such as ``torch.cuda.synchronize``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward(path: Path) -> None:
    name = name_of(path)
    if name == "__init__":
        return  # the public names come from everywhere, on first use
    for imported in imports(path):
        target = imported.removeprefix("osp_opt").removeprefix(".")
        if not imported.startswith("osp_opt") or not target:
            continue
        assert layer_of(target) >= layer_of(name), f"{name} imports {target}, which lies above it"


def test_one_home_per_concern() -> None:
    """Devices in device.py, torch.distributed in parallel.py, noise in sampling/noise.py."""
    for path in MODULES:
        name = name_of(path)
        dotted = {*imports(path), *attributes(path)}
        if name != "system.device":
            named = [d for d in dotted if re.match(r"(torch\.(cuda|npu|mps)|torch_npu)(\.|$)", d)]
            assert not named, f"{name} names {named}"
        if name not in ("system.parallel", "run.elastic"):  # talking, and starting
            named = [d for d in dotted if re.match(r"torch\.distributed(\.|$)", d)]
            assert not named, f"{name} names {named}"
        # The first values of a model's parameters are random too, until weights are loaded.
        if name != "sampling.noise" and not name.startswith("model"):
            numpy = {d for d in dotted if d.startswith(("np.random.", "numpy.random"))}
            named = sorted(dotted & {f"torch.{draw}" for draw in DRAWS} | numpy)
            assert not named, f"{name} draws {named}"


def test_what_help_needs_does_not_load_torch() -> None:
    heavy = ("torch", "diffusers", "transformers", "numpy")

    def closure(name: str, seen: set[str]) -> None:
        if name in seen:
            return
        seen.add(name)
        place = SOURCE.joinpath(*name.split("."))
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        for imported in imports(path, at_import_time_only=True):
            assert imported.split(".")[0] not in heavy, f"{name} loads {imported}"
            if imported.startswith("osp_opt."):
                closure(imported.removeprefix("osp_opt."), seen)

    seen: set[str] = set()
    for name in NO_TORCH:
        closure(name, seen)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_habits(path: Path) -> None:
    text = path.read_text()
    tree = tree_of(path)
    name = name_of(path)
    if not text.strip():
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            raises = isinstance(node.body[-1], ast.Raise)
            assert not broad or raises, f"line {node.lineno}: catches everything"
        assert not isinstance(node, ast.Global), "a global variable is rebound"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert name.split(".")[0] in MAY_PRINT, f"line {node.lineno}: prints"


def test_no_machine_paths_and_no_registry_hosts() -> None:
    folders = "|".join(("work", "root", "home/[a-z]+"))
    hosts = "|".join(("pypi", "pythonhosted", "npmjs", "debian"))
    forbidden = re.compile(rf"(?<![\w.])/(?:{folders})/|\b(?:{hosts})\.(?:org|com|net)\b")
    for path in TEXT_FILES:
        if path.name == "LICENSE":
            continue
        found = forbidden.search(path.read_text(errors="replace"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_the_architecture_page_is_true() -> None:
    """Its tree names what is there, its walks names of those modules, in at most 8 steps."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    parent = SOURCE
    for line in page.partition("```text\n")[2].partition("```")[0].splitlines()[1:]:
        first, *told = re.split(r"\s{2,}", line.strip())
        inside = line.startswith("    ")
        folder = (parent if inside else SOURCE) / (first if first.endswith("/") else "")
        parent = parent if inside else folder
        modules = told[0].split() if told else []
        for name in [*modules, *([] if first.endswith("/") else [first])]:
            place = folder / name
            assert place.exists() or place.with_suffix(".py").exists(), f"{line}: no {name}"
    steps = re.findall(r"^(\d)\. `([\w/]+\.py)`, `(\w+)`", page, re.MULTILINE)
    assert [number for number, *_ in steps] == [*"123", *"45678" * 3]
    for _, file, name in steps:
        defined = {
            node.name
            for node in ast.walk(tree_of(SOURCE / file))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert name in defined, f"{file} has no {name}"
    for file in re.findall(r"`([\w/]+/\w+\.py)`", page):
        assert (SOURCE / file).is_file() or (ROOT / file).is_file(), file
