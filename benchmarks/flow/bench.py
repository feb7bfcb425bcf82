"""The bench of the second model: the pipeline, what competes in it, and how videos are judged.

Speed is counted, not timed: multiply-adds of the linear layers in the transformer's blocks, which
are nearly all of its work, of the plain pipeline's steps over those that an entrant made.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor, nn

from osp_opt.api import calibrate
from osp_opt.base.ledger import TrialLedger
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, open_pipeline
from osp_opt.quality.metrics import MAX_PSNR, psnr
from osp_opt.search.recipe.schedules import CorrectedSchedules
from osp_opt.tiny.checker import check
from osp_opt.tiny.prompts import load_prompts

__all__ = ["STEPS", "Bench", "Entrant"]

MODEL = Path(__file__).parent / "model"
STEPS = 50  # of the plain pipeline
CONVERGED = 300  # steps of what everything is compared with
CALIBRATION = (6, 100)  # prompts, steps
SHIFT = 3.0  # the model's own

Peer = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Entrant:
    """One way to make videos.

    levels: timesteps, 1000 s; () for the scheduler's own `steps`. solver: "UniPC" in place of
    FlowMatchEuler. peer: somebody's cache, on the pipeline `library` of the bench.
    """

    name: str
    steps: int = STEPS
    levels: tuple[float, ...] = ()
    corrections: tuple[float, ...] = ()
    cache: CachePolicy | None = None
    solver: str = ""
    library: str = ""
    peer: Peer = field(default=nullcontext, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Its name in the ledger: of what is run, not of what it is called."""
        policy = None if self.cache is None else repr(self.cache)
        setting = self.name if self.library else ""
        text = repr((self.steps, self.levels, self.corrections, policy, self.solver, setting))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Bench:
    """The second model with everything that was measured before.

    Prompts never serve twice: `calibration` calibrates (and places peers' thresholds),
    `verification` decides, `evaluation` judges.
    """

    def __init__(self, work: Path, seed: int, model: Path = MODEL) -> None:
        self.seed = seed
        self.call = yaml.safe_load((model / "call.yaml").read_text(encoding="utf-8"))
        self.pipeline = open_pipeline(model, arguments=self.call)
        self._copies = {"": self.pipeline}
        weights = (model / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
        self.fingerprint = hashlib.sha256(weights).hexdigest()
        self.work = work / f"flow-{self.fingerprint[:12]}-s{seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.ledger = TrialLedger(self.work / "measurements.jsonl")
        self._frames: dict[tuple[str, str], np.ndarray[Any, Any]] = {}

    def copy_of(self, library: str) -> DiffusersPipeline:
        """The pipeline that a library may change; "" is the plain one."""
        if library not in self._copies:
            pipe = self.pipeline.pipe
            parts = {**pipe.components, "transformer": copy.deepcopy(pipe.transformer)}
            if library == "UniPC":
                parts["scheduler"] = UniPCMultistepScheduler(
                    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
                )
            self._copies[library] = DiffusersPipeline(type(pipe)(**parts), self.call)
        return self._copies[library]

    def shifted(self, steps: int, shift: float) -> tuple[float, ...]:
        """The levels of FlowMatchEuler with that shift: what is tuned by hand."""
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        return tuple(1000.0 * float(s) for s in scheduler.sigmas[:-1].double())

    def own(self, steps: int) -> tuple[float, ...]:
        """The pipeline's own levels."""
        return self.pipeline.own_levels(steps)

    @cached_property
    def calibration(self) -> Calibration:
        """The recorded statistics, made at the first need."""
        file = self.work / "calibration.safetensors"
        if not file.is_file():
            count, steps = CALIBRATION
            prompts = load_prompts("calibration")[:count]
            calibrate(self.pipeline, prompts, steps=steps, seed=self.seed).save(file)
        return Calibration.load(file)

    @cached_property
    def planner(self) -> CorrectedSchedules:
        """What `optimize` plans steps with."""
        return CorrectedSchedules(self.calibration, self.pipeline.kind, self.pipeline.schedule)

    def run(self, entrant: Entrant, prompt: str) -> tuple[Tensor, float]:
        """Latents of one video, and the multiply-adds that its blocks made."""
        pipeline = self.copy_of(entrant.library or entrant.solver)
        with entrant.peer(), _counted(pipeline.pipe.transformer) as work:
            made = pipeline.denoise(
                prompt,
                self.seed,
                None if entrant.levels else entrant.steps,
                levels=entrant.levels or None,
                corrections=entrant.corrections,
                cache=entrant.cache,
            )
        return made.latents, work[0]

    def measure(self, entrant: Entrant, prompt: str) -> dict[str, float]:
        """PSNR to the converged and to the plain video, work, attributes as asked; kept."""
        key = f"{entrant.key} {prompt}"
        held = self.ledger.get(key)
        if held is None:
            latents, work = self.run(entrant, prompt)
            frames = self.pipeline.decode(latents)
            right = check(frames, prompt).right()
            held = {
                "to_converged": min(psnr(frames, self.frames(CONVERGED, prompt)), MAX_PSNR),
                "to_plain": min(psnr(frames, self.frames(STEPS, prompt)), MAX_PSNR),
                "work": work,
                "all_right": float(right["all"]),
            }
            self.ledger.add(key, held)
            print(f"  {entrant.name}: {held['to_converged']:.1f} dB, {prompt}", flush=True)
        return dict(held)

    def frames(self, steps: int, prompt: str) -> np.ndarray[Any, Any]:
        """The pipeline's own video of so many steps; its latents are kept."""
        key = (str(steps), prompt)
        if key not in self._frames:
            name = hashlib.sha256(f"{steps} {prompt}".encode()).hexdigest()[:16]
            file = self.work / f"own-{name}.pt"
            if not file.is_file():
                torch.save(self.pipeline.denoise(prompt, self.seed, steps).latents, file)
            self._frames[key] = self.pipeline.decode(torch.load(file, weights_only=True))
        return self._frames[key]

    @cached_property
    def plain_work(self) -> float:
        """Multiply-adds of the plain pipeline's steps."""
        prompt = load_prompts("calibration")[0]
        steps = 2
        return self.run(Entrant("", steps), prompt)[1] * STEPS / steps

    def remembered(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The values under `key`, measured (and kept) when they are not there yet."""
        held = self.ledger.get(key)
        if held is None:
            held = measure()
            self.ledger.add(key, held)
        return dict(held)

    def measure_all(
        self, entrants: Sequence[Entrant], prompts: Sequence[str]
    ) -> dict[str, list[dict[str, float]]]:
        """Every entrant on every prompt, by name; prompt after prompt, so that a run that is
        stopped has compared all on the first ones.
        """
        rows: dict[str, list[dict[str, float]]] = {entrant.name: [] for entrant in entrants}
        for prompt in prompts:
            for entrant in entrants:
                rows[entrant.name].append(self.measure(entrant, prompt))
        return rows


@contextmanager
def _counted(transformer: nn.Module) -> Iterator[list[float]]:
    """Adds up multiply-adds of the linear layers in the blocks."""
    total = [0.0]

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        total[0] += float(output.numel() * module.in_features)  # type: ignore[operator]

    blocks: Any = transformer.blocks
    layers = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()
