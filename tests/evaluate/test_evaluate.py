"""evaluate: figures against plain numpy, pairing, verdicts, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import PROMPTS, SPECS, TIMED_ON, clips, noisy, sampled

from osp_opt.base.video import read_video, write_image, write_video
from osp_opt.cli.app import main
from osp_opt.evaluate.measures import Measured, measure_pair
from osp_opt.evaluate.pairs import Pair, VideoFile
from osp_opt.evaluate.summary import summarise
from osp_opt.quality.intervals import Interval
from osp_opt.quality.yardstick import Yardstick
from osp_opt.tiny.specs import ATTRIBUTES, ClipSpec


def evaluated(tmp_path: Path, *flags: str, code: int = 0) -> dict[str, Any]:
    """What `osp-opt evaluate` of the folders a and b writes."""
    folders = ("--reference", str(tmp_path / "a"), "--candidate", str(tmp_path / "b"))
    assert main(["evaluate", *folders, "--workdir", str(tmp_path), *flags]) == code
    return json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())


def unwrapped(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the terminal's line breaks."""
    return " ".join(capsys.readouterr().out.split())


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["evaluate", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("osp-opt: error: ")
    assert "\n" not in error
    return error


def test_figures_are_those_of_the_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = clips()
    sampled(tmp_path / "a", made, seconds=6.0)
    # The second video shows another colour than was asked for: one attribute of one video wrong.
    wrong = clips((SPECS[0], ClipSpec("square", "red", "black", "still"), SPECS[2]))
    sampled(tmp_path / "b", [noisy(wrong[0], 5), wrong[1], wrong[2]], seconds=4.0)
    found = evaluated(tmp_path)

    ours, theirs = ([read_video(p) for p in sorted((tmp_path / x).glob("*.mp4"))] for x in "ab")
    for video, a, b in zip(found["videos"], ours, theirs, strict=True):
        squared = (a.astype(float) - b.astype(float)) ** 2
        psnr = 10 * math.log10(255**2 / max(squared.mean(), 1e-9))
        assert video["psnr"] == pytest.approx(min(psnr, 120), abs=1e-3)
        assert len(video["frame_psnr"]) == len(video["frame_ssim"]) == len(a)
        flicker = np.abs(np.diff(b.astype(float), axis=0)).mean() / 255
        assert video["candidate"]["flicker"] == pytest.approx(flicker)
    metrics = found["metrics"]
    mean = np.mean([video["psnr"] for video in found["videos"]])
    assert metrics["psnr"]["candidate"]["estimate"] == pytest.approx(mean)
    for name in ATTRIBUTES:
        assert metrics[name]["reference"]["estimate"] == 1.0
        share = 2 / 3 if name == "color" else 1.0
        assert metrics[name]["candidate"]["estimate"] == pytest.approx(share)
    assert metrics["all"]["difference"]["estimate"] == pytest.approx(-1 / 3)
    assert found["loss"]["measure"] == "SSIM"
    similarity = np.mean([video["ssim"] for video in found["videos"]])
    assert found["loss"]["share"]["estimate"] == pytest.approx(1 - similarity)
    assert (found["loss"]["right"], found["loss"]["asked"]) == ([12, 11], 12)
    assert found["speedup"]["estimate"] == pytest.approx(1.5)
    assert found["verdict"] is None
    printed = capsys.readouterr().out
    assert "color" in printed
    assert "2 of 3" in printed, "shares of a few prompts are counts"
    assert "11 of 12" in printed
    assert "VBench" in printed, "what was not measured is said"


def test_raw_frames_are_compared_where_both_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One level on every other pixel of h264's input: it does not come out of it again."""
    made = clips()
    near = [clip.copy() for clip in made]
    for clip in near:
        clip[:, ::2, ::2] ^= 1
    expected = 10 * math.log10(255**2 * 4)  # a quarter of the pixels is one level off
    sampled(tmp_path / "a", made, raw=True)
    sampled(tmp_path / "b", near, raw=True)
    found = evaluated(tmp_path)
    assert [video["psnr"] for video in found["videos"]] == pytest.approx([expected] * 3)
    assert "codec" not in unwrapped(capsys)

    sampled(tmp_path / "b", near)
    found = evaluated(tmp_path)
    assert any(abs(video["psnr"] - expected) > 1 for video in found["videos"])
    assert "finer than the videos' codec" in unwrapped(capsys)


def test_a_killed_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at the second pair, whose file is damaged; once that is mended the first pair is
    not measured again."""
    sampled(tmp_path / "a", clips())
    sampled(tmp_path / "b", [noisy(clip, 5) for clip in clips()])
    damaged = tmp_path / "b" / "002.mp4"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    folders = ("--reference", str(tmp_path / "a"), "--candidate", str(tmp_path / "b"))
    assert main(["evaluate", *folders, "--workdir", str(tmp_path)]) == 2
    damaged.write_bytes(whole)

    measured = []

    def spy(pair: Pair, lpips: Any) -> Measured:
        measured.append(pair.reference.path.name)
        return measure_pair(pair, lpips)

    monkeypatch.setattr("osp_opt.evaluate.job.measure_pair", spy)
    found = evaluated(tmp_path)
    assert measured == ["002.mp4", "003.mp4"]
    assert [path.name for path in (tmp_path / "evaluate").iterdir()] == ["evaluation.json"]
    assert evaluated(tmp_path) == found, "the whole of it at once"


def test_verdict_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    six, prompts = [*clips(), *clips()], (*PROMPTS, "a boat", "a tree", "rain")
    sampled(tmp_path / "a", clips())
    sampled(tmp_path / "b", clips())
    assert evaluated(tmp_path, "--max-loss", "1%", code=4)["verdict"] == "undecided", "of three"
    sampled(tmp_path / "a", six, prompts)
    sampled(tmp_path / "b", six, prompts)
    found = evaluated(tmp_path, "--max-loss", "1%")
    assert (found["verdict"], found["metrics"]["psnr"]["candidate"]["estimate"]) == ("kept", 120.0)
    slightly = [noisy(clip, level) for clip, level in zip(six, (2, 4, 40) * 2, strict=True)]
    sampled(tmp_path / "b", slightly, prompts)
    lost = evaluated(tmp_path)["loss"]["share"]
    between = f"{100 * lost['estimate']}%"
    assert evaluated(tmp_path, "--max-loss", between, code=4)["verdict"] == "undecided"
    assert "12 prompts may tell" in unwrapped(capsys)
    sampled(tmp_path / "b", [255 - clip for clip in six], prompts)
    assert evaluated(tmp_path, "--max-loss", "1%", code=3)["verdict"] == "lost"


def test_prompts_count_and_not_their_seeds() -> None:
    """Seeds of one prompt that agree exactly add no certainty."""

    def measured(prompt: str, seed: int, ssim: float) -> Measured:
        file = VideoFile(Path(f"{prompt}{seed}.mp4"), prompt, seed)
        return Measured(Pair(file, file), {"psnr": 30.0, "ssim": ssim}, {}, {}, (), ())

    values = {"one": 0.9, "two": 0.8, "three": 0.95, "four": 0.7}
    single = summarise([measured(p, 0, v) for p, v in values.items()])
    many = summarise([measured(p, s, v) for p, v in values.items() for s in range(5)])
    assert many.loss.share == single.loss.share
    assert many.loss.share.count == len(values)
    assert many.loss.share.estimate == pytest.approx(1 - np.mean(list(values.values())))
    alone = summarise([measured("one", s, 0.9 + s / 100) for s in range(3)])
    assert alone.loss.share.count == 3


def test_a_loss_is_of_what_was_measured() -> None:
    """VBench's scores where there are, else SSIM, else PSNR; two videos decide nothing."""

    def measured(between: dict[str, float], alone: dict[str, float], n: int = 6) -> list[Measured]:
        files = [VideoFile(Path(f"{i}.mp4"), f"prompt {i}", 0) for i in range(n)]
        return [Measured(Pair(f, f), between, alone, alone, (), ()) for f in files]

    for between, alone, name, estimate in (
        ({"psnr": 30.0, "ssim": 0.98}, {}, "SSIM", 0.02),
        ({"psnr": 30.0}, {}, "PSNR", 0.25),
        ({"psnr": 30.0}, {"imaging_quality": 0.7}, "VBench mean", 0.0),
    ):
        loss = summarise(measured(between, alone)).loss
        assert (loss.measure, loss.share.estimate) == (name, pytest.approx(estimate))
        assert loss.verdict(0.3) == "kept"
        assert summarise(measured(between, alone, 2)).loss.verdict(0.3) == "undecided"


def test_folders_without_manifest_are_paired_by_name(tmp_path: Path) -> None:
    made = clips()
    for folder in "ab":
        for name, clip in zip(("x", "y"), made, strict=False):
            write_video(tmp_path / folder / f"{name}.mp4", clip, 12)
        write_video(tmp_path / folder / "grid.mp4", made[2], 12)
    found = evaluated(tmp_path)
    assert [v["candidate_file"] for v in found["videos"]] == ["x.mp4", "y.mp4"]
    assert found["loss"]["measure"] == "SSIM"
    assert any("captions" in note for note in found["not_measured"])


def test_manifests_pair_by_prompt_and_seed_whatever_the_names(tmp_path: Path) -> None:
    made = clips()
    sampled(tmp_path / "a", made)
    sampled(tmp_path / "b", made[::-1], prompts=PROMPTS[::-1])
    found = evaluated(tmp_path)
    assert [v["candidate_file"] for v in found["videos"]] == ["003.mp4", "002.mp4", "001.mp4"]
    assert found["metrics"]["psnr"]["candidate"]["estimate"] == 120.0


def test_images(tmp_path: Path) -> None:
    for folder in "ab":
        write_image(tmp_path / folder / "one.png", clips()[0][0])
    found = evaluated(tmp_path)
    assert found["metrics"]["ssim"]["candidate"]["estimate"] == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = clips()
    a, b = sampled(tmp_path / "a", made), sampled(tmp_path / "b", made[:2], PROMPTS[:2])
    empty = tmp_path / "empty"
    empty.mkdir()
    common = ("--workdir", str(tmp_path), "--candidate")
    assert "--reference" in refused(capsys, *common, str(b))
    assert "no such folder" in refused(capsys, *common, str(b), "--reference", "nowhere")
    assert "no videos" in refused(capsys, *common, str(empty), "--reference", str(a))
    line = refused(capsys, *common, str(b), "--reference", str(a))
    assert "1 of 3 videos lack a partner" in line
    assert PROMPTS[2] in line
    write_video(b / "001.mp4", made[0][:5], 12)
    sampled(tmp_path / "two", made[:2], PROMPTS[:2])
    line = refused(capsys, *common, str(b), "--reference", str(tmp_path / "two"))
    assert "5 frames of 64x64" in line
    assert "29 frames of 64x64" in line
    (b / "002.mp4").unlink()
    assert "002.mp4" in refused(capsys, *common, str(b), "--reference", str(a))
    manifest = json.loads((a / "manifest.json").read_text())
    manifest["videos"][0]["file"] = "../b/001.mp4"
    (a / "manifest.json").write_text(json.dumps(manifest))
    assert "outside" in refused(capsys, *common, str(b), "--reference", str(a))
    manifest["videos"] = [{"file": 3}]
    (a / "manifest.json").write_text(json.dumps(manifest))
    assert "entry 0" in refused(capsys, *common, str(b), "--reference", str(a))
    assert not (tmp_path / "evaluate").exists(), "a refused command left something behind"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"layout": "cfg=2,sp=1"}, "processes that make one video (cfg=1,sp=1 and cfg=2,sp=1)"),
        ({"device": "cuda: H100"}, "device (cpu: some processor and cuda: H100)"),
        (
            {"compile": True, "dtype": "bfloat16"},
            "number format (float32 and bfloat16), compilation",
        ),
        ({"versions": {"torch": "2.14"}}, "package versions"),
        (None, "nothing says under what conditions"),
    ],
)
def test_speed_is_compared_under_equal_conditions_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any] | None, told: str
) -> None:
    sampled(tmp_path / "a", clips(), seconds=6.0)
    other = None if changed is None else {**TIMED_ON, **changed}
    sampled(tmp_path / "b", clips(), seconds=3.0, timed_on=other)
    found = evaluated(tmp_path)
    assert found["speedup"] is None
    assert told in unwrapped(capsys)
    assert any(note.startswith("speed: ") and told in note for note in found["not_measured"])


