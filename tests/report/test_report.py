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
from folders import PROMPTS, clips, noisy, sampled

from osp_opt.base.artifacts import write_json, write_meta
from osp_opt.base.ledger import TrialLedger
from osp_opt.base.video import read_video
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.cli.app import main
from osp_opt.report.figures import block_changes
from osp_opt.report.runs import read_runs
from osp_opt.report.trials import Trial, pareto_front, trials_of
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.search.steps.trials import schedule_key

STEPS, BLOCKS, VIDEOS = 12, 4, 2
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


def calibration(seed: int = 0) -> tuple[Calibration, np.ndarray]:
    """Statistics of random predictions and changes; also the changes g [P K B+1 n]."""
    rng = np.random.default_rng(seed)
    timesteps = np.linspace(999, 0, STEPS)
    denoised = rng.normal(size=(VIDEOS, STEPS, 50)).cumsum(axis=1)
    changes = rng.normal(size=(VIDEOS, STEPS, BLOCKS + 1, 30)).cumsum(axis=2)
    changes[:, 0] = np.nan
    gram = np.einsum("pkan,pkbn->pkab", changes, changes)[:, :, None]
    return Calibration(
        timesteps=timesteps,
        sigmas=sigma_of(timesteps),
        step_gram=np.einsum("pkn,pjn->pkj", denoised, denoised) / 50,
        block_gram=gram,
        guided_block_gram=gram,
        lags=(1,),
        prompts=PROMPTS[:VIDEOS],
        seeds=(0,) * VIDEOS,
        metadata={"setting": {"sampler": "EulerAncestralDiscrete"}},
    ), changes


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with every kind of run, made by hand."""
    place = tmp_path / "work"
    calibration()[0].save(place / "calibration" / "calibration.safetensors")
    schedule = TimestepSchedule((999.0, 800.0, 600.0, 300.0, 100.0, 0.0))
    uniform = TimestepSchedule.uniform(6)
    steps, cache = place / "search-steps", place / "search-cache"
    schedule.save(steps / "searched_schedule.txt")
    interval = {"estimate": -0.5, "low": -0.8, "high": -0.2, "count": 4}
    write_meta(
        steps / "searched_schedule.txt",
        {
            "search": {
                "log_predicted_error_over_uniform": interval,
                "log_measured_error_over_uniform": interval,
            }
        },
    )
    ledger = TrialLedger(steps / "trials.jsonl")
    for each, error in ((uniform, 0.2), (schedule, 0.1)):
        for seed in (0, 1):
            values = {"mse": error * 2**seed, "seconds": 2.0 + seed}
            about = {"steps": 6, "uniform": each is uniform, "seed": seed, "prompt": "some words"}
            ledger.add({"what": "error", "schedule": schedule_key(each), **about}, values)
    policy = CachePolicy.four_field(1, 2, 2, 2)
    policy.save(cache / "dit_cache_config.json")
    measured = {"speedup": {"estimate": 1.31, "low": 1.29, "high": 1.33, "count": 4}}
    write_meta(cache / "dit_cache_config.json", {"predicted_speedup": 1.3, "measured": measured})
    TrialLedger(cache / "trials.jsonl").add(
        {"what": "error", "policy": "0123456789abcdef", "seed": 0, "prompt": "p"},
        {"mse": 0.01, "seconds": 5.0},
    )
    made = clips()
    prompts = (*PROMPTS[:2], HOSTILE)
    sampled(place / "baseline", made, prompts, seconds=6.0)
    faster = [noisy(made[0], 5), made[1], made[2]]
    sampled(place / "faster", faster, prompts, seconds=4.0, cache=policy.to_json())
    return place


def test_the_page_holds_the_runs_and_nothing_from_outside(work: Path) -> None:
    folders = ("--reference", str(work / "baseline"), "--candidate", str(work / "faster"))
    # One video of three differs: which is too few to decide.
    assert main(["evaluate", *folders, "--workdir", str(work), "--max-loss", "50%"]) == 3
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
    assert f"{found['metrics']['psnr']['candidate']['estimate']:.2f} [" in page.text
    assert "1.50 [" in page.text, "the measured speed-up"
    assert "undecided" in page.text
    assert re.search(r"loss of SSIM \d+\.\d % \[-?\d+\.\d, \d+\.\d\]", page.text)
    assert "blocks 1..2 every 2 steps from step 2" in page.text
    assert HOSTILE in page.text
    for name in ("schedule", "errors", "heatmap", "pareto", "predicted"):
        assert name in page.ids
    assert "searched 6" in page.text, "figures keep their words"
    assert "cache_num_blocks" in page.text, "provenance"
    digests = re.findall(r"\b[0-9a-f]{64}\b", page.text)
    assert len(set(digests)) == 8, "of every file"


def test_figures_of_runs_that_were_not_evaluated_are_measured(work: Path) -> None:
    for name in ("calibration", "search-steps", "search-cache"):
        (work / name).rename(work.parent / name)
    assert main(["report", str(work / "faster"), str(work / "baseline")]) == 0
    text = Page((work / "faster" / "report.html").read_text()).text
    assert "this report, 3 pairs" in text
    assert "baseline (baseline)" in text, "the uncached run is the baseline, whatever the order"


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


def test_trials_come_out_of_the_ledgers(work: Path) -> None:
    trials = trials_of(read_runs([work]))
    assert [(t.kind, t.steps, t.videos) for t in trials] == [
        ("cache", None, 1),
        ("steps", 6, 2),
        ("steps", 6, 2),
    ]
    assert [t.is_uniform for t in trials] == [False, True, False]
    assert trials[1].error == pytest.approx(0.2 * 2**0.5)
    assert trials[1].seconds == 2.5


def test_pareto_front_is_what_nothing_beats(rng: np.random.Generator) -> None:
    trials = [
        Trial("cache", str(i), float(s), float(e), 1)
        for i, (s, e) in enumerate(rng.random((40, 2)))
    ]
    expected = {
        t.key
        for t in trials
        if not any(o.seconds < t.seconds and o.error < t.error for o in trials)
    }
    assert {t.key for t in pareto_front(trials)} == expected


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
