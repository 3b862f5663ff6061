"""A closed-form start of a decoder: least squares, layer by layer, before the first gradient.

A freshly initialised decoder spends most of a small budget learning what a linear map from
latents to pixels already knows. So the residual branches start at zero, and every convolution
on the remaining path is fitted by ridge regression from its real inputs to what a linear video
code would carry there: the principal components of the pixel block under each position. One
channel holds a constant that dominates the norms on the path, which makes them nearly linear;
pairs of +x and -x make `silu` exactly so. Training goes on from there.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels, F = T*B folded frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.decoder import ResBlock, TurboVaedDecoder, UpBlock, Upsampler
from turbo_vaed.models.layers import FrameConv, SeparableConv, fold_frames, unfold_frames
from turbo_vaed.models.timeline import Whole

CONSTANT = 24.0
"""Value of the constant channel; large next to the signal's norm, so that norms vary little."""
SIGNAL = 3.0
"""Root of the summed squares of a representation's channels."""
_RIDGE = 1e-2
"""Of the mean squared input: directions that few crops cannot distinguish stay small."""


def pixel_blocks(video: Tensor, t: int, p: int, *, keeps_first: bool = False) -> Tensor:
    """The pixels under each position: (B, C, T, H, W) -> (B, C*t*p*p, T', H/p, W/p).

    A video VAE of temporal compression t gives the first frame a latent of its own: it is
    repeated to fill its block. With `keeps_first` T is simply divided by t.
    """
    if not keeps_first:
        video = torch.cat([video[:, :, :1]] * (t - 1) + [video], dim=2)
    b, c, frames, height, width = video.shape
    x = video.reshape(b, c, frames // t, t, height // p, p, width // p, p)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        b, c * t * p * p, frames // t, height // p, width // p
    )


def representation(x: Tensor, channels: int) -> Tensor:
    """Principal components of `x` (B, n, T, H, W) for a layer of `channels`, one left free.

    Scaled so that the squares over channels sum to `SIGNAL`^2 on average; as pairs of +x and
    -x where there is room.
    """
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    mean = rows.mean(0)
    covariance = torch.cov(rows.T).reshape(len(mean), len(mean))
    _, vectors = torch.linalg.eigh(covariance)
    count = min(x.shape[1], channels - 1)
    components = (x.movedim(1, -1) - mean) @ vectors.flip(1)[:, :count]
    if 2 * count + 1 <= channels:
        components = torch.cat([components, -components], dim=-1)
    norm = components.pow(2).sum(-1).mean().sqrt().clamp_min(1e-6)
    scaled: Tensor = components * (SIGNAL / norm)
    return scaled.movedim(-1, 1)


@torch.no_grad()
def fit_conv(
    conv: nn.Conv2d | nn.Conv3d, inputs: Tensor, targets: Tensor, *, rows_per_unknown: int = 16
) -> None:
    """Ridge regression of the first outputs of `conv`, in place.

    Args:
        conv: weights (out, in, *kernel) with zero padding and a bias.
        inputs: what it is called with, (N, in, *sizes).
        targets: what its first `targets.shape[1]` outputs should be, (N, outputs, *sizes').
        rows_per_unknown: how many positions to fit to, at most, per weight of one output.
    """
    assert conv.bias is not None
    dims = len(conv.kernel_size)
    assert not isinstance(conv.padding, str)
    pads = [p for size in reversed(conv.padding) for p in (size, size)]
    x = F.pad(inputs, pads)
    for d, (kernel, stride) in enumerate(zip(conv.kernel_size, conv.stride, strict=True)):
        x = x.unfold(2 + d, kernel, stride)
    x = x.movedim(1, 1 + dims)  # N, *sizes', in, *kernel
    where = torch.randperm(x.shape[: -1 - dims].numel(), generator=torch.Generator().manual_seed(0))
    unknowns = x.shape[-1 - dims :].numel()
    index = torch.unravel_index(where[: rows_per_unknown * unknowns], x.shape[: -1 - dims])
    features = x[index].reshape(len(index[0]), -1)
    wanted = targets.movedim(1, -1)[index]
    feature_mean, wanted_mean = features.mean(0), wanted.mean(0)
    features, wanted = features - feature_mean, wanted - wanted_mean
    gram = (features.T @ features).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, (features.T @ wanted).double()).float().T
    count = targets.shape[1]
    conv.weight[:count] = solution.reshape(count, *conv.weight.shape[1:])
    conv.bias[:count] = wanted_mean - solution @ feature_mean


@torch.no_grad()
def hold_constant(conv: nn.Conv2d | nn.Conv3d, rows: slice | int) -> None:
    """Make the outputs `rows` of `conv` the constant."""
    assert conv.bias is not None
    conv.weight[rows] = 0
    conv.bias[rows] = CONSTANT


