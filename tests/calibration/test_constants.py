"""MagCache's ratios and TeaCache's polynomial: against the runtimes' own way to find them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import MagCacheConfig
from torch import Tensor

from osp_opt.base.errors import CalibrationError
from osp_opt.calibration import Calibration
from osp_opt.calibration.constants import magcache_ratios, teacache_coefficients
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.calibration.signals import CacheSignals
from osp_opt.cli.app import main
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.options import CALIBRATION_FILE
from osp_opt.tiny.prompts import BUNDLED

STEPS = 10


def calibration(signals: CacheSignals | None, levels: int, videos: int = 1) -> Calibration:
    """A calibration of which only the signals matter."""
    timesteps = np.linspace(999.0, 0.0, levels)
    blocks = np.zeros((videos, levels, 1, 2, 2), dtype=np.float32)
    return Calibration(
        timesteps,
        np.linspace(100.0, 0.01, levels),
        np.broadcast_to(np.eye(levels) + 1.0, (videos, levels, levels)).copy(),
        blocks,
        blocks,
        (1,),
        tuple(f"prompt {i}" for i in range(videos)),
        tuple(range(videos)),
        signals=signals,
    )


class Run:
    """The bundled transformer over the levels of a run, both branches in a batch or in turn."""

    def __init__(self) -> None:
        self.model = OpenSoraT2V.from_pretrained(BUNDLED / "transformer").eval()
        generator = torch.Generator().manual_seed(0)
        channels = self.model.config.caption_channels
        self.text = torch.randn(2, 5, channels, generator=generator)
        noise = torch.randn(2, STEPS + 1, 4, 2, 8, 8, generator=generator)
        self.latents = noise[:, :1] + 0.3 * noise[:, 1:].cumsum(1)

    def __call__(self, call: Callable[[int, slice, dict[str, Any]], None], apart: bool) -> None:
        rows = [slice(0, 1), slice(1, 2)] if apart else [slice(None)]
        for step in range(STEPS):
            for row in rows:
                call(
                    step,
                    row,
                    {
                        "hidden_states": self.latents[row, step],
                        "timestep": torch.tensor(999.0 - 100 * step),
                        "encoder_hidden_states": self.text[row],
                    },
                )


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


@pytest.fixture(scope="module")
def recorded(run: Run) -> dict[bool, Calibration]:
    """By whether the branches were called in turn."""
    found = {}
    for apart in (False, True):
        recorder = CalibrationRecorder(
            STEPS, len(run.model.transformer_blocks), guidance_scale=2.0, lags=(1,)
        )

        def call(step: int, row: slice, given: dict[str, Any], recorder: Any = recorder) -> None:
            name = "both" if row == slice(None) else ("negative", "positive")[row.start]
            out = run.model(**given, blocks=recorder.at(step, name)).sample
            recorder.record_denoised(step, out)

        with torch.no_grad():
            run(call, apart)
        found[apart] = calibration(recorder.result().signals, STEPS)
    return found


@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "two calls"])
def test_the_ratios_are_those_that_diffusers_prints(
    run: Run, recorded: dict[bool, Calibration], capsys: pytest.CaptureFixture[str], apart: bool
) -> None:
    model = run.model
    model.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))

    def call(step: int, row: slice, given: dict[str, Any]) -> None:
        with model.cache_context(str(row)):
            model(**given)

    try:
        with torch.no_grad():
            run(call, apart)
    finally:
        model.disable_cache()
    printed = [
        [float(value) for value in line.strip("[]").split(",")]
        for line in re.findall(r"^\[[-\d., e]+\]$", capsys.readouterr().out, re.MULTILINE)
    ]
    found = magcache_ratios(recorded[apart], STEPS)
    expected = found.branches if apart else (found.mean,)
    assert np.ptp(printed[0]) > 0.01  # else any list of ones would do
    np.testing.assert_allclose(printed, expected, rtol=1e-4)
    assert found.explained is None
    assert found.interleaved()[:4] == [1.0, 1.0, found.branches[1][1], found.branches[0][1]]


def test_the_changes_are_those_of_the_tensors_themselves(
    run: Run, recorded: dict[bool, Calibration]
) -> None:
    """Input: what the first block's self-attention gets; output: what leaves the last block."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    blocks = run.model.transformer_blocks
    hooks = [
        blocks[0].attn1.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        blocks[-1].register_forward_hook(lambda _, args, out: outputs.append(out)),
    ]
    with torch.no_grad():
        run(lambda step, row, given: run.model(**given), False)
    for hook in hooks:
        hook.remove()
    for apart in (False, True):
        signals = recorded[apart].signals
        assert signals is not None
        for kept, tensors in ((signals.input_change, inputs), (signals.output_change, outputs)):
            expected = [
                [float((a - b).abs().mean() / b.abs().mean()) for b in tensors] for a in tensors
            ]
            np.testing.assert_allclose(kept[0], expected, rtol=2e-3, atol=1e-5)


