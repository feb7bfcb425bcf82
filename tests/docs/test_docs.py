"""What the documents show is true: links lead somewhere, examples are read by their own readers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from osp_opt.base.ledger import TrialLedger
from osp_opt.cache.policy import CachePolicy
from osp_opt.cli.config_file import field_spellings
from osp_opt.options import COMMANDS
from osp_opt.sampling.schedule import TimestepSchedule

ROOT = Path(__file__).parents[2]
DOCS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
FORMATS = (ROOT / "docs" / "file-formats.md").read_text()
MIGRATION = (ROOT / "docs" / "migration.md").read_text()
PICTURE_LIMIT = 400_000  # bytes
# Every flag of the reference tool: of all of its commands, of the searches, of sampling.
EVERYWHERE = """
    model_path version num_frames height width device cache_dir text_encoder_name text_prompt ae
    ae_path save_img_path fps guidance_scale num_sampling_steps enable_tiling tile_overlap_factor
    save_memory max_sequence_length sample_method model_type compile
"""
ELSEWHERE = {
    "search-steps": "save_dir videos_path neighbour_type monte_carlo_iters search_type",
    "search-cache": "search_type cache_ratio cache_save_path",
    "sample": "schedule_timestep dit_cache_config",
}


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next."""
    return text.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [h.lower().replace(" ", "-") for h in headings]


def test_source_files_that_documents_name_are_there() -> None:
    for path in DOCS:
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", path.read_text()):
            places = (ROOT, ROOT / "src" / "osp_opt")
            assert any((place / name).is_file() for place in places), f"{path.name}: {name}"


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index


def test_the_picture_is_small_and_moves() -> None:
    from PIL import Image

    path = ROOT / "docs" / "demo.webp"
    assert path.stat().st_size < PICTURE_LIMIT
    with Image.open(path) as picture:
        assert picture.n_frames > 1  # type: ignore[attr-defined]


def test_file_examples_are_read_by_their_readers(tmp_path: Path) -> None:
    def example(heading: str) -> str:
        found = re.search(r"```json\n(.*?)```", section(FORMATS, heading), re.DOTALL)
        assert found
        return found.group(1)

    place = tmp_path / "file"
    place.write_text(example("Schedule"))
    assert TimestepSchedule.from_file(place).timesteps == (999.0, 520.0, 41.5, 0.0)
    place.write_text(example("Cache policy, four fields"))
    assert CachePolicy.from_file(place) == CachePolicy.four_field(2, 6, 5, 2)
    place.write_text(example("Cache policy, free form"))
    policy = CachePolicy.from_file(place)
    policy.validate(num_blocks=8, num_steps=6)
    assert policy.to_json() == json.loads(example("Cache policy, free form"))
    place.write_text(example("Ledger"))
    ((key, values),) = TrialLedger(place).records()
    assert {"what", "of", "schedule", "seed", "prompt"} == set(key)
    assert values["mse"] > 0


def migrations() -> dict[str, str]:
    """Old flag to new one, as the table says, in field spelling; "" where there is none."""
    found = {}
    for row in section(MIGRATION, "Flags").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        flags = [re.findall(r"`--([\w-]+)", cell) for cell in cells]
        if row.startswith("| `"):
            for i, old in enumerate(flags[0]):
                new = flags[2][min(i, len(flags[2]) - 1)] if flags[2] else ""
                found[old] = new.replace("-", "_")
    return found


@pytest.mark.parametrize("command", ["calibrate", "search-steps", "search-cache", "sample"])
def test_every_old_flag_is_in_the_table_and_means_what_it_says(command: str) -> None:
    table, spellings = migrations(), field_spellings(COMMANDS[command])
    for old in (EVERYWHERE + ELSEWHERE.get(command, "")).split():
        assert old in table
        new = table[old] or old
        if old == "save_img_path" and command.startswith("search"):
            new = old  # the table says so
        if old == "cache_save_path":
            new = old  # --out, and another form of file: tests/cli/test_flags.py
        assert spellings[old] == spellings[new], f"{command}: {old} is not {new}"
