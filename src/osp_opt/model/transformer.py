"""The diffusion transformer of Open-Sora-Plan v1.2.

The block loop is an argument: ``transformer(..., blocks=run_blocks)``. A cache or a recorder is
another function over the same list of layers, so nothing here knows about either.

Shape letters: b batch, c latent channels, t h w latent frames and size, n tokens in (t h w)
order, l caption tokens, d model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
)
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - diffusers looks for it here
from einops import rearrange
from torch import Tensor, nn

from osp_opt.base.errors import CheckpointError, DeviceError, OptionError, ShapeError
from osp_opt.base.shape import latent_size
from osp_opt.model.attention import (
    CrossAttention,
    Rotary,
    RotaryTables,
    SelfAttention,
    SequenceParallel,
)
from osp_opt.model.block import (
    BlockLoop,
    Layer,
    OpenSoraBlock,
    TextContext,
    modulated_norm,
    run_blocks,
)
from osp_opt.model.checkpoint import ReleasedModel
from osp_opt.model.embeddings import (
    CaptionProjection,
    PatchEmbedding,
    TimestepContext,
    TimestepModulation,
    absolute_positions,
    interpolation_scales,
)

__all__ = [
    "BlockLoop",
    "Layer",
    "OpenSoraBlock",
    "OpenSoraT2V",
    "TextContext",
    "TimestepContext",
    "run_blocks",
]

# Config keys of the released family that would change the network, and the values built here.
SUPPORTED: dict[str, tuple[object, ...]] = {
    "norm_type": ("ada_norm_single",),
    "attention_type": ("default",),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "use_linear_projection": (False,),
    "use_additional_conditions": (False, None),
    "num_vector_embeds": (None,),
    "downsampler": (None,),
    "patch_size_t": (1,),
}


class OpenSoraT2V(ReleasedModel, ConfigMixin, CacheMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Text-to-video transformer with the released configuration keys and state dict.

    The constructor takes the keys of a released ``config.json``; keys that select a kernel
    (``attention_mode``) or another network's parts are accepted for the file's sake. Raises
    CheckpointError when a key asks for a network that was never released and is not built here.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("OpenSoraBlock",)  # type: ignore[assignment]
    _repeated_blocks = ("OpenSoraBlock",)  # type: ignore[assignment]
    _skip_layerwise_casting_patterns = ("pos_embed", "norm", "adaln_single")  # type: ignore[assignment]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = None,
        attention_bias: bool = True,
        sample_size: int | tuple[int, int] = (60, 80),
        sample_size_t: int = 8,
        patch_size: int = 2,
        patch_size_t: int = 1,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
        caption_channels: int = 4096,
        interpolation_scale_h: float | None = None,
        interpolation_scale_w: float | None = None,
        interpolation_scale_t: float | None = None,
        use_additional_conditions: bool | None = False,
        attention_mode: str = "xformers",
        downsampler: str | None = None,
        num_vector_embeds: int | None = None,
        use_rope: bool = True,
        use_stable_fp32: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        width = num_attention_heads * attention_head_dim
        _check_config(self.config, width)
        size = latent_size(self.config)
        assert size is not None, "sample_size has a default"
        self._sample_size = size
        # cross_attention_dim describes the projected caption, which has the model's width.
        self.interpolation_scale = interpolation_scales(
            (interpolation_scale_t, interpolation_scale_h, interpolation_scale_w),
            sample_size_t,
            self._sample_size,
        )
        self.out_channels = in_channels if out_channels is None else out_channels
        self.pos_embed = PatchEmbedding(in_channels, width, patch_size)
        self.adaln_single = TimestepModulation(width)
        self.caption_projection = CaptionProjection(caption_channels, width)
        blocks = [
            OpenSoraBlock(
                width,
                num_attention_heads,
                attention_head_dim,
                cross_attention_dim or width,
                activation_fn=activation_fn,
                attention_bias=attention_bias,
                dropout=dropout,
                norm_eps=norm_eps,
                norm_elementwise_affine=norm_elementwise_affine,
            )
            for _ in range(num_layers)
        ]
        # Outside caches (cache-dit) put one module of their own in place of the block list while
        # the model runs, and pass it the arguments of the first block: hence arguments that are
        # the same for every block.
        self.transformer_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch_size_t * patch_size**2 * self.out_channels)
        self.rotary_tables = RotaryTables(attention_head_dim, self.interpolation_scale)
        # Here and not at import, which would load all of diffusers' model files.
        TransformerBlockRegistry.register(
            OpenSoraBlock, TransformerBlockMetadata(return_hidden_states_index=0)
        )

    def set_attention_backend(self, backend: str) -> None:
        """Choose one of diffusers' attention backends for this model only.

        Raises OptionError when the name is unknown, DeviceError when its package is missing.
        """
        known = [name.value for name in AttentionBackendName]
        if backend not in known:
            raise OptionError(f"attention backend {backend!r} is unknown; use one of {known}")
        try:
            _check_attention_backend_requirements(AttentionBackendName(backend))
        except (RuntimeError, ImportError) as error:
            raise DeviceError(f"attention backend {backend!r} cannot be used: {error}") from error
        for module in self.modules():
            if isinstance(module, SelfAttention | CrossAttention):
                module.set_attention_backend(backend)

    def reset_attention_backend(self) -> None:
        """Return to PyTorch's own scaled dot product attention."""
        self.set_attention_backend(AttentionBackendName.NATIVE.value)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the block once for all blocks; arguments as of ``torch.compile``.

        Inside the hooks that diffusers' caches put around a block, whose decisions are Python.
        """
        compiled = torch.compile(OpenSoraBlock.run, *args, **kwargs)
        for block in self.modules():
            if isinstance(block, OpenSoraBlock):
                block.run = MethodType(compiled, block)  # type: ignore[method-assign]

    def fuse_qkv_projections(self) -> None:
        """Make queries, keys and values of self-attention one matrix product each.

        The state dict stays what it is. Call it when the weights are loaded, and again should they
        be replaced (moving and casting the model is taken care of).
        """
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.fuse_projections()

    def unfuse_qkv_projections(self) -> None:
        """Return to three matrix products."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.unfuse_projections()

    def encode_timesteps(self, timesteps: Sequence[float]) -> tuple[TimestepContext, ...]:
        """Contexts of a schedule, to be passed as ``timestep``: computed once for all of it."""
        return TimestepContext.of_schedule(timesteps)

    def encode_text(self, embeds: Tensor, mask: Tensor | None = None) -> TextContext:
        """The context of prompts, to be passed as ``text``: computed once for every step.

        ``embeds`` is ``[b l c]`` or ``[b 1 l c]``, ``mask`` (nonzero where a token counts)
        ``[b l]`` or ``[b 1 l]``. Padding behind the longest prompt is dropped: its attention
        weight is exactly zero.
        """
        embeds = embeds.flatten(0, 1) if embeds.ndim == 4 else embeds
        keep = None
        if mask is not None:
            keep = (mask.flatten(0, 1) if mask.ndim == 3 else mask) != 0
            if keep.shape != embeds.shape[:2]:
                raise ShapeError(
                    f"text mask is {tuple(mask.shape)} but embeddings are {tuple(embeds.shape)}; "
                    "both need the same batch and token counts"
                )
            keep = _attendable(keep)
            longest = int(keep.any(0).nonzero().max()) + 1
            embeds, keep = embeds[:, :longest], keep[:, :longest]
        mask = _key_mask(keep)
        return TextContext(embeds, None if mask is None else mask.to(embeds.device))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | TimestepContext,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        blocks: BlockLoop = run_blocks,
        text: TextContext | None = None,
        sequence: SequenceParallel | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the noise in ``hidden_states [b c t h w]``.

        ``timestep`` is a scalar or ``[b]``, any float in [0, 999], or one of
        :meth:`encode_timesteps`. The prompt is ``text`` from :meth:`encode_text`, or embeddings and
        mask as it takes them. ``attention_mask [b t h w]``
        marks latent positions that count (all, when None or all ones). Returns an object with
        ``.sample [b c_out t h w]``, or a tuple when ``return_dict`` is false. Raises ShapeError.
        """
        if text is None:
            if encoder_hidden_states is None:
                raise ShapeError("the transformer needs encoder_hidden_states or text; got neither")
            text = self.encode_text(encoder_hidden_states, encoder_attention_mask)
        grid = self._token_grid(hidden_states)
        x = self.pos_embed(hidden_states)
        rotary: Rotary | None = None
        if self.config["use_rope"]:
            rotary = self.rotary_tables.get(grid, x.dtype, x.device)
        else:
            x = self._add_positions(x, grid)
        if isinstance(timestep, TimestepContext):
            modulation, embedded = timestep.modulate(self.adaln_single, x.dtype, x.device)
        else:
            # A timestep that all share stays one row: a matrix product of other height may differ
            # in its last bit, and so would a video by the batch, or ranks, that it is made with.
            timestep = torch.as_tensor(timestep, device=x.device).reshape(-1)
            modulation, embedded = self.adaln_single(timestep, x.dtype)
        text.project(self.caption_projection, x.dtype)
        mask = self._latent_mask(attention_mask)

        layers: list[Layer] = [
            partial(
                block,
                modulation=modulation,
                text=text,
                rotary=rotary,
                mask=mask,
                sequence=sequence,
            )
            for block in self.transformer_blocks
        ]
        if sequence is not None:
            x = sequence.split_tokens(x)
        x = blocks(layers, x)
        shift, scale = (self.scale_shift_table + embedded[:, None])[:, :, None].unbind(1)
        x = self.proj_out(modulated_norm(self.norm_out, x, shift, scale))
        if sequence is not None:
            x = sequence.gather_tokens(x)
        t, h, w = grid
        p = self.config["patch_size"]
        sample = rearrange(x, "b (t h w) (p q c) -> b c t (h p) (w q)", t=t, h=h, w=w, p=p, q=p)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        patch, channels = self.config["patch_size"], self.config["in_channels"]
        _, c, t, h, w = latents.shape if latents.ndim == 5 else (0,) * 5
        if c != channels or h % patch or w % patch:
            raise ShapeError(
                f"latents are {tuple(latents.shape)}; the transformer takes [b {channels} t h w] "
                f"with h and w multiples of {patch}"
            )
        return t, h // patch, w // patch

    def _add_positions(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        patch = self.config["patch_size"]
        height, width = self._sample_size
        base = (self.config["sample_size_t"], height // patch, width // patch)
        table = absolute_positions(grid, base, self.interpolation_scale, x.shape[-1])
        return (x + rearrange(table, "t n d -> (t n) d").to(x.device)).to(x.dtype)

    def _latent_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Boolean ``[b 1 1 n]`` of the patches in which any latent position counts, or None."""
        if attention_mask is None:
            return None
        p = self.config["patch_size"]
        patches = F.max_pool2d((attention_mask != 0).float(), kernel_size=p, stride=p)
        return _key_mask(_attendable(rearrange(patches, "b t h w -> b (t h w)") != 0))


