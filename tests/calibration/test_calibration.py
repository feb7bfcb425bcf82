"""The recorder and the calibration file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osp_opt.base.errors import CalibrationError, FileError
from osp_opt.calibration import Calibration, VideoStatistics, spread_indices, step_changes
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.pipelines.maker import Request
from osp_opt.sampling.schedule import TimestepSchedule

BLOCKS, TOKENS, WIDTH, STEPS = 3, 20, 5, 4


def hidden_states(videos: int = 1, seed: int = 0) -> list[Tensor]:
    """Per step, what enters the block list: [2 videos, TOKENS, WIDTH]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2 * videos, TOKENS, WIDTH, generator=generator) for _ in range(STEPS)]


def make_layers() -> list[nn.Linear]:
    torch.manual_seed(1)
    return [nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS)]


def boundaries(layers: Sequence[nn.Linear], x: Tensor) -> list[Tensor]:
    states = [x]
    for layer in layers:
        states.append(layer(states[-1]))
    return states


@torch.no_grad()
def run(recorder: CalibrationRecorder, inputs: list[Tensor]) -> list[Tensor]:
    layers = make_layers()
    outputs = []
    for step, x in enumerate(inputs):
        outputs.append(recorder.at(step)(layers, x))
        recorder.record_denoised(step, outputs[-1][:1])
    return outputs


@torch.no_grad()
def test_block_grams_are_inner_products_of_changes_for_both_branches_and_lags() -> None:
    inputs, scale = hidden_states(), 3.0
    recorder = CalibrationRecorder(STEPS, BLOCKS, guidance_scale=scale, lags=(1, 2))
    run(recorder, inputs)
    result = recorder.result()
    states = [boundaries(make_layers(), x) for x in inputs]
    assert result.block_gram.shape == (STEPS, 2, BLOCKS + 1, BLOCKS + 1)
    for step in range(STEPS):
        for place, lag in enumerate((1, 2)):
            mean = result.block_gram[step, place]
            guided = result.guided_block_gram[step, place]
            if step < lag:
                assert np.isnan(mean).all()
                assert np.isnan(guided).all()
                continue
            for a in range(BLOCKS + 1):
                for b in range(BLOCKS + 1):
                    change_a = states[step][a] - states[step - lag][a]
                    change_b = states[step][b] - states[step - lag][b]
                    expected = (change_a * change_b).mean().item()
                    assert mean[a, b] == pytest.approx(expected, abs=1e-5)
                    both = [(1 - scale) * g[0] + scale * g[1] for g in (change_a, change_b)]
                    expected = (both[0] * both[1]).mean().item()
                    assert guided[a, b] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@torch.no_grad()
def test_branches_recorded_apart_equal_the_batch() -> None:
    inputs = hidden_states(videos=2)
    together = CalibrationRecorder(STEPS, BLOCKS, guidance_scale=2.0)
    apart = CalibrationRecorder(STEPS, BLOCKS, guidance_scale=2.0)
    layers = make_layers()
    run(together, inputs)
    for step, x in enumerate(inputs):
        for branch, part in (("positive", x[2:]), ("negative", x[:2])):
            out = apart.at(step, branch)(layers, part)
        apart.record_denoised(step, out)
    for name in ("block_gram", "guided_block_gram"):
        np.testing.assert_allclose(
            getattr(apart.result(), name), getattr(together.result(), name), rtol=1e-4, atol=1e-6
        )


@torch.no_grad()
def test_recording_changes_nothing_and_holds_few_steps() -> None:
    inputs = hidden_states()
    recorder = CalibrationRecorder(STEPS, BLOCKS, guidance_scale=2.0)
    outputs = run(recorder, inputs)
    for out, x in zip(outputs, inputs, strict=True):
        assert torch.equal(out, boundaries(make_layers(), x)[-1])
    assert len(recorder._states) + len(recorder._spare) <= 3


@torch.no_grad()
def test_blocks_that_write_in_place_do_not_spoil_the_record() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0.5).add_(1.0)

    recorder = CalibrationRecorder(2, 2, lags=(1,))
    for step, x in enumerate((torch.zeros(1, TOKENS, WIDTH), torch.ones(1, TOKENS, WIDTH))):
        recorder.at(step)([InPlace(), InPlace()], x)
        recorder.record_denoised(step, x)
    expected = np.outer([1.0, 0.5, 0.25], [1.0, 0.5, 0.25])
    np.testing.assert_allclose(recorder.result().block_gram[1, 0], expected)


@torch.no_grad()
def test_reset_leaves_no_trace_of_the_first_video() -> None:
    used, fresh = (CalibrationRecorder(STEPS, BLOCKS, guidance_scale=2.0) for _ in range(2))
    run(used, hidden_states(seed=1))
    used.reset()
    for recorder in (used, fresh):
        run(recorder, hidden_states(seed=2))
    np.testing.assert_array_equal(used.result().block_gram, fresh.result().block_gram)
    np.testing.assert_array_equal(used.result().step_gram, fresh.result().step_gram)


