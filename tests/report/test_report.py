"""report: one file, nothing from outside, and the runs' own data in it."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from folders import BLOCKS, PROMPTS, STEPS, calibration, clips, noisy, sampled, searches

from osp_opt.base.artifacts import write_json
from osp_opt.base.video import read_video
from osp_opt.cli.app import main
from osp_opt.generate.manifest import Take
from osp_opt.quality.intervals import Interval
from osp_opt.report.comparison import Comparison, Row
from osp_opt.report.figures import block_changes

HOSTILE = 'a <script>alert("x")</script> & a red circle'


class Page(HTMLParser):
    """Collects what a browser would follow or fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.videos: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "poster", "data", "action", "srcset"):
                self.links.append(value or "")
                if tag == "video":
                    self.videos.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with every kind of run, made by hand."""
    place = tmp_path / "work"
    policy = searches(place)
    made = clips()
    prompts = (*PROMPTS[:2], HOSTILE)
    sampled(place / "baseline", made, prompts, seconds=6.0)
    faster = [noisy(made[0], 5), made[1], made[2]]
    sampled(place / "faster", faster, prompts, seconds=4.0, cache=policy.to_json())
    return place


def test_the_page_holds_the_runs_and_nothing_from_outside(work: Path) -> None:
    folders = ("--reference", str(work / "baseline"), "--candidate", str(work / "faster"))
    # One video of three differs: which is too few to decide.
    assert main(["evaluate", *folders, "--workdir", str(work), "--max-loss", "50%"]) == 4
    assert main(["report", str(work)]) == 0
    text = (work / "report.html").read_text()
    page = Page(text)
    outside = [x for x in page.links if not x.startswith(("data:", "#"))]
    assert not outside
    assert "://" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("script") == 1, "a prompt became a script"
    assert len(page.ids) == len(set(page.ids)), "an id is there twice"
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids

    # Baseline, candidate, difference, prompt by prompt; the first two are the files themselves.
    assert len(page.videos) == 9
    data = [base64.b64decode(uri.partition(",")[2]) for uri in page.videos]
    assert data[0] == (work / "baseline" / "001.mp4").read_bytes()
    assert data[1] == (work / "faster" / "001.mp4").read_bytes()
    (work / "difference.mp4").write_bytes(data[2])
    one, other = (read_video(work / x / "001.mp4").astype(int) for x in ("baseline", "faster"))
    expected = np.clip(4 * np.abs(one - other), 0, 255)
    assert np.abs(read_video(work / "difference.mp4") - expected).mean() < 6  # chroma is halved

    found = json.loads((work / "evaluate" / "evaluation.json").read_text())
    near = found["metrics"]["psnr"]["candidate"]["values"]
    assert ", ".join(f"{value:.2f}" for value in near) in page.text, "too few for an interval"
    assert "1.50, 1.50, 1.50" in page.text, "the measured speed-up"
    assert "undecided" in page.text
    said = re.search(r"faster denoises 1\.50 times faster than baseline, is .* dB .*", page.text)
    assert said, "the verdict in words"
    assert re.search(
        r"a loss of \d+\.\d\d, 0\.00, .* values\), limit 50 %: undecided", said.group()
    )
    assert page.text.index(said.group()) < page.text.index("Times faster")
    assert page.text.index("Times faster") < page.text.index("PSNR, dB") < page.text.index("SSIM")
    assert "winner" in page.text
    assert "blocks 1..2 every 2 steps from step 2" in page.text
    assert HOSTILE in page.text
    for name in ("quality", "schedule", "errors", "heatmap", "promises"):
        assert name in page.ids
    assert "searched 6" in page.text, "figures keep their words"
    assert "cache_num_blocks" in page.text, "provenance"
    digests = re.findall(r"\b[0-9a-f]{64}\b", page.text)
    assert len(set(digests)) == 7, "of every file"


def test_figures_of_runs_that_were_not_evaluated_are_measured(work: Path) -> None:
    for name in ("calibration", "search-steps", "search-cache"):
        (work / name).rename(work.parent / name)
    assert main(["report", str(work / "faster"), str(work / "baseline")]) == 0
    text = Page((work / "faster" / "report.html").read_text()).text
    assert "this report, 3 pairs" in text
    assert "faster than baseline" in text, "the uncached run is the baseline, whatever the order"


def test_the_winner_is_the_fastest_that_keeps_the_videos() -> None:
    def row(name: str, speedup: float, psnr: float, verdict: str | None = None) -> Row:
        spread = {"speedup": (speedup, 0.1), "psnr": (psnr, 1.0)}
        figures = {k: Interval(at, at - by, at + by, 5) for k, (at, by) in spread.items()}
        return Row(name, "", figures, verdict=verdict)

    baseline = Row("baseline", "", {"seconds": None})
    rows = [
        row("good", 2.0, 43.0),
        row("another video", 8.0, 25.0),
        row("lost", 5.0, 35.0, "lost"),
        row("undecided", 3.0, 36.0, "undecided"),
        row("not surely faster", 1.05, 60.0),
    ]
    take = Take(Path("baseline"), ())

    def winner(*rows: Row) -> Row | None:
        return Comparison(take, (), (baseline, *rows)).winner

    assert winner(*rows) is rows[3]
    assert winner(*rows[1:3], rows[4]) is None


def test_heat_map_is_the_change_of_each_block() -> None:
    recorded, changes = calibration()
    found = block_changes(recorded)
    assert found.shape == (BLOCKS, STEPS)
    assert np.isnan(found[:, 0]).all()
    for block in range(BLOCKS):
        for step in range(1, STEPS):
            own = changes[:, step, block + 1] - changes[:, step, block]
            expected = (own**2).sum(axis=-1).mean()
            assert found[block, step] == pytest.approx(expected)


def test_refusals(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*args: str) -> str:
        assert main(["report", *args]) == 2
        return capsys.readouterr().err

    assert "no such folder" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    assert "no run of osp-opt" in refused(str(tmp_path / "empty"))
    write_json(work / "evaluate" / "evaluation.json", {"format": "other"})
    assert "evaluation" in refused(str(work))
    (work / "evaluate" / "evaluation.json").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "osp-opt[report]" in refused(str(work))
    assert not (work / "report.html").exists()