def _attendable(keep: Tensor) -> Tensor:
    # Masking is a bias of -10000 on the dropped keys in the reference. Where a row drops all of
    # them the bias cancels in the softmax, which is attention to everything.
    return keep | ~keep.any(-1, keepdim=True)


def _key_mask(keep: Tensor | None) -> Tensor | None:
    """``[b l]`` to ``[b 1 1 l]``; None when nothing is masked (no mask is the faster kernel)."""
    return None if keep is None or bool(keep.all()) else rearrange(keep, "b l -> b 1 1 l")


def _check_config(config: Any, width: int) -> None:
    for key, allowed in SUPPORTED.items():
        if config[key] not in allowed:
            raise CheckpointError(
                f"transformer config: {key}={config[key]!r} is not supported; "
                f"osp-opt builds the released Open-Sora-Plan v1.2 network, {key}={allowed[0]!r}"
            )
    if config["use_rope"] and config["attention_head_dim"] % 6:
        raise CheckpointError(
            f"transformer config: attention_head_dim={config['attention_head_dim']} cannot carry "
            "3D rotary embedding; it must be a multiple of 6"
        )
    if config["cross_attention_dim"] not in (None, width):
        raise CheckpointError(
            f"transformer config: cross_attention_dim={config['cross_attention_dim']} but the "
            f"caption is projected to {width} (num_attention_heads x attention_head_dim)"
        )
