"""What a pipeline has to be to be driven from outside; everything else is refused in one line.

A stranger's pipeline is known by what its call takes: a text-to-video pipeline takes a prompt, a
number of steps and of frames, and nothing else that must be given.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from osp_opt.base.errors import CheckpointError, OptionError, PolicyError
from osp_opt.cache.hooks import registered_blocks

__all__ = ["OURS", "call_parameters", "check_arguments", "check_kind", "transformers_of"]

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


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's call takes, by name."""
    found = dict(inspect.signature(type(pipe).__call__).parameters)
    found.pop("self", None)
    return found


def check_kind(pipe: Any) -> None:
    """Raise CheckpointError, with the reason, for what is no text-to-video diffusion pipeline."""
    name, parameters = type(pipe).__name__, call_parameters(pipe)
    reason = _other_kind(pipe, parameters)
    if reason is not None:
        raise CheckpointError(f"{name}: {reason}; osp-opt drives text-to-video diffusion pipelines")
    optional = set(getattr(pipe, "_optional_components", ()))
    missing = [part for part, value in pipe.components.items() if value is None]
    missing = [part for part in missing if part not in optional]
    if missing:
        raise CheckpointError(
            f"{name}: {', '.join(missing)} is missing; give a folder that holds the whole pipeline"
        )


def _other_kind(pipe: Any, parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """What the pipeline is instead, in words; None for a text-to-video pipeline."""
    heard = [part for part in pipe.components if "audio" in part or "vocoder" in part]
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
    distilled = any("distilled" in key and value is True for key, value in pipe.config.items())
    if distilled or (isinstance(steps, int) and steps < MIN_STEPS):
        few = f"by default {steps} steps" if isinstance(steps, int) else "few steps"
        return f"it is distilled ({few}), which leaves no steps to search"
    if not hasattr(pipe, "scheduler"):
        return "it has no scheduler"
    return None


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """Its transformers by name, each with as many registered blocks.

    Raises CheckpointError where there are none, or blocks that cannot be watched.
    """
    name = type(pipe).__name__
    found = {
        part: module
        for part, module in pipe.components.items()
        if part.startswith("transformer") and isinstance(module, nn.Module)
    }
    if not found:
        raise CheckpointError(f"{name}: it has no transformer")
    try:
        counts = {part: len(registered_blocks(module)) for part, module in found.items()}
    except PolicyError as error:
        raise CheckpointError(f"{name}: {str(error).split(';')[0]}") from error
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{part} has {count}" for part, count in counts.items())
        raise CheckpointError(f"{name}: its transformers differ in their blocks ({told})")
    return found


def check_arguments(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raise OptionError for call arguments that the pipeline does not take, or that are ours."""
    name, parameters = type(pipe).__name__, call_parameters(pipe)
    for key in arguments:
        if key in OURS:
            raise OptionError(f"{key}: osp-opt gives this argument of {name} itself; leave it out")
        if key not in parameters:
            known = ", ".join(known for known in parameters if known not in OURS)
            raise OptionError(f"{name} takes no argument {key!r}; it takes {known}")