@torch.no_grad()
def test_kept_tokens_estimate_the_mean_over_all() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 2, 4000, 3)
    grams = []
    for keep in (4000, 500):
        recorder = CalibrationRecorder(2, 1, guidance_scale=1.5, lags=(1,), max_tokens=keep)
        for step in range(2):
            recorder.at(step)([nn.Identity()], states[step])
            recorder.record_denoised(step, states[step])
        grams.append(recorder.result().block_gram[1, 0, 0, 0])
    deviation = np.sqrt(2.0 / (2 * 500 * 3)) * 2.0  # of a mean of squares of N(0, 2)
    assert abs(grams[1] - grams[0]) < 3 * deviation


@torch.no_grad()
def test_memory_of_hidden_states_is_bounded_by_keeping_fewer_tokens() -> None:
    x, lags = torch.randn(2, 400, 8), (1, 2, 4)
    per_token = 5 * 3 * 2 * 8 * 4  # states x boundaries x branches x features x bytes
    recorder = CalibrationRecorder(
        8, 2, guidance_scale=2.0, lags=lags, max_state_bytes=100 * per_token
    )
    for step in range(8):
        recorder.at(step)([nn.Identity()] * 2, x)
        recorder.record_denoised(step, x)
        held = [*recorder._states.values(), *recorder._spare]
        assert sum(state.numel() * state.element_size() for state in held) <= 100 * per_token
    assert held[0].shape[3] == 100
    assert np.isfinite(recorder.result().block_gram[4:]).all()


def test_step_gram_keeps_the_small_differences_of_close_levels() -> None:
    torch.manual_seed(0)
    base, change = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 4, 2, 8, 8)
    recorder = CalibrationRecorder(3, 1)
    for step, size in enumerate((0.0, 1e-4, 3e-4)):
        recorder.record_denoised(step, base + size * change)
    changes = step_changes(recorder.result().step_gram)
    power = change.double().square().mean().item()
    assert changes[0, 1] == pytest.approx(1e-8 * power, rel=0.01)
    assert changes[1, 2] == pytest.approx(4e-8 * power, rel=0.01)


def test_latent_memory_is_bounded() -> None:
    torch.manual_seed(0)
    recorder = CalibrationRecorder(2, 1, max_latent_bytes=2 * 4 * 1000)
    latents = torch.randn(2, 1, 4, 3, 40, 50)
    for step in range(2):
        recorder.record_denoised(step, latents[step])
    assert all(kept.numel() == 1000 for kept in recorder._denoised.values())
    whole = latents[0].square().mean().item()
    assert recorder.result().step_gram[0, 0] == pytest.approx(whole, abs=4 * np.sqrt(2 / 1000))


