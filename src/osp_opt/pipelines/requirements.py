"""What a pipeline has to be to be driven from outside; everything else is refused in one line.

A stranger's pipeline is known by what its call takes: a text-to-video pipeline takes a prompt, a
number of steps and of frames, and nothing else that must be given. No torch: the same rules judge a
loaded pipeline and the files of one that is not (`pipelines.files`).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osp_opt.base.errors import CheckpointError, OptionError, ScheduleError
from osp_opt.base.samplers import STEERABLE

__all__ = [
    "OURS",
    "Described",
    "check_arguments",
    "check_kind",
    "check_offload",
    "check_recorded",
    "check_scheduler",
    "draws_noise",
    "is_flow",
]

NEEDED = ("prompt", "num_inference_steps", "num_frames", "generator", "output_type")
OURS = (
    *("prompt", "num_inference_steps", "timesteps", "sigmas", "generator", "latents"),
    *("output_type", "return_dict", "num_videos_per_prompt", "callback_on_step_end"),
    *("callback_on_step_end_tensor_inputs", "prompt_embeds", "negative_prompt_embeds"),
)
"""Call arguments that osp-opt gives itself, or that name a prompt in another way."""

MIN_STEPS = 9  # of a model that is not distilled to a few steps
_AUTOREGRESSIVE = (
    *("ar_step", "overlap_history", "causal_block_size", "latent_window_size"),
    *("history_sizes", "num_latent_frames_per_chunk", "frames_per_block"),
)
_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


@dataclass(frozen=True)
class Described:
    """A pipeline as far as it has to be known to be judged.

    name: of its class. parameters: of its call, without self. parts: of its components, whether
    each is there. optional: those that may be missing. config: its other settings.
    """

    name: str
    parameters: Mapping[str, inspect.Parameter]
    parts: Mapping[str, bool]
    optional: Collection[str]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any) -> Described:
        """A pipeline that is loaded."""
        parameters = dict(inspect.signature(type(pipe).__call__).parameters)
        parameters.pop("self", None)
        parts = {part: value is not None for part, value in pipe.components.items()}
        optional = set(getattr(pipe, "_optional_components", ()))
        return cls(type(pipe).__name__, parameters, parts, optional, dict(pipe.config))


def check_kind(found: Described) -> None:
    """Raise CheckpointError, with the reason, for what is no text-to-video diffusion pipeline."""
    reason = _other_kind(found)
    if reason is not None:
        raise CheckpointError(
            f"{found.name}: {reason}; osp-opt drives text-to-video diffusion pipelines"
        )
    missing = [
        part for part, there in found.parts.items() if not there and part not in found.optional
    ]
    if missing:
        raise CheckpointError(
            f"{found.name}: {', '.join(missing)} is missing, or has no weights; give a folder that "
            "holds the whole pipeline"
        )


def _other_kind(found: Described) -> str | None:
    """What the pipeline is instead, in words; None for a text-to-video pipeline."""
    parameters = found.parameters
    heard = [part for part in found.parts if "audio" in part or "vocoder" in part]
    if heard or any("audio" in name for name in parameters):
        return "it makes sound, which is not compared here"
    if "image" in parameters:
        return "it starts from an image"
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name != "prompt"
    ]
    if required:
        return f"it cannot be called without {', '.join(required)}"
    chunks = [name for name in _AUTOREGRESSIVE if name in parameters]
    if chunks:
        return f"it is autoregressive (it takes {', '.join(chunks)}), so no step is of one level"
    if "num_frames" not in parameters:
        return "it takes no num_frames, so it makes no videos"
    lacking = [name for name in NEEDED if name not in parameters]
    if lacking:
        return f"its call takes no {', '.join(lacking)}"
    steps = parameters["num_inference_steps"].default
    distilled = any("distilled" in key and value is True for key, value in found.config.items())
    if distilled or (isinstance(steps, int) and steps < MIN_STEPS):
        few = f"by default {steps} steps" if isinstance(steps, int) else "few steps"
        return f"it is distilled ({few}), which leaves no steps to search"
    if "scheduler" not in found.parts:
        return "it has no scheduler"
    return None


def check_arguments(found: Described, arguments: Mapping[str, Any]) -> None:
    """Raise OptionError for call arguments that the pipeline does not take, or that are ours."""
    for key in arguments:
        if key in OURS:
            raise OptionError(
                f"{key}: osp-opt gives this argument of {found.name} itself; leave it out"
            )
        if key not in found.parameters:
            known = ", ".join(known for known in found.parameters if known not in OURS)
            raise OptionError(f"{found.name} takes no argument {key!r}; it takes {known}")


def check_scheduler(names: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raise ScheduleError for a scheduler that cannot be steered.

    `names` are its class's, and those of the classes that it is made from.
    """
    name = names[0]
    if not set(names) & set(STEERABLE):
        known = ", ".join(STEERABLE)
        raise ScheduleError(f"scheduler {name} cannot follow a schedule; use one of {known}")
    if config.get("num_train_timesteps", 1000) != 1000:
        raise ScheduleError(f"scheduler {name}: not of 1000 trained levels")
    prediction = config.get("prediction_type", _PREDICTIONS[0])
    if prediction not in _PREDICTIONS:
        raise ScheduleError(f"scheduler {name}: prediction_type {prediction!r} is unknown")
    if config.get("solver_p") is not None:
        raise ScheduleError(f"scheduler {name} with a second solver (solver_p) is not steered")


def check_recorded(steps: int) -> None:
    """Raise OptionError for a calibration of too few steps."""
    if steps < MIN_STEPS:
        raise OptionError(f"--steps {steps}: too few to choose from; record {MIN_STEPS} or more")


def check_offload(device: str) -> None:
    """Raise OptionError where parts of a pipeline cannot be kept off the device."""
    if device == "cpu":
        raise OptionError("--offload: on cpu everything is in host memory; leave it out")
    if importlib.util.find_spec("accelerate") is None:
        raise OptionError("--offload: it needs accelerate: pip install 'osp-opt[pipelines]'")


def draws_noise(names: Sequence[str], config: Mapping[str, Any]) -> bool:
    """Whether a scheduler draws fresh noise on the way, so that runs of other lengths differ."""
    sde = str(config.get("algorithm_type", "")).startswith("sde")
    return sde or bool(config.get("stochastic_sampling")) or "CogVideoXDPMScheduler" in names


def is_flow(names: Sequence[str], config: Mapping[str, Any]) -> bool:
    """Whether a scheduler thinks in the s of flow matching, x_s = (1 - s) x0 + s eps."""
    return "FlowMatchEulerDiscreteScheduler" in names or bool(config.get("use_flow_sigmas"))