@torch.no_grad()
def capture_input(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """The first argument that `module` gets while `call` runs; what comes after it is not run."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].detach())
        raise _Reached

    hook = module.register_forward_pre_hook(stop)
    try:
        call()
    except _Reached:
        return seen[0]
    finally:
        hook.remove()
    raise AssertionError("the module was not called")


class _Reached(Exception):
    """Raised at the layer whose input is captured."""


@torch.no_grad()
def start_decoder(decoder: TurboVaedDecoder, latents: Tensor, video: Tensor) -> None:
    """Fit `decoder` in place to map latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1].

    A few dozen crops are enough; the result is a function of the inputs alone.
    """
    config = decoder.config
    keeps_first = config.is_video_dc_ae

    def fit(layer: FrameConv | SeparableConv, target: Tensor) -> None:
        x = capture_input(layer, lambda: decoder(latents))
        _fit_layer(layer, x, target)

    for block in decoder.modules():
        if isinstance(block, ResBlock):
            assert isinstance(block.conv2, FrameConv | SeparableConv)
            _mixing(block.conv2).weight.zero_()
            _mixing(block.conv2).bias.zero_()
    carried = representation(latents, decoder.conv_in.conv.out_channels)
    with _fitted(decoder.conv_in):
        fit(decoder.conv_in, carried)
    t, p = _compression(decoder)
    up_blocks = _up_blocks(decoder)
    for i, up_block in enumerate(up_blocks):
        if (shortcut := _shortcut(up_block)) is not None:
            carried = representation(carried, _mixing(shortcut).out_channels)
            with _fitted(shortcut):
                fit(shortcut, carried)
        for upsampler in _upsamplers(up_block):
            factor = upsampler.time_factor
            t, p = t // factor, p // 2
            channels = upsampler.conv.conv.out_channels // (4 * factor)
            room = channels
            if i + 1 < len(up_blocks) and (after := _shortcut(up_blocks[i + 1])) is not None:
                room = min(room, _mixing(after).out_channels)
            carried = representation(pixel_blocks(video, t, p, keeps_first=keeps_first), room)
            _start_small(upsampler.conv)
            fit(upsampler.conv, _unshuffle(carried, factor, upsampler.dropped))
            hold_constant(upsampler.conv.conv, slice(4 * factor * (channels - 1), None))
    for upsample in decoder.patch_upsamplers():
        p //= 2
        channels = upsample.conv.out_channels // 4
        carried = representation(pixel_blocks(video, 1, p), channels)
        _start_small(upsample)
        fit(upsample, _unshuffle(carried, 1, 0))
        hold_constant(upsample.conv, slice(4 * (channels - 1), None))
    fit(decoder.conv_out, video)


def _fit_layer(layer: FrameConv | SeparableConv, x: Tensor, target: Tensor) -> None:
    """Fit the weights of `layer` to give `target` (B, n, T, H, W) for frames x (T*B, C, H, W)."""
    batch = target.shape[0]
    conv = _mixing(layer)
    if isinstance(conv, nn.Conv2d):
        fit_conv(conv, x, fold_frames(target))
        return
    if isinstance(layer, SeparableConv):
        assert layer.size == 1, "only the shortcuts, of size 1, are on the path"
        x = unfold_frames(x, batch)
        x = F.conv3d(x, layer.depthwise_conv.weight, layer.depthwise_conv.bias, groups=x.shape[1])
    else:
        x = unfold_frames(Whole(batch).pad(x, layer.taps // 2), batch)
    fit_conv(conv, x, target)


@contextmanager
def _fitted(layer: FrameConv | SeparableConv) -> Iterator[None]:
    """What is not fitted on the path starts small, and the last output holds the constant."""
    conv = _mixing(layer)
    _start_small(layer)
    yield
    hold_constant(conv, conv.out_channels - 1)


@torch.no_grad()
def _start_small(layer: FrameConv | SeparableConv) -> None:
    """Not at zero: a channel that nothing writes and nothing reads has no gradient, for ever."""
    _mixing(layer).weight.mul_(0.1)


def _compression(decoder: TurboVaedDecoder) -> tuple[int, int]:
    """Temporal and spatial compression of the decoder, from its upsamplers."""
    t, p = 1, decoder.config.patch_size
    for up_block in _up_blocks(decoder):
        for upsampler in _upsamplers(up_block):
            t, p = t * upsampler.time_factor, p * 2
    return t, p


def _unshuffle(x: Tensor, factor: int, dropped: int) -> Tensor:
    """What an upsampling convolution must put out for `x` (B, k, T, H, W) to come after it.

    Returns (B, k*4*factor, T/factor, H/2, W/2), the channels as published.
    """
    x = torch.cat([x[:, :, :1]] * dropped + [x], dim=2)
    b, c, frames, height, width = x.shape
    x = x.reshape(b, c, frames // factor, factor, height // 2, 2, width // 2, 2)
    return x.permute(0, 1, 5, 7, 3, 2, 4, 6).reshape(
        b, c * 4 * factor, frames // factor, height // 2, width // 2
    )


def _up_blocks(decoder: TurboVaedDecoder) -> list[UpBlock]:
    return cast("list[UpBlock]", list(decoder.up_blocks))


def _upsamplers(up_block: UpBlock) -> list[Upsampler]:
    return cast("list[Upsampler]", list(up_block.upsamplers))


def _shortcut(up_block: UpBlock) -> FrameConv | SeparableConv | None:
    return up_block.conv_in.conv_shortcut if up_block.conv_in is not None else None


def _mixing(layer: FrameConv | SeparableConv) -> Any:
    """The weights that mix channels: a `Conv3d`, or a `Conv2d` frame by frame; with a bias."""
    return layer.conv if isinstance(layer, FrameConv) else layer.pointwise_conv
