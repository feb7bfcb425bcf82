"""The world of clips: combinations, split, captions, prompt files."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from osp_opt.base.errors import InputError
from osp_opt.model.text.captions import clean_caption
from osp_opt.tiny import prompts
from osp_opt.tiny.captions import parse
from osp_opt.tiny.specs import BACKGROUNDS, COLORS, ClipSpec
from tools.train_tiny.captions import NUM_STYLES, all_captions, caption
from tools.train_tiny.prompts import PROMPT_SETS, all_specs, split_specs, spread, write_prompts


def test_all_specs_are_the_360_combinations() -> None:
    specs = all_specs()
    assert len(specs) == len(set(specs)) == 3 * 6 * 4 * 5
    assert specs[0] == ClipSpec("circle", "red", "black", "still")
    assert specs[-1] == ClipSpec("triangle", "magenta", "orange", "down")


def test_palette_colors_are_at_least_half_a_unit_apart() -> None:
    colors = [*COLORS.values(), *BACKGROUNDS.values()]
    for a, b in itertools.combinations(colors, 2):
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 0.5


def test_unknown_value_is_refused() -> None:
    with pytest.raises(InputError, match="clip motion: found 'sideways', choose one of still"):
        ClipSpec("circle", "red", "black", "sideways")


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_split_keeps_every_pair_of_values_in_training(seed: int) -> None:
    train, held_out = split_specs(seed)
    assert (len(train), len(held_out)) == (240, 120)
    assert set(train) | set(held_out) == set(all_specs())
    for i, j in itertools.combinations(range(4), 2):
        seen = {(astuple(spec)[i], astuple(spec)[j]) for spec in train}
        assert seen == {(astuple(spec)[i], astuple(spec)[j]) for spec in all_specs()}
    assert split_specs(seed) == (train, held_out)
    assert split_specs(seed + 1) != (train, held_out)


def test_split_of_the_shipped_weights_does_not_depend_on_the_python_process() -> None:
    """String hashing is salted per process; the split must not be."""
    code = "from tools.train_tiny.prompts import split_specs; print(split_specs()[1])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": salt},
        ).stdout.strip()
        for salt in ("1", "2")
    }
    assert outputs == {str(split_specs()[1])}


def test_canonical_captions() -> None:
    assert (
        caption(ClipSpec("circle", "red", "black", "left"))
        == "a red circle moves left on a black background"
    )
    assert (
        caption(ClipSpec("square", "cyan", "orange", "still"))
        == "a cyan square stays still on an orange background"
    )


def test_every_caption_survives_cleaning_and_reads_back() -> None:
    captions = set()
    for spec in all_specs():
        for style in range(NUM_STYLES):
            text = caption(spec, style)
            assert clean_caption(clean_caption(text)) == text
            assert parse(text) == parse(text.upper()) == spec
            captions.add(text)
    assert len(captions) == 360 * NUM_STYLES
    assert captions == set(all_captions(all_specs()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle moves left",
        "a red circle on a black background",
        "a red or blue circle moves left on a black background",
        "a red circle and a square move left on a black background",
        "a purple circle moves left on a black background",
    ],
)
def test_incomplete_or_ambiguous_captions_read_as_none(text: str) -> None:
    assert parse(text) is None


def test_parse_takes_free_wording_and_grey() -> None:
    expected = ClipSpec("triangle", "green", "gray", "up")
    assert parse("Grey background. The triangle goes UP; green it is!") == expected


@pytest.mark.parametrize("name", list(PROMPT_SETS))
def test_bundled_prompt_files_are_what_the_split_gives(name: str) -> None:
    lines = prompts.load_prompts(name)
    assert lines == PROMPT_SETS[name]()
    assert len(set(lines)) == len(lines)
    train, held_out = split_specs()
    allowed = train if name == "calibration" else held_out
    assert {parse(line) for line in lines} <= set(allowed)


def test_no_prompt_both_chooses_and_judges() -> None:
    sets = {name: set(prompts.load_prompts(name)) for name in PROMPT_SETS}
    assert {name: len(lines) for name, lines in sets.items()} == {
        "calibration": 16,
        "verification": 32,
        "evaluation": 120,
        "sample": 4,
    }
    assert not sets["calibration"] & (sets["verification"] | sets["evaluation"])
    assert not sets["verification"] & sets["evaluation"]


def test_write_prompts_writes_the_bundled_bytes(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    for name in PROMPT_SETS:
        written = (tmp_path / f"{name}.txt").read_bytes()
        assert written == prompts.prompt_path(name).read_bytes()


def test_spread_uses_every_value_about_equally() -> None:
    chosen = spread(all_specs(), 12, seed=5)
    assert len(set(chosen)) == 12
    for position in range(4):
        counts = [
            sum(astuple(s)[position] == v for s in chosen)
            for v in {astuple(s)[position] for s in all_specs()}
        ]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(InputError, match="asked for 361 of 360"):
        spread(all_specs(), 361, seed=0)
