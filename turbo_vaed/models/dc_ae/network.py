"""Video DC-AE: a deep-compression autoencoder, 4x in time and 32x in height and width.

Sources: DC-AE (arXiv 2410.10733) for the shortcuts that carry what a step would lose,
EfficientViT (arXiv 2205.14756) for the linear attention, Open-Sora 2.0 (arXiv 2503.09642) for
the step to video. Modules bear the names of the published checkpoint's keys.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels, h w latent; N = T*H*W
tokens, A heads of D channels. At full width, stages finest first:

    stage                 0      1      2      3      4      5
    width               128    256    512    512   1024   1024
    frames                T      T      T      T    T/2    T/4
    height, width         1    1/2    1/4    1/8   1/16   1/32
    blocks             residual ------------   attention ----------

    encoder: video (B,3,T,H,W) -> project_in -> stages 0..5, each its blocks and then, but for
        the last, the step down -> project_out -> latents (B,128,T/4,H/32,W/32)
    decoder: latents -> project_in -> stages 5..0, each, but for the deepest, the step up and
        then its blocks -> project_out -> video

Nothing is causal: convolutions pad zeros on all sides, before the first frame and after the last
too, and attention runs over all positions of all frames. A clip of one frame is an image, whose
time is neither halved nor doubled: its one latent frame decodes to one frame. So four frames do
not survive the round trip, and the shortest video is of eight.
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.dc_ae.config import (
    FIRST_ATTENTION_STAGE,
    HEAD_CHANNELS,
    TIME_STAGES,
    DcAeConfig,
)
from turbo_vaed.models.dc_ae.layers import (
    Chain,
    Conv,
    Residual,
    RmsNorm,
    average_down,
    duplicate_up,
)

_ATTENTION_EPS = 1e-15
_EXPANSION = 4  # of the width inside a gated convolution


# --- blocks: (B, C, T, H, W) to the same ---


class TwoConvs(nn.Module):
    """Convolution, SiLU, convolution, norm: the inside of a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, has_silu=True)
        self.conv2 = Conv(channels, channels, has_bias=False, has_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class LinearAttention(nn.Module):
    """Attention over all N positions in linear time: ReLU for the softmax (EfficientViT's LiteMLA).

    Half of the heads see queries, keys and values of single positions, the other half those of
    their 5x5x5 neighbourhoods. The sums over positions are in float32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.qkv = Conv(channels, wide, 1, has_bias=False)
        neighbourhoods = nn.Sequential(
            nn.Conv3d(wide, wide, 5, padding=2, groups=wide, bias=False),
            nn.Conv3d(wide, wide, 1, groups=wide // HEAD_CHANNELS, bias=False),
        )
        self.aggreg = nn.ModuleList([neighbourhoods])
        self.proj = Conv(2 * channels, channels, 1, has_bias=False, has_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(aggregate(qkv) for aggregate in self.aggreg)], dim=1)
        # Channels are (head, query or key or value, D): each of q, k, v is (B, A, D, N).
        heads = 2 * x.shape[1] // HEAD_CHANNELS
        qkv = qkv.float().reshape(x.shape[0], heads, 3, HEAD_CHANNELS, -1)
        q, k, v = F.relu(qkv[:, :, 0]), F.relu(qkv[:, :, 1]), qkv[:, :, 2]
        weighted = (v @ k.transpose(2, 3)) @ q
        total = k.sum(dim=3, keepdim=True).transpose(2, 3) @ q  # (B, A, 1, N)
        out = (weighted / (total + _ATTENTION_EPS)).to(x.dtype)
        projected: Tensor = self.proj(out.reshape(x.shape[0], -1, *x.shape[2:]))
        return projected


class GatedConv(nn.Module):
    """Widen, a depthwise convolution, half of the channels gate the others, narrow (GLUMBConv)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * _EXPANSION * channels
        self.inverted_conv = Conv(channels, wide, 1, has_silu=True)
        self.depth_conv = Conv(wide, wide, groups=wide)
        self.point_conv = Conv(wide // 2, channels, 1, has_bias=False, has_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.depth_conv(self.inverted_conv(x)).chunk(2, dim=1)
        out: Tensor = self.point_conv(x * F.silu(gate))
        return out


class AttentionBlock(nn.Module):
    """Attention for what is far, a gated convolution for what is near; both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(channels))
        self.local_module = Residual(GatedConv(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local_module(self.context_module(x))
        return out


def _blocks(stage: int, channels: int, depth: int) -> list[nn.Module]:
    if stage < FIRST_ATTENTION_STAGE:
        return [Residual(TwoConvs(channels)) for _ in range(depth)]
    return [AttentionBlock(channels) for _ in range(depth)]


# --- steps between stages ---


def _time_factor(x: Tensor, scales_time: bool) -> int:
    return 2 if scales_time and x.shape[2] > 1 else 1


def _step_down(inputs: int, outputs: int, scales_time: bool) -> nn.Module:
    """Half the height and width, and half the frames where there are several."""

    def shortcut(x: Tensor) -> Tensor:
        return average_down(x, outputs, time=_time_factor(x, scales_time), space=2)

    # Of one frame a stride of 2 leaves one.
    return Residual(Conv(inputs, outputs, stride=(2 if scales_time else 1, 2, 2)), shortcut)


class NearestConv(nn.Module):
    """Every position repeated, twice in space and where `scales_time` in time; a convolution."""

    def __init__(self, inputs: int, outputs: int, scales_time: bool) -> None:
        super().__init__()
        self.scales_time = scales_time
        self.conv = Conv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        factors = (float(_time_factor(x, self.scales_time)), 2.0, 2.0)
        out: Tensor = self.conv(F.interpolate(x, scale_factor=factors, mode="nearest"))
        return out


def _step_up(inputs: int, outputs: int, scales_time: bool) -> nn.Module:
    """Twice the height and width, and twice the frames where there are several."""

    def shortcut(x: Tensor) -> Tensor:
        return duplicate_up(x, outputs, time=_time_factor(x, scales_time), space=2)

    return Residual(NearestConv(inputs, outputs, scales_time), shortcut)


# --- the two sides ---


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) -> latents (B, latent_channels, t, h, w)."""

    def __init__(self, config: DcAeConfig) -> None:
        super().__init__()
        widths, latent = config.width_list, config.latent_channels
        self.project_in = Conv(3, widths[0])
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, config.encoder_depth_list, strict=True)):
            down = [_step_down(width, deeper, i in TIME_STAGES) for deeper in widths[i + 1 : i + 2]]
            self.stages.append(Chain([*_blocks(i, width, depth), *down]))
        self.project_out = Residual(
            Chain([Conv(widths[-1], latent)]),
            partial(average_down, outputs=latent, time=1, space=1),
        )

    def forward(self, video: Tensor) -> Tensor:
        x = self.project_in(video)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.project_out(x)
        return out


