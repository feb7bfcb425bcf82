"""Other people's caches on the same transformer, through their public interfaces.

diffusers' caches: ``transformer.enable_cache(Config)``; the denoiser enters ``cache_context``.
cache-dit: ``enable_cache(BlockAdapter, ...)``. Each runs on its own copy of the transformer, is
enabled anew for every video (not timed) and removed after it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Entrant, NotRun, Runtime, reason_of
from benchmarks.knobs import tuned_thresholds
from benchmarks.lab import Lab
from benchmarks.told import Told
from osp_opt.pipelines.maker import Request
from osp_opt.tiny.prompts import load_prompts

__all__ = ["peer_entrants"]

MOST_SKIPS = 4  # in a row, of the caches that take a limit; their defaults are 2 and 3
WARM_UP = 8  # steps that DBCache computes first: its default


@dataclass
class Bench:
    """Copies of the transformer, one per library, and what a peer needs to know."""

    lab: Lab
    _copies: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.lab.reference)

    def model(self, library: str) -> Any:
        """The copy that `library` may change."""
        if library not in self._copies:
            self._copies[library] = copy.deepcopy(self.lab.maker.pipeline.transformer)
        return self._copies[library]

    def tuned(self, name: str, at: Callable[[float], Any]) -> list[float]:
        """Thresholds at which the peer is about as fast as what it is compared with."""
        return tuned_thresholds(self.lab, name, lambda t: at(t)())

    @contextlib.contextmanager
    def diffusers(self, config: Callable[[Told], Any]) -> Iterator[Runtime]:
        """One of diffusers' caches, for one video."""
        model = self.model("diffusers")
        inside = Told(model)
        with self._spoiled_by_failure("diffusers"):
            model.enable_cache(config(inside))
            yield Runtime(transformer=inside)
            model.disable_cache()

    @contextlib.contextmanager
    def cache_dit(
        self, arguments: dict[str, Any], calibrator: str = "", **settings: Any
    ) -> Iterator[Runtime]:
        """cache-dit's DBCache, for one video, with one of its calibrators where that is named."""
        cache_dit = importlib.import_module("cache_dit")
        for handler in logging.getLogger("CACHE_DIT").handlers:
            handler.setLevel(logging.ERROR)  # it says several lines for every video
        model = self.model("cache-dit")
        adapter = cache_dit.BlockAdapter(
            transformer=model,
            blocks=model.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3,
            check_forward_pattern=False,
        )
        config = cache_dit.DBCacheConfig(
            num_inference_steps=self.steps, enable_separate_cfg=False, **arguments
        )
        named = f"{calibrator}CalibratorConfig"
        forecast = getattr(cache_dit, named)(**settings) if calibrator else None
        with self._spoiled_by_failure("cache-dit"):
            cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=forecast)
            yield Runtime(transformer=model)
            cache_dit.disable_cache(adapter)

    @contextlib.contextmanager
    def _spoiled_by_failure(self, library: str) -> Iterator[None]:
        """A copy in which a cache failed half-way is not used again."""
        try:
            yield
        except BaseException:
            self._copies.pop(library, None)
            raise


def peer_entrants(lab: Lab) -> list[Entrant | NotRun]:
    """Every peer at every knob, and those whose library cannot be used."""
    bench = Bench(lab)
    families: list[tuple[str, Callable[[Bench], list[tuple[str, Any]]]]] = [
        ("diffusers FirstBlockCache", _first_block),
        ("diffusers MagCache", _mag),
        ("diffusers SeaCache", _sea),
        ("diffusers TaylorSeer", _taylor),
        ("diffusers TaylorSeer (lite)", _taylor_lite),
        ("diffusers PAB", _pab),
        ("cache-dit DBCache", _dbcache),
        ("cache-dit DBCache + TaylorSeer", _dbcache_taylor),
        ("cache-dit DBCache + DMD", _dbcache_dmd),
        ("cache-dit DBCache + FoCa", _dbcache_foca),
        ("cache-dit step masks", _step_masks),
    ]
    entrants: list[Entrant | NotRun] = []
    for method, settings in families:
        try:
            found = settings(bench)
        except Exception as error:  # noqa: BLE001 - other people's code, any failure
            reason = reason_of(error)
            entrants.append(NotRun(method, "", reason))
            print(f"  {method}: not run: {reason}", flush=True)
            continue
        for setting, opened in found[: lab.size.knobs]:
            entrants.append(Entrant(method, setting, lab.reference, opened, about={"peer": True}))
    return entrants


def _first_block(bench: Bench) -> list[tuple[str, Any]]:
    from diffusers.hooks import FirstBlockCacheConfig

    def at(threshold: float) -> Any:
        return lambda: bench.diffusers(lambda _: FirstBlockCacheConfig(threshold=threshold))

    return [(f"threshold {t:g}", at(t)) for t in bench.tuned("first block", at)]


def _mag(bench: Bench) -> list[tuple[str, Any]]:
    from diffusers.hooks import MagCacheConfig

    ratios = _mag_ratios(bench)

    def at(threshold: float) -> Any:
        def config(_: Told) -> Any:
            return MagCacheConfig(
                threshold=threshold,
                max_skip_steps=MOST_SKIPS,
                num_inference_steps=bench.steps,
                mag_ratios=list(ratios),
            )

        return lambda: bench.diffusers(config)

    return [(f"threshold {t:g}", at(t)) for t in bench.tuned("mag", at)]


