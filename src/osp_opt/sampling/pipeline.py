"""The text-to-video pipeline of Open-Sora-Plan v1.2.

Shapes: b videos, c latent channels, t h w latent frames and size, l tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import CheckpointError, OptionError, OspOptError, ShapeError
from osp_opt.base.shape import VideoShape
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.checkpoint import load_transformer, load_vae
from osp_opt.model.release import ModelDefaults, ModelFolders
from osp_opt.model.text.encoder import (
    load_text_encoder,
    load_tokenizer,
    preprocess_prompt,
    tokenize,
)
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.autoencoder import VAE_SCALE, CausalVAEModel
from osp_opt.model.vae.tiling import MapTiles, run_tiles
from osp_opt.sampling.denoiser import BlockLoops, Conditions, GuidedDenoiser, Recorder
from osp_opt.sampling.embeddings import PromptEmbeddings
from osp_opt.sampling.noise import GeneratorNoise, NoiseSource, make_noise, noise_key
from osp_opt.sampling.offload import execution_device
from osp_opt.sampling.outputs import OUTPUT_TYPES, OpenSoraPlanOutput, finish, in_form, to_uint8
from osp_opt.sampling.samplers import (
    StepCallback,
    make_scheduler,
    sample_euler_ancestral,
    sample_with_scheduler,
    set_schedule,
)
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import SAMPLERS, adopt_scheduler, first_sigma, is_stock

__all__ = ["OpenSoraPlanOutput", "OpenSoraPlanPipeline", "PromptEmbeddings"]

DEFAULT_STEPS = 100
StepEnd = Callable[[GuidedDenoiser, int, float, Tensor], Tensor | None]
_TOKENIZER = "tokenizer"  # folder of a saved pipeline


class _Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """Somebody asked the run to stop; it ends with these latents."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