class Decoder(nn.Module):
    """Latents (B, latent_channels, t, h, w) -> video (B, 3, T, H, W), raw: not clamped."""

    def __init__(self, config: DcAeConfig) -> None:
        super().__init__()
        widths, latent = config.width_list, config.latent_channels
        self.project_in = Residual(
            Conv(latent, widths[-1]),
            partial(duplicate_up, outputs=widths[-1], time=1, space=1),
        )
        self.stages = nn.ModuleList()  # finest first, as published; run from the last
        for i, (width, depth) in enumerate(zip(widths, config.decoder_depth_list, strict=True)):
            up = [_step_up(deeper, width, i in TIME_STAGES) for deeper in widths[i + 1 : i + 2]]
            self.stages.append(Chain([*up, *_blocks(i, width, depth)]))
        self.project_out = Chain([RmsNorm(widths[0]), nn.ReLU(), Conv(widths[0], 3)])

    def forward(self, latents: Tensor) -> Tensor:
        x = self.project_in(latents)
        for stage in reversed(self.stages):
            x = stage(x)
        out: Tensor = self.project_out(x)
        return out


class DcAe(nn.Module):
    """Encoder and decoder. There is no posterior: a video has one code.

    The code is raw, in the scale of the network; `config.scaling_factor` is the diffusion
    model's business.
    """

    def __init__(self, config: DcAeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] -> latents (B, C, t, h, w).

        Raises:
            ValueError: another rank or channels, frames that are neither one nor a multiple of
                the temporal compression, a size that is no multiple of the spatial one.
        """
        time, space = self.config.temporal_compression, self.config.spatial_compression
        shape = tuple(video.shape)
        if (
            len(shape) != 5
            or shape[1] != 3
            or min(shape) < 1
            or (shape[2] > 1 and shape[2] % time)
            or any(size % space for size in shape[3:])
        ):
            raise ValueError(
                f"video: found shape {shape}, allowed: (B, 3, T, H, W), T one or a multiple "
                f"of {time}, H and W multiples of {space}"
            )
        latents: Tensor = self.encoder(video)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, t, h, w) -> video (B, 3, T, H, W), about [-1, 1]; one frame for one.

        Raises:
            ValueError: another rank or other channels.
        """
        shape, channels = tuple(latents.shape), self.config.latent_channels
        if len(shape) != 5 or shape[1] != channels or min(shape) < 1:
            raise ValueError(f"latents: found shape {shape}, allowed: (B, {channels}, t, h, w)")
        video: Tensor = self.decoder(latents)
        return video

    @classmethod
    def from_weights(cls, config: DcAeConfig, weights: Mapping[str, Tensor]) -> "DcAe":
        """The network with published weights, in their precision; the tensors are taken over.

        Raises:
            ValueError: see `check_weights`.
        """
        check_weights(config, {name: tuple(tensor.shape) for name, tensor in weights.items()})
        with torch.device("meta"):  # random weights would be made only to be thrown away
            network = cls(config)
        network.load_state_dict(dict(weights), assign=True)
        return network


def check_weights(config: DcAeConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights, given by key and shape, that are not exactly those of `config`.

    Raises:
        ValueError: it lists the missing keys, the unexpected ones, and those of another shape.
    """
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in DcAe(config).state_dict().items()}
    common = sorted(wanted.keys() & shapes.keys())
    other = [f"{k} {shapes[k]} for {wanted[k]}" for k in common if shapes[k] != wanted[k]]
    problems = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - wanted.keys()),
        "of another shape": other,
    }
    if parts := [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]:
        raise ValueError("these weights do not fit the config; " + "; ".join(parts))