def signals_of(x: np.ndarray, y: np.ndarray, ratio: np.ndarray) -> CacheSignals:
    """[P, K, K] changes and ratios, one branch."""
    return CacheSignals(ratio[:, None], x, y)


def test_constants_for_fewer_steps_than_were_recorded() -> None:
    """Where logarithms of lengths and changes grow evenly, the values between levels are exact."""
    levels, prompts = 21, 3
    k = np.arange(levels)
    place = (k / (levels - 1)) ** 2
    apart = np.abs(place[:, None] - place[None])
    x = np.stack([apart * (1 + 0.2 * p) for p in range(prompts)])
    lengths = np.exp(-0.7 * k / (levels - 1))
    ratio = np.repeat((lengths[:, None] / lengths[None])[None], prompts, 0)
    made = calibration(signals_of(x, 2.0 * x, ratio), levels, prompts)
    for steps in (8, 11, 21):
        mag = magcache_ratios(made, steps)
        np.testing.assert_allclose(mag.mean[1:], np.exp(-0.7 / (steps - 1)), rtol=1e-5)
        assert mag.mean[0] == 1
        assert mag.explained == pytest.approx(1.0)
        tea = teacache_coefficients(made, steps)
        middle = np.mean(tea.input_range)
        assert np.polyval(tea.coefficients, middle) == pytest.approx(2 * middle, rel=1e-6)


def noisy(prompts: int, noise: float) -> Calibration:
    """Output changes and ratios that follow the input's, but for noise of each prompt its own."""
    rng = np.random.default_rng(3)
    levels = 30
    x = np.abs(rng.normal(0.2, 0.05, (prompts, levels, levels)))
    y = (0.1 + x + 4 * x**2) * np.exp(noise * rng.normal(size=x.shape))
    ratio = np.exp(0.1 + noise * rng.normal(size=x.shape))
    return calibration(signals_of(x, y, ratio), levels, prompts)


@pytest.mark.parametrize(("noise", "poor"), [(0.01, False), (1.5, True)])
def test_a_poor_fit_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], noise: float, poor: bool
) -> None:
    noisy(6, noise).save(tmp_path / CALIBRATION_FILE)
    for runtime, words in (("magcache", "MagCacheConfig("), ("teacache", "coefficients = [")):
        assert main(["export", str(tmp_path), "--to", runtime, "--steps", "30"]) == 0
        out, err = capsys.readouterr()
        assert words in out
        assert ("warning: a poor fit" in err) is poor


def test_a_fit_to_noise_is_judged_by_prompts_left_out() -> None:
    """A polynomial explains a part of anything that it is fitted to, and nothing of the next."""
    made = noisy(2, 3.0)
    assert made.signals is not None
    first = CacheSignals(*(part[:1] for part in vars(made.signals).values()))
    alone = teacache_coefficients(calibration(first, 30), 8)
    assert not alone.left_out
    assert alone.explained > 0.3
    both = teacache_coefficients(made, 8)
    assert both.left_out
    assert both.explained < 0.1


def test_what_was_not_recorded_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = np.full((1, 12, 12), np.nan)
    even = np.ones((1, 1, 12, 12))
    blind = calibration(CacheSignals(even, unknown, np.ones((1, 12, 12))), 12)
    with pytest.raises(CalibrationError, match="modulated input"):
        teacache_coefficients(blind, 12)
    assert magcache_ratios(blind, 12).mean == (1.0,) * 12
    for steps, words in ((13, "recorded 12 levels"), (1, "2 to 12")):
        with pytest.raises(CalibrationError, match=words):
            magcache_ratios(blind, steps)
    calibration(None, 12).save(tmp_path / CALIBRATION_FILE)
    assert main(["export", str(tmp_path), "--to", "magcache"]) == 2
    assert "run osp-opt calibrate again" in capsys.readouterr().err


def test_signals_survive_their_file(tmp_path: Path) -> None:
    made = noisy(2, 0.1)
    made.save(tmp_path / "a.safetensors")
    back = Calibration.load(tmp_path / "a.safetensors")
    assert made.signals is not None
    assert back.signals is not None
    for name in ("residual_ratio", "input_change", "output_change"):
        np.testing.assert_allclose(
            getattr(back.signals, name), getattr(made.signals, name), rtol=1e-6
        )
    joined = Calibration.merge([back, back]).signals
    assert joined is not None
    assert joined.residual_ratio.shape == (4, 1, 30, 30)
    with pytest.raises(CalibrationError, match="signals are"):
        calibration(made.signals, 30, videos=1)