def test_a_frozen_video_moves_less_and_the_worst_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = clips()
    sampled(tmp_path / "a", made)
    frozen = made[0].copy()
    frozen[1:] = frozen[:1]
    sampled(tmp_path / "b", [frozen, *made[1:]])
    metrics = evaluated(tmp_path)["metrics"]
    motion = metrics["amount_of_motion"]
    assert motion["difference"]["estimate"] < 0
    assert (motion["worse"], motion["worst_prompt"]) == (1, PROMPTS[0])
    assert (metrics["psnr"]["worst_prompt"], metrics["psnr"]["worse"]) == (PROMPTS[0], None)
    assert f"the worst: {metrics['psnr']['worst']:.1f} dB, '{PROMPTS[0]}'" in unwrapped(capsys)


def test_a_loss_is_read_beside_what_the_original_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The yardstick of the working folder's calibration, where it is of the same videos."""
    setting = {"model": "m", "steps": 100, "sampler": "s", "num_frames": 5}
    yardstick = Yardstick(100, 400, Interval(35.0, 34.0, 36.0, 3), setting)
    yardstick.save(tmp_path / "calibration")
    assert Yardstick.load(tmp_path / "calibration") is not None
    sampled(tmp_path / "a", clips(), setting=setting)
    sampled(tmp_path / "b", [noisy(clip, 20) for clip in clips()])
    assert evaluated(tmp_path)["yardstick"]["converged_steps"] == 400
    told = "more than 100 steps lose themselves: they are 35.0 [34.0, 36.0] dB from 400 steps"
    assert told in unwrapped(capsys)
    sampled(tmp_path / "a", clips(), setting={**setting, "steps": 50})
    assert evaluated(tmp_path)["yardstick"] is None