def test_recorded_table_equals_forward_noising() -> None:
    """An analytic denoiser of Gaussian data, sampled backwards and noised forwards."""
    torch.manual_seed(0)
    elements = 40_000
    variances = torch.logspace(-2, np.log10(4.0), 20).repeat(elements // 20)
    timesteps = 999.0 * np.linspace(1.0, 0.0, 200) ** 2  # dense where the sampler errs most
    sigmas = torch.from_numpy(TimestepSchedule(tuple(timesteps)).sigmas)
    recorder = CalibrationRecorder(200, 1)
    x = sigmas[0] * torch.randn(elements)
    for step, (a, b) in enumerate(itertools.pairwise(sigmas)):
        denoised = variances / (variances + a**2) * x
        recorder.record_denoised(step, denoised)
        kept = (b / a) ** 2
        x = denoised + kept * (x - denoised) + b * torch.sqrt(1 - kept) * torch.randn(elements)
    recorded = step_changes(recorder.result().step_gram)

    levels = sigmas[:-1].flip(0)
    x = torch.sqrt(variances) * torch.randn(elements)
    forward = []
    for previous, s in zip([torch.tensor(0.0), *levels[:-1]], levels, strict=True):
        x = x + torch.sqrt(s**2 - previous**2) * torch.randn(elements)
        forward.append(variances / (variances + s**2) * x)
    noised = torch.stack(forward).flip(0).double()
    estimate = step_changes((noised @ noised.T / elements).numpy())

    picked = np.ix_(range(0, 190, 13), range(0, 190, 13))
    # Monte Carlo error of a mean of squares (twice) plus the error of 200 sampling steps.
    tolerance = 5 * np.sqrt(2 * 2 * 3 / elements) + 0.02
    np.testing.assert_allclose(recorded[picked], estimate[picked], rtol=tolerance, atol=2e-4)


def test_wrong_use_of_the_recorder_is_refused() -> None:
    recorder = CalibrationRecorder(2, 2, guidance_scale=2.0)
    with pytest.raises(CalibrationError, match="made for 2 blocks"):
        recorder.at(0)([nn.Identity()], torch.zeros(2, 3, 4))
    with pytest.raises(CalibrationError, match="batch of 3"):
        recorder.at(0)([nn.Identity()] * 2, torch.zeros(3, 3, 4))
    with pytest.raises(CalibrationError, match=r"steps \[0, 1\]"):
        recorder.result()
    for bad in ({"lags": ()}, {"lags": (2, 1)}, {"lags": (0,)}, {"max_tokens": 0}):
        with pytest.raises(CalibrationError):
            CalibrationRecorder(2, 2, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("total", [1, 7, 100, 28_800])
@pytest.mark.parametrize("keep", [1, 5, 99, 512])
def test_spread_indices_are_distinct_and_even(total: int, keep: int) -> None:
    picked = spread_indices(total, keep)
    assert len(np.unique(picked)) == len(picked) == min(total, keep)
    assert picked.min() >= 0
    assert picked.max() < total
    if keep == 512 and total > keep:
        for period in (40, 60, 80):  # rows and columns of real latents
            counts = np.bincount(picked % period, minlength=period)
            assert counts.min() >= 0.4 * 512 / period


def gram(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Products of random vectors, [..., n, n]."""
    vectors = rng.standard_normal((*shape, 9))
    return vectors @ vectors.swapaxes(-2, -1)


def of_changes(tables: np.ndarray) -> np.ndarray:
    tables[0] = np.nan  # the first step has none before it
    return tables.astype(np.float32)


def a_calibration(videos: int = 2, levels: int = 3) -> Calibration:
    rng = np.random.default_rng(0)
    schedule = TimestepSchedule.uniform(levels)
    return Calibration.merge(
        [
            Calibration.of_video(
                VideoStatistics(
                    gram(rng, levels),
                    of_changes(gram(rng, levels, 1, 4)),
                    of_changes(gram(rng, levels, 1, 4)),
                ),
                schedule=schedule,
                lags=(1,),
                request=Request(f"a red ball {i}", i),
                metadata={"fingerprint": "abc", "shape": [5, 16, 16]},
            )
            for i in range(videos)
        ]
    )


def test_file_round_trip(tmp_path: Path) -> None:
    written = a_calibration()
    written.save(tmp_path / "calibration.safetensors")
    read = Calibration.load(tmp_path / "calibration.safetensors")
    assert read.prompts == ("a red ball 0", "a red ball 1")
    assert read.seeds == (0, 1)
    assert read.lags == (1,)
    assert read.metadata == written.metadata
    for name in ("timesteps", "sigmas", "step_gram", "block_gram", "guided_block_gram"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


def test_any_damage_of_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    a_calibration().save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    mutants = [data[: int(cut)] for cut in rng.integers(0, len(data), 20)]
    for place, bit in zip(rng.integers(0, len(data), 100), rng.integers(0, 8, 100), strict=True):
        mutant = bytearray(data)
        mutant[place] ^= 1 << int(bit)
        mutants.append(bytes(mutant))
    for mutant in mutants:
        path.write_bytes(mutant)
        with pytest.raises(CalibrationError):
            Calibration.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"step_gram": lambda g: 0 * g},
        {"step_gram": lambda g: -g},
        {"step_gram": lambda g: g + np.eye(3)[0] * 5},
        {"step_gram": lambda g: g - 2 * np.diag(np.ones(3)) * g},
        {"block_gram": lambda g: np.nan * g},
        {"guided_block_gram": lambda g: np.where(np.isnan(g), g, np.inf)},
        {"block_gram": lambda g: -g},
    ],
)
def test_tables_that_no_predictions_make_are_refused(
    tmp_path: Path, change: dict[str, Callable[[np.ndarray], np.ndarray]]
) -> None:
    sound = a_calibration()
    (name,) = change
    replace(sound, **{name: change[name](getattr(sound, name))}).save(tmp_path / "c.safetensors")
    with pytest.raises(CalibrationError, match=r"c\.safetensors: its tables are no products"):
        Calibration.load(tmp_path / "c.safetensors")


def test_missing_file_and_unequal_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        Calibration.load(tmp_path / "nothing.safetensors")
    one = a_calibration(1)
    with pytest.raises(CalibrationError, match="other settings"):
        Calibration.merge([one, replace(one, metadata={"fingerprint": "xyz"})])
    with pytest.raises(CalibrationError, match="NaN"):
        replace(one, step_gram=np.full_like(one.step_gram, np.nan))
    with pytest.raises(CalibrationError, match="descend"):
        replace(one, timesteps=one.timesteps[::-1].copy())
