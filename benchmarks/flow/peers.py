"""Other people's caches on the second model, through their public interfaces.

The thresholds of adaptive caches are put where they reach each wanted speed in counted work, by
bisection on one calibration prompt. Every cache is enabled anew for each video.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.contest import reason_of
from benchmarks.flow.bench import STEPS, Bench, Entrant, Peer
from osp_opt.tiny.prompts import load_prompts

__all__ = ["peer_entrants"]

MOST_SKIPS = 4  # in a row, of the caches that take a limit; their defaults are 2 and 3
WARM_UP = 8  # steps that DBCache computes first: its default
LEAST, MOST = 1e-4, 8.0  # thresholds
HALVINGS = 7

Opened = Callable[[Any], Peer]  # what a knob makes


def peer_entrants(
    bench: Bench, targets: Sequence[float]
) -> tuple[list[Entrant], list[dict[str, str]]]:
    """Every peer at each target, and those that cannot be used, with the reason."""
    found, missing = [], []
    for name, library, make in _FAMILIES:
        try:
            knobs, at = make(bench)
            settings = (
                _placed(bench, name, library, at, targets)
                if knobs is None
                else [(str(knob), at(knob)) for knob in knobs]
            )
        except Exception as error:  # noqa: BLE001 - other people's code, any failure
            missing.append({"name": name, "reason": reason_of(error)})
            print(f"  {name}: not run: {reason_of(error)}", flush=True)
            continue
        found += [
            Entrant(f"{name}, {setting}", library=library, peer=peer) for setting, peer in settings
        ]
    return found, missing


def _placed(
    bench: Bench, name: str, library: str, at: Opened, targets: Sequence[float]
) -> list[tuple[str, Peer]]:
    """Settings of the least thresholds that reach each target, where they exist."""
    prompt = load_prompts("calibration")[0]

    def speedup(threshold: float) -> float:
        def measure() -> dict[str, Any]:
            entrant = Entrant(name, library=library, peer=at(threshold))
            return {"speedup": bench.plain_work / bench.run(entrant, prompt)[1]}

        return float(bench.remembered(f"{name} {threshold:.6g}", measure)["speedup"])

    placed = []
    for target in targets:
        low, high = LEAST, MOST
        if speedup(high) < target:
            continue
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if speedup(middle) >= target else (middle, high)
        placed.append((f"threshold {high:.4g}", at(high)))
    return placed


def _enabled(bench: Bench, config: Callable[[], Any]) -> Peer:
    """One of diffusers' caches, on for one video."""

    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        transformer = bench.copy_of("diffusers").pipe.transformer
        transformer.enable_cache(config())
        try:
            yield
        finally:
            transformer.disable_cache()

    return opened


def _first_block(bench: Bench) -> tuple[None, Opened]:
    from diffusers.hooks import FirstBlockCacheConfig

    return None, lambda t: _enabled(bench, lambda: FirstBlockCacheConfig(threshold=t))


def _mag(bench: Bench) -> tuple[None, Opened]:
    from diffusers.hooks import MagCacheConfig

    def calibrated() -> dict[str, Any]:
        printed = io.StringIO()
        config = MagCacheConfig(calibrate=True, num_inference_steps=STEPS)
        entrant = Entrant("mag", library="diffusers", peer=_enabled(bench, lambda: config))
        with contextlib.redirect_stdout(printed):
            bench.run(entrant, load_prompts("calibration")[0])
        lists = re.findall(r"^\[([-\d., e]+)\]$", printed.getvalue(), re.MULTILINE)
        if not lists:
            raise RuntimeError("MagCache's calibration printed no ratios")
        return {"ratios": [float(part) for part in lists[0].split(",")]}

    ratios = bench.remembered("mag ratios", calibrated)["ratios"]

    def at(threshold: float) -> Peer:
        return _enabled(
            bench,
            lambda: MagCacheConfig(
                threshold=threshold,
                max_skip_steps=MOST_SKIPS,
                num_inference_steps=STEPS,
                mag_ratios=list(ratios),
            ),
        )

    return None, at