def _mag_ratios(bench: Bench) -> list[float]:
    """MagCache's own calibration, which prints its result, on a calibration prompt."""
    from diffusers.hooks import MagCacheConfig

    lab = bench.lab

    def measure() -> dict[str, Any]:
        request = Request(load_prompts("calibration")[0], lab.seed)
        printed = io.StringIO()

        def config(_: Told) -> Any:
            return MagCacheConfig(calibrate=True, num_inference_steps=bench.steps)

        with bench.diffusers(config) as runtime, contextlib.redirect_stdout(printed):
            lab.denoise(request, lab.reference, transformer=runtime.transformer)
        found = re.search(r"^\[([-\d., e]+)\]$", printed.getvalue(), re.MULTILINE)
        if found is None:
            raise RuntimeError("MagCache's calibration printed no ratios")
        return {"ratios": [float(part) for part in found[1].split(",")]}

    return list(lab.remembered("mag ratios", measure)["ratios"])


def _sea(bench: Bench) -> list[tuple[str, Any]]:
    from diffusers.hooks import SeaCacheConfig

    def latents(module: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> list[Tensor]:
        x = args[0] if args else arguments["hidden_states"]
        return [x[-1]]  # both guidance branches hold the same latents

    def at(threshold: float) -> Any:
        def config(_: Told) -> Any:
            return SeaCacheConfig(
                threshold=threshold, max_consecutive_cached=MOST_SKIPS, raw_vision_callback=latents
            )

        return lambda: bench.diffusers(config)

    return [(f"threshold {t:g}", at(t)) for t in bench.tuned("sea", at)]


def _taylor_config(interval: int, **arguments: Any) -> Callable[[Told], Any]:
    from diffusers.hooks import TaylorSeerCacheConfig

    def config(_: Told) -> Any:
        return TaylorSeerCacheConfig(
            cache_interval=interval, taylor_factors_dtype=torch.float32, **arguments
        )

    return config


def _taylor(bench: Bench) -> list[tuple[str, Any]]:
    # Its own patterns name modules that end in "attn"; here they end in a number, so they are told.
    modules = [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"]

    def at(interval: int, order: int) -> Any:
        config = _taylor_config(interval, max_order=order, cache_identifiers=modules)
        return lambda: bench.diffusers(config)

    knobs = ((2, 1), (3, 1), (4, 1), (6, 1))
    return [(f"interval {i}, order {o}", at(i, o)) for i, o in knobs]


def _taylor_lite(bench: Bench) -> list[tuple[str, Any]]:
    def at(interval: int) -> Any:
        config = _taylor_config(interval, use_lite_mode=True)
        return lambda: bench.diffusers(config)

    return [(f"interval {i}", at(i)) for i in (2, 3, 4, 6)]


def _pab(bench: Bench) -> list[tuple[str, Any]]:
    from diffusers.hooks import PyramidAttentionBroadcastConfig

    def at(spatial: int, cross: int, steps: tuple[int, int]) -> Any:
        def config(inside: Told) -> Any:
            return PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=spatial,
                cross_attention_block_skip_range=cross,
                spatial_attention_timestep_skip_range=steps,
                cross_attention_timestep_skip_range=steps,
                current_timestep_callback=lambda: int(inside.timestep),
            )

        return lambda: bench.diffusers(config)

    knobs = ((2, 2, (100, 800)), (2, 4, (100, 800)), (4, 6, (100, 800)), (4, 6, (0, 950)))
    return [(f"self {s}, cross {c}, timesteps {r[0]} to {r[1]}", at(s, c, r)) for s, c, r in knobs]


def _db_settings(bench: Bench, calibrator: str = "", **settings: Any) -> list[tuple[str, Any]]:
    importlib.import_module("cache_dit")  # missing or broken: said here, once

    def at(threshold: float) -> Any:
        arguments = {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "max_warmup_steps": WARM_UP,
            "residual_diff_threshold": threshold,
        }
        return lambda: bench.cache_dit(arguments, calibrator, **settings)

    thresholds = bench.tuned(f"dbcache {calibrator}", at)
    return [(f"F1B0, threshold {t:g}", at(t)) for t in thresholds]


def _dbcache(bench: Bench) -> list[tuple[str, Any]]:
    return _db_settings(bench)


def _dbcache_taylor(bench: Bench) -> list[tuple[str, Any]]:
    return _db_settings(bench, "TaylorSeer", taylorseer_order=1)


def _dbcache_dmd(bench: Bench) -> list[tuple[str, Any]]:
    return _db_settings(bench, "DMD")


def _dbcache_foca(bench: Bench) -> list[tuple[str, Any]]:
    return _db_settings(bench, "FoCa")


def _step_masks(bench: Bench) -> list[tuple[str, Any]]:
    """Its presets, made for 28 steps and stretched by itself."""
    cache_dit = importlib.import_module("cache_dit")

    def at(preset: str) -> Any:
        arguments = {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 0,
            "max_warmup_steps": 0,
            "steps_computation_mask": cache_dit.steps_mask(
                total_steps=bench.steps, mask_policy=preset
            ),
            "steps_computation_policy": "static",
        }
        return lambda: bench.cache_dit(arguments)

    return [(preset, at(preset)) for preset in ("slow", "medium", "fast", "ultra")]