@dataclass(frozen=True)
class _Places:
    """Where the parts of a released model are; see `ModelFolders.find`."""

    model_path: str | None
    version: str | None
    ae_path: str | None
    text_encoder_name: str | None
    cache_dir: Path | None


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
        if source is not None and (Path(source) / cls.config_name).is_file():
            if (Path(source) / _TOKENIZER).is_dir() and _TOKENIZER not in kwargs:
                kwargs[_TOKENIZER] = load_tokenizer(Path(source) / _TOKENIZER)
            return super().from_pretrained(str(source), torch_dtype=torch_dtype, **kwargs)
        unknown = kwargs.keys() - {"tokenizer", "text_encoder", "vae", "transformer", "scheduler"}
        if unknown:
            raise CheckpointError(
                f"{min(unknown)} is for pipelines that save_pretrained wrote, and "
                f"{'the bundled model' if source is None else source} is none"
            )
        cache = None if cache_dir is None else Path(cache_dir)
        model_path = None if source is None else str(source)
        folders = ModelFolders.find(_Places(model_path, version, ae_path, text_encoder_name, cache))
        dtype = torch_dtype or torch.float32
        parts = dict(kwargs)
        if "transformer" not in parts:
            parts["transformer"] = load_transformer(folders.transformer, dtype)
            parts["transformer"].fuse_qkv_projections()
        if "vae" not in parts:
            parts["vae"] = load_vae(folders.vae, dtype)
        if "text_encoder" not in parts:
            parts["text_encoder"] = load_text_encoder(folders.text_encoder, dtype, cache)
        if "tokenizer" not in parts:
            parts["tokenizer"] = load_tokenizer(folders.text_encoder, cache)
        defaults = folders.model_defaults(parts["transformer"].config)
        return cls(**parts, defaults=defaults)

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
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        template = self.defaults.prompt_template if prompt_template is None else prompt_template
        if "{}" not in template:
            raise OptionError(f"prompt_template {template!r:.40} has no {{}} for the prompt")
        limit = self.defaults.max_sequence_length
        encoded = self.encode_prompts(
            [template.replace("{}", text) for text in prompts],
            self._negative(negative_prompt) if do_classifier_free_guidance else None,
            limit if max_sequence_length is None else max_sequence_length,
            clean_caption,
        ).repeated(num_videos_per_prompt)
        prompt_embeds, prompt_attention_mask = encoded.embeds, encoded.mask
        negative_prompt_embeds = encoded.negative_embeds
        negative_prompt_attention_mask = encoded.negative_mask
        return (
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )

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
        embeds, mask = self.encode_texts(prompts, max_sequence_length, clean_caption)
        if negative_prompt is None:
            return PromptEmbeddings(embeds, mask)
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        if len(negatives) not in (1, len(prompts)):
            raise OptionError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one for all, "
                "or one for each"
            )
        other, other_mask = self.encode_texts(negatives, max_sequence_length, clean_caption)
        b = len(prompts)
        return PromptEmbeddings(embeds, mask, other.expand(b, -1, -1), other_mask.expand(b, -1))

    @torch.no_grad()
    def encode_texts(
        self, texts: list[str], max_sequence_length: int, clean_caption: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [b l c] and mask [b l] (on the CPU) of texts; see `encode_prompts`."""
        if self.text_encoder is None or self.tokenizer is None:
            raise OptionError("the text encoder was released or never given; pass prompt_embeds")
        texts = [preprocess_prompt(text, clean_caption) for text in texts]
        ids, mask = tokenize(self.tokenizer, texts, max_sequence_length)
        device = execution_device(self.text_encoder)
        # One by one: in a batch a text's last bits would depend on the others.
        embeds = [
            self.text_encoder(row[None].to(device), attention_mask=keep[None].to(device))[0]
            for row, keep in zip(ids, mask, strict=True)
        ]
        return torch.cat(embeds), mask

    def _negative(self, given: str | list[str] | None) -> str | list[str]:
        return self.defaults.negative_prompt if given is None else given

    @torch.no_grad()
    def generate_latents(
        self,
        embeddings: PromptEmbeddings,
        shape: VideoShape,
        schedule: TimestepSchedule,
        noise: NoiseSource,
        *,
        guidance_scale: float,
        sampler: str | Any = SAMPLERS[0],
        latents: Tensor | None = None,
        cache: BlockLoops | None = None,
        recorder: Recorder | None = None,
        callback: Callable[[int, int], None] | None = None,
        step_callback: StepCallback | None = None,
        on_step_end: StepEnd | None = None,
        sequential_guidance: bool = False,
        transformer: Any = None,
    ) -> Tensor:
        """Sample latents [b c t h w], float32 on the transformer's device, times VAE_SCALE.

        Args:
            embeddings: of b prompts, with negative ones unless guidance is off.
            shape: of each video.
            schedule: its default form means the sampler's own spacing of that many steps.
            noise: draws of b videos; for one video also without the b axis.
            guidance_scale: 1 or less evaluates the prompt alone.
            sampler: a name from SAMPLERS, or one of their diffusers schedulers.
            latents: unit normal start in place of the noise's own.
            cache: supplies the block loop of each step, counted in evaluations of the network.
            recorder: likewise, and is given the denoised predictions; excludes `cache`.
            callback: called after each step with the steps done so far and their number.
            step_callback: called after each step with its index, timestep and latents; may return
                others.
            on_step_end: likewise, with the denoiser before them.
            sequential_guidance: the two guidance branches one after the other: half the memory.
            transformer: called in place of the pipeline's own (the same one spread over ranks).

        Raises:
            ScheduleError: the sampler cannot follow the schedule.
            OptionError: noise or latents do not fit, a prompt is missing.
            OspOptError: the result is not finite.
        """
        model = self.transformer if transformer is None else transformer
        own = isinstance(sampler, str)
        scheduler = make_scheduler(sampler) if own else adopt_scheduler(sampler)
        set_schedule(scheduler, schedule)
        device = execution_device(model)
        size = (len(embeddings), model.config.in_channels, *shape.latent())
        guided = guidance_scale > 1.0
        if guided and embeddings.negative is None:
            raise OptionError(f"guidance_scale {guidance_scale} needs a negative prompt")
        conditions = Conditions.encode(
            model,
            embeddings.embeds.to(device),
            embeddings.mask,
            _moved(embeddings.negative, device) if guided else None,
            sequential_guidance,
        )
        ancestral = is_stock(scheduler, SAMPLERS[0])
        timesteps = schedule.timesteps if ancestral else tuple(scheduler.timesteps.tolist())
        denoiser = GuidedDenoiser(model, conditions, guidance_scale, cache, recorder, timesteps)
        total = len(timesteps)

        def report(step: int, timestep: float, x: Tensor) -> Tensor | None:
            other = None if step_callback is None else step_callback(step, timestep, x)
            if callback is not None:
                callback(step + 1, total)
            if on_step_end is not None:
                other = on_step_end(denoiser, step, timestep, x if other is None else other)
            return other

        start = float(schedule.sigmas[0]) if ancestral else float(scheduler.init_noise_sigma)
        if latents is None:
            latents = noise.initial(size, first_sigma(scheduler))
        elif latents.shape != size:
            raise ShapeError(f"latents are {tuple(latents.shape)}; {shape} needs {size}")
        x = latents.to(device=device, dtype=torch.float32) * start
        try:
            if ancestral:
                x = sample_euler_ancestral(denoiser, x, schedule, noise, report)
            else:
                x = sample_with_scheduler(
                    scheduler, denoiser.predict_noise, x, noise, report, schedule.corrections
                )
        except _Interrupted as interrupted:
            x = interrupted.latents
        # The only wait for the device ("meta" has no values to look at).
        if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
            raise OspOptError(
                f"sampling in {model.dtype} gave NaN or infinite latents; "
                "try --dtype float32, or check the checkpoint and the given latents"
            )
        return x

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, map_tiles: MapTiles = run_tiles) -> Tensor:
        """Videos uint8 [b t h w c] on the CPU from latents as `generate_latents` makes them."""
        return torch.stack([*self._decoded(latents, to_uint8, map_tiles)])

    def _decoded(
        self,
        latents: Tensor,
        finish: Callable[[Tensor], Tensor],
        map_tiles: MapTiles = run_tiles,
    ) -> Iterator[Tensor]:
        """Videos [t h w c]; `finish` makes them of pieces of their frames, float32 in [0, 1].

        One piece after the other and in place: at 93x720p a float32 video is 1 GB.
        """
        if self.vae is None:
            raise OptionError("this pipeline has no autoencoder; use output_type='latent'")
        latents = latents.to(device=execution_device(self.vae), dtype=self.vae.dtype) / VAE_SCALE
        for one in latents:
            pieces = []
            for piece in self.vae.decode_pieces(one[None], map_tiles):
                frames = rearrange(piece[0].float(), "c t h w -> t h w c")
                pieces.append(finish(frames.div_(2).add_(0.5).clamp_(0, 1)))
            yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)

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
        sequential_guidance: bool = False,
    ) -> OpenSoraPlanOutput | tuple[Any]:
        """Make videos from text.

        With its defaults it makes the video that `osp-opt sample` makes of the prompt and seed.

        Args:
            prompt: one or several; not encoded when `prompt_embeds` is given.
            negative_prompt: what to steer away from, for all prompts or one for each; None is the
                model's own.
            num_inference_steps: used when neither `timesteps` nor `schedule` is given.
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
            sequential_guidance: the two guidance branches in turn: half the memory.

        Raises:
            InputError: one of its kinds, for whatever does not fit.
        """
        here = execution_device(self.transformer)
        if not mask_feature or (device is not None and torch.device(device).type != here.type):
            raise OptionError(
                f"mask_feature={mask_feature}, device={device}: padding is always masked and the "
                f"components are on {here}; use pipe.to(device)"
            )
        if output_type not in OUTPUT_TYPES:
            raise OptionError(f"output_type is {output_type!r}; use one of {OUTPUT_TYPES}")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise OptionError(
                f"callback_on_step_end_tensor_inputs names {min(unknown)!r}; there are "
                f"{', '.join(self._callback_tensor_inputs)}"
            )
        if latents is not None and not bool(torch.isfinite(latents).all()):
            raise OptionError("the given latents hold NaN or infinite values")
        defaults = self.defaults
        shape = VideoShape(
            defaults.num_frames if num_frames is None else num_frames,
            defaults.height if height is None else height,
            defaults.width if width is None else width,
        )
        plan = _schedule(schedule, timesteps, num_inference_steps)
        self._guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        calls = self._calls(plan)
        self._num_timesteps, self._current_timestep = len(calls), calls[0]
        self._interrupt = False
        loops = self._block_loops(cache)

        # The prompts, as embeddings, each as often as videos are asked for
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if prompt_embeds is None:
            if not prompts:
                raise OptionError("give a prompt, or prompt_embeds with prompt_attention_mask")
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
            embeddings = PromptEmbeddings(
                _flat(prompt_embeds, 3),
                _flat(prompt_attention_mask, 2),
                _flat(negative_prompt_embeds, 3),
                _flat(negative_prompt_attention_mask, 2),
            )
            prompts = prompts or [""] * len(embeddings)
        each = num_images_per_prompt if num_videos_per_prompt is None else num_videos_per_prompt
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
                    tensors = _tensors(x, embeddings)
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, step, timestep, given) or {})
                    x = tensors.pop("latents")
                    embeddings = self._changed(denoiser, embeddings, tensors, sequential_guidance)
                if self._interrupt:
                    raise _Interrupted(x)
                self._current_timestep = (*calls, None)[step + 1]
                return x

            result = self.generate_latents(
                embeddings,
                shape,
                plan,
                source,
                guidance_scale=self._guidance_scale,
                sampler=self.scheduler,
                latents=latents,
                cache=loops,
                step_callback=callback,
                on_step_end=on_step_end,
                sequential_guidance=sequential_guidance,
            )
        self._current_timestep = None
        videos: Any = result
        if output_type != "latent":
            videos = in_form(self._decoded(result, finish(output_type)), output_type)
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return OpenSoraPlanOutput(frames=videos) if return_dict else (videos,)

    def _calls(self, schedule: TimestepSchedule) -> list[float]:
        """Timesteps of the sampler's steps: of second order, two for each but the last."""
        scheduler = adopt_scheduler(self.scheduler)
        set_schedule(scheduler, schedule)
        return [float(timestep) for timestep in scheduler.timesteps]

    def _block_loops(self, cache: BlockLoops | CachePolicy | str | Path | None) -> Any:
        """What supplies the block loops, ready for a new video."""
        if isinstance(cache, (str, Path)):
            cache = CachePolicy.from_file(cache)
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
    ) -> int:
        """Bytes of stored changes that a guided call with this cache will hold at most."""
        policy = cache if isinstance(cache, CachePolicy) else CachePolicy.from_file(cache)
        known, config = self.defaults, self.transformer.config
        t, h, w = VideoShape(
            num_frames or known.num_frames, height or known.height, width or known.width
        ).latent()
        tokens = t * (h // config.patch_size) * (w // config.patch_size)
        numbers = tokens * config.num_attention_heads * config.attention_head_dim
        branches = 2 if known.guidance_scale > 1.0 else 1
        held = num_videos * branches * policy.max_deltas()
        return held * numbers * self.transformer.dtype.itemsize

    def _changed(
        self,
        denoiser: GuidedDenoiser,
        embeddings: PromptEmbeddings,
        tensors: Mapping[str, Any],
        sequential: bool,
    ) -> PromptEmbeddings:
        """The embeddings to go on with; `denoiser` is told of them and of the guidance."""
        denoiser.guidance_scale = self._guidance_scale
        changed = PromptEmbeddings(
            tensors["prompt_embeds"],
            tensors["prompt_attention_mask"],
            tensors["negative_prompt_embeds"],
            tensors["negative_prompt_attention_mask"],
        )
        before = _tensors(None, embeddings)
        if any(tensors[name] is not before[name] for name in tensors):
            device = execution_device(self.transformer)
            denoiser.conditions = Conditions.encode(
                self.transformer,
                changed.embeds.to(device),
                changed.mask,
                _moved(changed.negative, device) if denoiser.conditions.guided else None,
                sequential,
            )
        return changed


def _schedule(
    given: TimestepSchedule | str | Path | None, timesteps: Sequence[float] | None, steps: int
) -> TimestepSchedule:
    if timesteps is not None:
        if given is not None:
            raise OptionError("timesteps and schedule exclude each other; give one")
        return TimestepSchedule(tuple(float(t) for t in timesteps))
    if given is None:
        return TimestepSchedule.uniform(steps)
    return given if isinstance(given, TimestepSchedule) else TimestepSchedule.from_file(given)


def _seeds(first: int, prompts: Sequence[str]) -> list[int]:
    """Seeds that count up over the videos of one prompt, wherever they stand."""
    seeds: list[int] = []
    made: dict[str, int] = {}
    for key in map(noise_key, prompts):
        seeds.append(first + made.get(key, 0))
        made[key] = made.get(key, 0) + 1
    return seeds


def _tensors(latents: Tensor | None, embeddings: PromptEmbeddings) -> dict[str, Any]:
    """By the names that callbacks know them by."""
    return {
        "latents": latents,
        "prompt_embeds": embeddings.embeds,
        "prompt_attention_mask": embeddings.mask,
        "negative_prompt_embeds": embeddings.negative_embeds,
        "negative_prompt_attention_mask": embeddings.negative_mask,
    }


def _flat(x: Tensor | None, ndim: int) -> Any:
    """Drop the axis of size 1 that the original's embeddings [b 1 l c] and masks [b 1 l] have."""
    return x if x is None or x.ndim == ndim else x.flatten(0, 1)


def _moved(pair: Any, device: torch.device) -> Any:
    return None if pair is None else (pair[0].to(device), pair[1])
