"""The text-to-video pipeline of Open-Sora-Plan v1.2.

Shapes: b videos, c latent channels, t h w latent frames and size, l tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from osp_opt.base.errors import CheckpointError, OptionError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.parallelize import workload
from osp_opt.model.release import ModelDefaults, ModelFolders
from osp_opt.model.text.encoder import load_tokenizer
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.autoencoder import CausalVAEModel
from osp_opt.model.vae.tiling import MapTiles, run_tiles
from osp_opt.sampling.arguments import check_call, check_guidance, check_kind, check_whole, texts
from osp_opt.sampling.denoiser import BlockLoops, Conditions, GuidedDenoiser
from osp_opt.sampling.embeddings import PromptEmbeddings, encode_texts
from osp_opt.sampling.latents import Interrupted, decode_videos, sample_latents
from osp_opt.sampling.noise import GeneratorNoise, NoiseSource, make_noise, noise_key
from osp_opt.sampling.offload import execution_device
from osp_opt.sampling.outputs import OUTPUT_TYPES, OpenSoraPlanOutput, finish, in_form, to_uint8
from osp_opt.sampling.plan import SamplingPlan
from osp_opt.sampling.recipe import Recipe
from osp_opt.sampling.samplers import StepCallback
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import SAMPLERS, call_timesteps, make_scheduler

__all__ = ["OpenSoraPlanOutput", "OpenSoraPlanPipeline", "PromptEmbeddings"]

DEFAULT_STEPS = 100
_TOKENIZER = "tokenizer"  # folder of a saved pipeline


class OpenSoraPlanPipeline(DiffusionPipeline, CogVideoXLoraLoaderMixin):
    """Tokenizer, text encoder, video autoencoder, transformer and sampler as one.

    `text_encoder` and `tokenizer` may be None when embeddings are passed in. `scheduler` is by
    default the sampler of the official scripts. `defaults`, fields of `ModelDefaults`, are what
    holds where a call leaves something open. `from_pretrained` brings the model's own, which the
    commands use; put together by hand, a pipeline takes prompts as they are and an empty negative
    prompt, as the original class does, at the size that the transformer was trained for.

    LoRA weights of the transformer are loaded by `load_lora_weights` (diffusers' loader for models
    whose transformer alone takes them).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]
    # The scheduler is one, too, by which diffusers knows it as a part although it has a default.
    _optional_components = ["tokenizer", "text_encoder", "vae", "scheduler"]  # noqa: RUF012
    _callback_tensor_inputs = (
        "latents",
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: CausalVAEModel | None,
        transformer: OpenSoraT2V,
        scheduler: Any = None,
        defaults: ModelDefaults | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(  # type: ignore[no-untyped-call]
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=make_scheduler(SAMPLERS[0]) if scheduler is None else scheduler,
        )
        if defaults is None:
            made = transformer is not None  # a pipeline may only encode prompts
            official = ModelDefaults.official(transformer.config) if made else ModelDefaults()
            defaults = replace(official, prompt_template="{}", negative_prompt="")
        elif not isinstance(defaults, ModelDefaults):
            defaults = ModelDefaults(**defaults)
        self.defaults: ModelDefaults = defaults
        self.register_to_config(defaults=asdict(defaults))  # type: ignore[no-untyped-call]
        self._guidance_scale = defaults.guidance_scale
        self._origin: tuple[ModelFolders, Any, Any] | None = None
        self._num_timesteps = 0
        self._current_timestep: float | None = None
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None = None,
        *,
        version: str | None = None,
        ae_path: str | None = None,
        text_encoder_name: str | None = None,
        torch_dtype: torch.dtype | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """A pipeline from what `save_pretrained` wrote, from a released model, or the bundled one.

        A released model is a folder or hub id in the official layout: a transformer's folder, or
        one that holds it as `version` (29x480p); the autoencoder is `vae` beside it or `ae_path`,
        the text encoder `text_encoder` beside it, `text_encoder_name`, or google/mt5-xxl. Without
        a name it is the bundled model. Parts given by name (`transformer=`, `scheduler=`, ...) are
        taken as they are.

        Raises CheckpointError.
        """
        source = pretrained_model_name_or_path
        torch_dtype = kwargs.pop("dtype", torch_dtype)  # diffusers knows it by both names
        if source is not None and (Path(source) / cls.config_name).is_file():
            if (Path(source) / _TOKENIZER).is_dir() and _TOKENIZER not in kwargs:
                kwargs[_TOKENIZER] = load_tokenizer(Path(source) / _TOKENIZER)
            return super().from_pretrained(str(source), dtype=torch_dtype, **kwargs)
        unknown = kwargs.keys() - {"tokenizer", "text_encoder", "vae", "transformer", "scheduler"}
        if unknown:
            raise CheckpointError(
                f"{min(unknown)} is for pipelines that save_pretrained wrote, and "
                f"{'the bundled model' if source is None else source} is none"
            )
        check_kind("torch_dtype", torch_dtype, (torch.dtype,), "a torch.dtype for such a model")
        cache = None if cache_dir is None else Path(cache_dir)
        model_path = None if source is None else str(source)
        folders = ModelFolders.find(model_path, version, ae_path, text_encoder_name, cache)
        parts = folders.load(torch_dtype or torch.float32, cache, kwargs)
        defaults = folders.model_defaults(parts["transformer"].config)
        pipe = cls(**parts, defaults=defaults)
        if not kwargs.keys() - {"scheduler"}:
            pipe._origin = folders, pipe.transformer, pipe.vae
        return pipe

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[Any], **kwargs: Any
    ) -> None:
        """Write all parts, in diffusers' layout; read again by `from_pretrained`."""
        config = dict(self.config)
        super().save_pretrained(save_directory, **kwargs)
        # diffusers cannot save it, and notes that there is none.
        self.register_to_config(**{_TOKENIZER: config[_TOKENIZER]})  # type: ignore[no-untyped-call]
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(Path(save_directory) / _TOKENIZER)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the files of a released or the bundled model, by which the commands
        know it; None for parts that were put together otherwise.
        """
        if self._origin is None:
            return None
        folders, *parts = self._origin
        return folders.fingerprint() if parts == [self.transformer, self.vae] else None

    @property
    def guidance_scale(self) -> float:
        """Of the run in progress or the last one; a callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the negative prompt counts."""
        return self._guidance_scale > 1.0

    @property
    def num_timesteps(self) -> int:
        """Steps of the run in progress or the last one."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> float | None:
        """Timestep of the step in progress; None between runs."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """A callback sets `_interrupt` to end the run after its step."""
        return self._interrupt

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        clean_caption: bool = True,
        max_sequence_length: int | None = None,
        prompt_template: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What a call takes in place of prompts: embeddings [b l c] and masks [b l].

        Arguments as of a call; without `do_classifier_free_guidance` the negative ones are None.
        """
        prompts = texts("prompt", prompt)
        template = self.defaults.prompt_template if prompt_template is None else prompt_template
        if "{}" not in template:
            raise OptionError(f"prompt_template {template!r:.40} has no {{}} for the prompt")
        limit = self.defaults.max_sequence_length
        negative = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        encoded = self.encode_prompts(
            [template.replace("{}", text) for text in prompts],
            negative if do_classifier_free_guidance else None,
            limit if max_sequence_length is None else max_sequence_length,
            clean_caption,
        ).repeated(num_videos_per_prompt)
        return encoded.embeds, encoded.mask, encoded.negative_embeds, encoded.negative_mask

    def encode_prompts(
        self,
        prompts: list[str],
        negative_prompt: str | list[str] | None,
        max_sequence_length: int,
        clean_caption: bool = True,
    ) -> PromptEmbeddings:
        """Encode prompts as they are, and the negative prompt of all or of each (None: none).

        Longer ones are cut. `clean_caption` applies the original caption cleaning, else prompts are
        lower-cased only.
        """

        def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
            return encode_texts(
                self.tokenizer, self.text_encoder, texts, max_sequence_length, clean_caption
            )

        embeds, mask = encode(prompts)
        if negative_prompt is None:
            return PromptEmbeddings(embeds, mask)
        negatives = texts("negative_prompt", negative_prompt)
        if len(negatives) not in (1, len(prompts)):
            raise OptionError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one for all, "
                "or one for each"
            )
        other, other_mask = encode(negatives)
        b = len(prompts)
        return PromptEmbeddings(embeds, mask, other.expand(b, -1, -1), other_mask.expand(b, -1))

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, map_tiles: MapTiles = run_tiles) -> Tensor:
        """Videos uint8 [b t h w c] on the CPU from latents as `sample_latents` makes them."""
        return torch.stack([*decode_videos(self.vae, latents, to_uint8, map_tiles)])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = DEFAULT_STEPS,
        timesteps: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "uint8",
        return_dict: bool = True,
        callback: StepCallback | None = None,
        clean_caption: bool = True,
        max_sequence_length: int | None = None,
        *,
        mask_feature: bool = True,
        device: str | torch.device | None = None,
        num_videos_per_prompt: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt_template: str | None = None,
        schedule: TimestepSchedule | str | Path | None = None,
        seed: int = 0,
        noise: str = "coupled",
        cache: BlockLoops | CachePolicy | str | Path | None = None,
        recipe: Recipe | str | Path | None = None,
        sequential_guidance: bool = False,
    ) -> OpenSoraPlanOutput | tuple[Any]:
        """Make videos from text.

        With its defaults it makes the video that `osp-opt sample` makes of the prompt and seed.

        Args:
            prompt: one or several; not encoded when `prompt_embeds` is given.
            negative_prompt: what to steer away from, for all prompts or one for each; None is the
                model's own.
            num_inference_steps: used when none of `timesteps`, `schedule`, `recipe` is given.
            timesteps: descending timesteps in [0, 999].
            guidance_scale: classifier-free guidance; 1 is none, None the model's own.
            num_images_per_prompt: as `num_videos_per_prompt`, for the original's callers.
            num_frames: of the video; like height and width by default what the model was made for.
            height: in pixels.
            width: in pixels.
            generator: consumed as diffusers does: initial latents, then one draw for each step.
            latents: unit normal [b c t h w] to start from.
            prompt_embeds: [b l c], or [b 1 l c] as in the original.
            prompt_attention_mask: [b l] or [b 1 l], nonzero where a token counts.
            negative_prompt_embeds: as `prompt_embeds`.
            negative_prompt_attention_mask: as `prompt_attention_mask`.
            output_type: "uint8", "np", "pt", "pil" or "latent"; see `OpenSoraPlanOutput`.
            return_dict: whether to return an object or a tuple.
            callback: called after each step with index, timestep and latents.
            clean_caption: the original cleaning of prompts, else only lower case.
            max_sequence_length: tokens at which prompts are cut; None is the model's own.
            mask_feature: for the original's callers; padding is always masked.
            device: for the original's callers; where the components are.
            num_videos_per_prompt: videos of each prompt.
            callback_on_step_end: called with (pipeline, step, timestep, tensors) after each step;
                may return tensors to go on with.
            callback_on_step_end_tensor_inputs: names of those tensors.
            prompt_template: what a prompt is put into, at its {}; None is the model's own.
            schedule: timesteps as an object, or as the file of a searched schedule.
            seed: without a generator, noise comes from (seed, prompt). Counts up over videos of one
                prompt, and of prompts given as embeddings alone.
            noise: "coupled" (runs of any length make one video) or "independent".
            cache: a policy, its file, or a `BlockCache`.
            recipe: the sampler, steps, corrections and cache that `optimize` found, or their file;
                in place of the pipeline's sampler and the arguments above.
            sequential_guidance: the two guidance branches in turn: half the memory.

        Raises:
            InputError: one of its kinds, for whatever does not fit.
        """
        # What was asked for, checked before any work
        here = execution_device(self.transformer)
        if not mask_feature or (device is not None and torch.device(device).type != here.type):
            raise OptionError(
                f"mask_feature={mask_feature}, device={device}: padding is always masked and the "
                f"components are on {here}; use pipe.to(device)"
            )
        if output_type not in OUTPUT_TYPES:
            raise OptionError(f"output_type is {output_type!r}; use one of {OUTPUT_TYPES}")
        each = num_images_per_prompt if num_videos_per_prompt is None else num_videos_per_prompt
        check_whole({"num_inference_steps": num_inference_steps, "num_videos_per_prompt": each})
        check_whole({"num_frames": num_frames, "height": height, "width": width})
        check_whole({"seed": seed}, least=None)
        check_call({"callback": callback, "callback_on_step_end": callback_on_step_end})
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise OptionError(
                f"callback_on_step_end_tensor_inputs names {min(unknown)!r}; there are "
                f"{', '.join(self._callback_tensor_inputs)}"
            )
        if latents is not None and not bool(torch.isfinite(latents).all()):
            raise OptionError("the given latents hold NaN or infinite values")
        shape = self.defaults.shape(num_frames, height, width)

        # Steps, sampler, guidance and cache
        plan = SamplingPlan.of(
            num_inference_steps, timesteps, schedule, cache, recipe, lambda: self.fingerprint
        )
        sampler = self.scheduler if plan.sampler is None else make_scheduler(plan.sampler)
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        check_guidance(scale)
        self._guidance_scale = scale
        calls = call_timesteps(sampler, plan.schedule)
        self._num_timesteps, self._current_timestep = len(calls), calls[0]
        self._interrupt = False
        loops = self._block_loops(plan.cache)

        # The prompts, as embeddings, each as often as videos are asked for
        prompts = texts("prompt", prompt)
        if prompt_embeds is not None:
            embeddings = PromptEmbeddings(
                _flat(prompt_embeds, 3),
                _flat(prompt_attention_mask, 2),
                _flat(negative_prompt_embeds, 3),
                _flat(negative_prompt_attention_mask, 2),
            )
            prompts = prompts or [""] * len(embeddings)
        elif prompts:
            encoded = self.encode_prompt(
                prompts,
                negative_prompt,
                self.do_classifier_free_guidance,
                clean_caption=clean_caption,
                max_sequence_length=max_sequence_length,
                prompt_template=prompt_template,
            )
            embeddings = PromptEmbeddings(*encoded)
        else:
            raise OptionError("give a prompt, or prompt_embeds with prompt_attention_mask")
        embeddings = embeddings.repeated(each)

        # The noise of each video
        size = (len(embeddings), self.transformer.config.in_channels, *shape.latent())
        source: NoiseSource
        if generator is not None:
            source = GeneratorNoise(generator, size, embeddings.embeds.dtype)
        else:
            keys = [text for text in prompts for _ in range(each)]
            source = make_noise(noise, _seeds(seed, keys), keys, size[1:])

        # Sampling
        with self.progress_bar(total=self._num_timesteps) as bar:

            def on_step_end(
                denoiser: GuidedDenoiser, step: int, timestep: float, x: Tensor
            ) -> Tensor:
                nonlocal embeddings
                self._current_timestep = timestep
                bar.update()
                if callback_on_step_end is not None:
                    tensors: dict[str, Any] = {"latents": x, **embeddings.by_name}
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, step, timestep, given) or {})
                    x = tensors.pop("latents")
                    embeddings = self._changed(denoiser, embeddings, tensors, sequential_guidance)
                if self._interrupt:
                    raise Interrupted(x)
                self._current_timestep = (*calls, None)[step + 1]
                return x

            result = sample_latents(
                self.transformer,
                embeddings,
                shape,
                plan.schedule,
                source,
                guidance_scale=self._guidance_scale,
                sampler=sampler,
                latents=latents,
                cache=loops,
                step_callback=callback,
                on_step_end=on_step_end,
                sequential_guidance=sequential_guidance,
            )
        self._current_timestep = None
        videos: Any = result
        if output_type != "latent":
            videos = in_form(decode_videos(self.vae, result, finish(output_type)), output_type)
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return OpenSoraPlanOutput(frames=videos) if return_dict else (videos,)

    def _block_loops(self, cache: BlockLoops | CachePolicy | None) -> Any:
        """What supplies the block loops, ready for a new video."""
        if cache is not None and not isinstance(cache, CachePolicy) and not hasattr(cache, "at"):
            raise OptionError(f"cache is {cache!r:.60}; it must be a policy, its file, or a cache")
        if isinstance(cache, CachePolicy):
            cache.validate(len(self.transformer.transformer_blocks), self._num_timesteps)
            return BlockCache(cache)
        if isinstance(cache, BlockCache):
            cache.reset()
        return cache

    def cache_bytes(
        self,
        cache: CachePolicy | str | Path,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_videos: int = 1,
        guidance_scale: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> int:
        """Bytes of stored changes that a call with this cache will hold at most.

        `dtype` is that in which they are stored; what is None is the model's own.
        """
        policy = cache if isinstance(cache, CachePolicy) else CachePolicy.from_file(cache)
        known, config = self.defaults, self.transformer.config
        work = workload(config, known.shape(num_frames, height, width).latent(), guided=True)
        numbers = work.tokens * config.num_attention_heads * config.attention_head_dim
        scale = known.guidance_scale if guidance_scale is None else guidance_scale
        held = num_videos * (2 if scale > 1.0 else 1) * policy.max_deltas()
        return held * numbers * (dtype or self.transformer.dtype).itemsize

    def _changed(
        self,
        denoiser: GuidedDenoiser,
        embeddings: PromptEmbeddings,
        tensors: Mapping[str, Any],
        sequential: bool,
    ) -> PromptEmbeddings:
        """The embeddings to go on with; `denoiser` is told of them and of the guidance."""
        denoiser.guidance_scale = self._guidance_scale
        before = embeddings.by_name
        if all(tensors[name] is tensor for name, tensor in before.items()):
            return embeddings
        changed = PromptEmbeddings(*(tensors[name] for name in before))
        here = changed.to(execution_device(self.transformer))
        denoiser.conditions = Conditions.encode(
            self.transformer,
            here.embeds,
            here.mask,
            here.negative if denoiser.conditions.guided else None,
            sequential,
        )
        return changed


def _seeds(first: int, prompts: Sequence[str]) -> list[int]:
    """Seeds that count up over the videos of one prompt, wherever they stand."""
    seeds: list[int] = []
    made: dict[str, int] = {}
    for key in map(noise_key, prompts):
        seeds.append(first + made.get(key, 0))
        made[key] = made.get(key, 0) + 1
    return seeds


def _flat(x: Tensor | None, ndim: int) -> Any:
    """Drop the axis of size 1 that the original's embeddings [b 1 l c] and masks [b 1 l] have."""
    return x if x is None or x.ndim == ndim else x.flatten(0, 1)