def _sea(bench: Bench) -> tuple[None, Opened]:
    from diffusers.hooks import SeaCacheConfig

    def latents(module: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        x = args[0] if args else arguments["hidden_states"]
        return [x[0]]

    def at(threshold: float) -> Peer:
        return _enabled(
            bench,
            lambda: SeaCacheConfig(
                threshold=threshold, max_consecutive_cached=MOST_SKIPS, raw_vision_callback=latents
            ),
        )

    return None, at


def _taylor(bench: Bench, **arguments: Any) -> tuple[list[str], Opened]:
    from diffusers.hooks import TaylorSeerCacheConfig

    def at(knob: str) -> Peer:
        interval = int(knob.removeprefix("interval "))
        return _enabled(
            bench,
            lambda: TaylorSeerCacheConfig(
                cache_interval=interval, taylor_factors_dtype=torch.float32, **arguments
            ),
        )

    return [f"interval {i}" for i in (2, 3, 4)], at


def _taylor_whole(bench: Bench) -> tuple[list[str], Opened]:
    return _taylor(bench, max_order=1, cache_identifiers=[r"blocks\.\d+\.(attn1|attn2|ffn)"])


def _taylor_lite(bench: Bench) -> tuple[list[str], Opened]:
    return _taylor(bench, use_lite_mode=True)


def _pab(bench: Bench) -> tuple[list[str], Opened]:
    from diffusers.hooks import PyramidAttentionBroadcastConfig

    pipe = bench.copy_of("diffusers").pipe

    def at(knob: str) -> Peer:
        own, cross = (int(part) for part in re.findall(r"\d+", knob))
        return _enabled(
            bench,
            lambda: PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=own,
                cross_attention_block_skip_range=cross,
                spatial_attention_timestep_skip_range=(0, 950),
                cross_attention_timestep_skip_range=(0, 950),
                current_timestep_callback=lambda: int(pipe.current_timestep),
            ),
        )

    return [f"self {own}, cross {cross}" for own, cross in ((2, 2), (2, 4), (4, 6))], at


def _dbcache(bench: Bench, taylor: bool = False) -> tuple[None, Opened]:
    cache_dit = importlib.import_module("cache_dit")
    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.ERROR)

    def at(threshold: float) -> Peer:
        @contextlib.contextmanager
        def opened() -> Iterator[None]:
            transformer = bench.copy_of("cache-dit").pipe.transformer
            adapter = cache_dit.BlockAdapter(
                transformer=transformer,
                blocks=transformer.blocks,
                forward_pattern=cache_dit.ForwardPattern.Pattern_2,
                check_forward_pattern=False,
                has_separate_cfg=True,
            )
            config = cache_dit.DBCacheConfig(
                num_inference_steps=STEPS,
                enable_separate_cfg=True,
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                max_warmup_steps=WARM_UP,
                residual_diff_threshold=threshold,
            )
            forecast = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
            cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=forecast)
            try:
                yield
            finally:
                cache_dit.disable_cache(adapter)

        return opened

    return None, at


def _dbcache_taylor(bench: Bench) -> tuple[None, Opened]:
    return _dbcache(bench, taylor=True)


_FAMILIES: tuple[tuple[str, str, Callable[[Bench], tuple[Any, Opened]]], ...] = (
    ("diffusers FirstBlockCache", "diffusers", _first_block),
    ("diffusers MagCache", "diffusers", _mag),
    ("diffusers SeaCache", "diffusers", _sea),
    ("diffusers TaylorSeer", "diffusers", _taylor_whole),
    ("diffusers TaylorSeer (lite)", "diffusers", _taylor_lite),
    ("diffusers PAB", "diffusers", _pab),
    ("cache-dit DBCache", "cache-dit", _dbcache),
    ("cache-dit DBCache + TaylorSeer", "cache-dit", _dbcache_taylor),
)
