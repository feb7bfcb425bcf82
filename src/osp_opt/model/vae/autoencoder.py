"""The 4x8x8 causal video VAE of Open-Sora-Plan v1.2 (``CausalVAEModel``).

Shape legend: b batch, c channels, t frames, h height, w width. A video of ``4k+1`` frames has
``k+1`` latent frames; height and width shrink by 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - diffusers looks for it here
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from osp_opt.model.checkpoint import ReleasedModel
from osp_opt.model.vae import blocks
from osp_opt.model.vae.tiling import MapTiles, Tiling, run_tiles, tiled

# Latents are multiplied by this before diffusion (Rombach et al. 2022, arXiv 2112.10752, app. G).
VAE_SCALE = 0.18215


class _Middle(nn.Module):
    def __init__(self, channels: int, resnet: str, attention: str, groups: int, side: str) -> None:
        super().__init__()
        kind = blocks.pick(blocks.RESNETS, resnet, f"{side}_mid_resnet")
        self.block_1 = kind(channels, channels, groups)
        self.attn_1 = blocks.pick(blocks.ATTENTIONS, attention, f"{side}_attention")(
            channels, groups
        )
        self.block_2 = kind(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    """Resnet blocks (with attention where configured), then optional resampling."""

    def __init__(
        self,
        channels: Sequence[int],
        resnet: type[Any],
        attention: type[Any] | None,
        groups: int,
        resample: dict[str, type[Any] | None],
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(resnet(a, b, groups) for a, b in pairwise(channels))
        self.attn = nn.ModuleList(
            attention(b, groups) for b in channels[1:] if attention is not None
        )
        self.resample = [name for name, kind in resample.items() if kind is not None]
        for name, kind in resample.items():
            if kind is not None:
                self.add_module(name, kind(channels[-1], channels[-1]))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in self.resample:
            x = getattr(self, name)(x)
        return x


def _kind(kinds: Mapping[str, type[Any]], name: str, option: str) -> type[Any] | None:
    return blocks.pick(kinds, name, option) if name else None


class _Encoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, groups = config["hidden_size"], config["norm_num_groups"]
        widths = [hidden * m for m in config["hidden_size_mult"]]
        attention = blocks.pick(blocks.ATTENTIONS, config["encoder_attention"], "encoder_attention")
        self.conv_in = blocks.make_conv(config["encoder_conv_in"], 3, hidden, 3, "encoder_conv_in")
        levels, resolution, before = [], config["resolution"], hidden
        for i, width in enumerate(widths):
            space = config["encoder_spatial_downsample"][i]
            levels.append(
                _Level(
                    [before] + [width] * config["num_res_blocks"],
                    blocks.pick(
                        blocks.RESNETS, config["encoder_resnet_blocks"][i], "encoder_resnet_blocks"
                    ),
                    attention if resolution in config["attn_resolutions"] else None,
                    groups,
                    {
                        "downsample": _kind(
                            blocks.DOWNSAMPLES, space, "encoder_spatial_downsample"
                        ),
                        "time_downsample": _kind(
                            blocks.DOWNSAMPLES,
                            config["encoder_temporal_downsample"][i],
                            "encoder_temporal_downsample",
                        ),
                    },
                )
            )
            before = width
            resolution = resolution // 2 if space else resolution
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(
            before, config["encoder_mid_resnet"], config["encoder_attention"], groups, "encoder"
        )
        self.norm_out = nn.GroupNorm(groups, before, eps=blocks.NORM_EPS)
        moments = config["z_channels"] * (2 if config["double_z"] else 1)
        self.conv_out = blocks.make_conv(
            config["encoder_conv_out"], before, moments, 3, "encoder_conv_out"
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, groups = config["hidden_size"], config["norm_num_groups"]
        widths = [hidden * m for m in config["hidden_size_mult"]]
        attention = blocks.pick(blocks.ATTENTIONS, config["decoder_attention"], "decoder_attention")
        before = widths[-1]
        self.conv_in = blocks.make_conv(
            config["decoder_conv_in"], config["z_channels"], before, 3, "decoder_conv_in"
        )
        self.mid = _Middle(
            before, config["decoder_mid_resnet"], config["decoder_attention"], groups, "decoder"
        )
        resolution = config["resolution"] // 2 ** (len(widths) - 1)
        levels: list[_Level] = []
        for i in reversed(range(len(widths))):
            space = config["decoder_spatial_upsample"][i]
            levels.insert(
                0,
                _Level(
                    [before] + [widths[i]] * (config["num_res_blocks"] + 1),
                    blocks.pick(
                        blocks.RESNETS, config["decoder_resnet_blocks"][i], "decoder_resnet_blocks"
                    ),
                    attention if resolution in config["attn_resolutions"] else None,
                    groups,
                    {
                        "upsample": _kind(blocks.UPSAMPLES, space, "decoder_spatial_upsample"),
                        "time_upsample": _kind(
                            blocks.UPSAMPLES,
                            config["decoder_temporal_upsample"][i],
                            "decoder_temporal_upsample",
                        ),
                    },
                ),
            )
            before = widths[i]
            resolution = resolution * 2 if space else resolution
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, before, eps=blocks.NORM_EPS)
        self.conv_out = blocks.make_conv(
            config["decoder_conv_out"], before, 3, 3, "decoder_conv_out"
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CausalVAEModel(ReleasedModel, ConfigMixin):  # type: ignore[misc]
    """Causal video autoencoder built from the block names in its config.

    Every keyword is a key of the official ``config.json``; ``norm_num_groups`` is ours (group
    count of every GroupNorm; the official code fixes 32). ``resolution`` and ``attn_resolutions``
    only decide which levels have attention.

    Raises:
        CheckpointError: the config names a block that does not exist.
    """

    # Offloaded by these parts, each of which is called as a whole.
    _group_offload_block_modules = ("encoder", "decoder", "quant_conv", "post_quant_conv")

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        hidden_size: int = 128,
        z_channels: int = 4,
        hidden_size_mult: Sequence[int] = (1, 2, 4, 4),
        attn_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        resolution: int = 256,
        double_z: bool = True,
        embed_dim: int = 4,
        num_res_blocks: int = 2,
        q_conv: str = "CausalConv3d",
        encoder_conv_in: str = "CausalConv3d",
        encoder_conv_out: str = "CausalConv3d",
        encoder_attention: str = "AttnBlock3D",
        encoder_resnet_blocks: Sequence[str] = ("ResnetBlock3D",) * 4,
        encoder_spatial_downsample: Sequence[str] = ("SpatialDownsample2x",) * 3 + ("",),
        encoder_temporal_downsample: Sequence[str] = (
            "",
            "TimeDownsample2x",
            "TimeDownsample2x",
            "",
        ),
        encoder_mid_resnet: str = "ResnetBlock3D",
        decoder_conv_in: str = "CausalConv3d",
        decoder_conv_out: str = "CausalConv3d",
        decoder_attention: str = "AttnBlock3D",
        decoder_resnet_blocks: Sequence[str] = ("ResnetBlock3D",) * 4,
        decoder_spatial_upsample: Sequence[str] = ("",) + ("SpatialUpsample2x",) * 3,
        decoder_temporal_upsample: Sequence[str] = ("", "", "TimeUpsample2x", "TimeUpsample2x"),
        decoder_mid_resnet: str = "ResnetBlock3D",
        use_quant_layer: bool = True,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        config = dict(self.config)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        if use_quant_layer:
            moments = embed_dim * (2 if double_z else 1)
            inner = z_channels * (2 if double_z else 1)
            self.quant_conv = blocks.make_conv(q_conv, inner, moments, 1, "q_conv")
            self.post_quant_conv = blocks.make_conv(q_conv, embed_dim, z_channels, 1, "q_conv")
        self.tiling: Tiling | None = None
        self.use_slicing = False

    @property
    def use_tiling(self) -> bool:
        """Whether large videos are encoded and decoded in tiles."""
        return self.tiling is not None

    @use_tiling.setter
    def use_tiling(self, on: bool) -> None:
        self.tiling = (self.tiling or Tiling()) if on else None

    def enable_slicing(self) -> None:
        """Encode and decode the videos of a batch one after the other from now on."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.use_slicing = False

    def enable_tiling(self, tiling: Tiling | None = None) -> None:
        """Encode and decode in tiles from now on; ``None`` is the official layout."""
        self.tiling = tiling or Tiling()

    def disable_tiling(self) -> None:
        """Encode and decode in one piece."""
        self.tiling = None

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, video: Tensor, map_tiles: MapTiles = run_tiles, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Posterior over (unscaled) latents, as ``.latent_dist``.

        Args:
            video: ``[b 3 t h w]`` in [-1, 1]; t = 4k+1, h and w multiples of 8.
            map_tiles: runs the tiles of a tiled encode (all here, or spread over ranks).
            return_dict: whether to return an object or a tuple.
        """
        moments = torch.cat([self._encoded(part, map_tiles) for part in self._slices(video)])
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: Tensor, map_tiles: MapTiles = run_tiles, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Video ``[b 3 4k+1 8h 8w]``, about [-1, 1], from unscaled latents ``[b c k+1 h w]``.

        It is ``.sample`` of what is returned, or the only element of a tuple.
        """
        videos = [
            _joined([*self.decode_pieces(part, map_tiles)], dim=2) for part in self._slices(latents)
        ]
        video = _joined(videos, dim=0)
        return DecoderOutput(sample=video) if return_dict else (video,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode_pieces(self, latents: Tensor, map_tiles: MapTiles = run_tiles) -> Iterator[Tensor]:
        """What `decode` returns, in pieces of consecutive frames ``[b 3 t 8h 8w]``.

        A piece is what one row of tiles in time makes, the whole without tiling. Long videos are
        gigabytes in float32: turn each piece into what is to be kept before taking the next.
        """
        if self.tiling is not None and self.tiling.splits_latents(latents.shape):
            yield from tiled(latents, self._pixels, self.tiling.decode_grid, map_tiles)
        else:
            yield self._pixels(latents)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode a video and decode the posterior's mode, or a sample of it."""
        (posterior,) = self.encode(sample, return_dict=False)
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(latents, return_dict=return_dict)

    def _slices(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, 1 if self.use_slicing else len(x))

    def _encoded(self, video: Tensor, map_tiles: MapTiles) -> Tensor:
        if self.tiling is None or not self.tiling.splits_video(video.shape):
            return self._moments(video)
        return torch.cat([*tiled(video, self._moments, self.tiling.encode_grid, map_tiles)], dim=2)

    def _moments(self, video: Tensor) -> Tensor:
        moments = self.encoder(video)
        return self.quant_conv(moments) if self.config["use_quant_layer"] else moments

    def _pixels(self, latents: Tensor) -> Tensor:
        z = self.post_quant_conv(latents) if self.config["use_quant_layer"] else latents
        return self.decoder(z)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
