"""The layers of the decoder: convolutions over time and space in 2-D operations, and norms.

Shapes: B batch, C channels, T frames, H W; frames are folded into the batch with time
outermost, (B, C, T, H, W) -> (T*B, C, H, W), so one step in time is B entries, and a shift
in time is a slice of the leading dimension, for every batch size.

Mobile runtimes have no 3-D convolution and CPUs are slow at it, so there is none here. A dense
one of three taps in time is one over the channels of three frames, or a sum of three; or, for
inference, two frames at once by four instead of six: Winograd's minimal filtering F(2, 3) along
time (Lavin and Gray, arXiv 1509.09308). A depthwise one is a sum of depthwise 2-D ones, one per
tap in time. Space is padded by zeros; what comes before the first and after the last frame is
`timeline.py`'s business. Means over channels are 1x1 convolutions with constant weights, which
keeps a lowered graph in one piece.

The weights are those of the published 3-D layers, under the published names. Their 2-D kernels
are made in every forward pass, or once, by `fold`, for inference.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.timeline import Timeline

_RMS_EPS = 1e-8  # fixed in the published model; `resnet_norm_eps` is the layer norms'
Form = Literal["joined", "taps", "winograd"]
"""Of a dense convolution with three taps in time: one 2-D convolution of the channels of three
frames, which trains fastest; a sum of three, which needs the least memory; or Winograd's."""
MIN_WINOGRAD_CHANNELS = 48
"""In narrower layers the additions cost more than a third of the products saves."""


def fold_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (T*B, C, H, W)."""
    return x.permute(2, 0, 1, 3, 4).flatten(0, 1)


def unfold_frames(x: Tensor, batch: int) -> Tensor:
    """(T*B, C, H, W) -> (B, C, T, H, W)."""
    return x.reshape(x.shape[0] // batch, batch, *x.shape[1:]).permute(1, 2, 0, 3, 4)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x); for inference in place, of what a norm has just put out.

    In float16 as two operations: lowered, the one goes by way of float32.
    """
    if x.dtype == torch.float16:
        return x * torch.sigmoid(x)
    return F.silu(x, inplace=not torch.is_grad_enabled())


def relu(x: Tensor) -> Tensor:
    """max(x, 0), in place as `silu`."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


class FrameConv(nn.Module):
    """Dense convolution over time and space, kernel (taps, size, size), taps 1 or 3.

    With `upscale` u and `time_factor` r its channels become u*H rows, u*W columns and r*T frames.
    """

    folded: nn.ParameterList | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        taps: int = 3,
        size: int = 3,
        upscale: int = 1,
        time_factor: int = 1,
        published_rank: int = 5,
    ) -> None:
        super().__init__()
        assert taps in (1, 3)
        self.taps, self.upscale, self.time_factor = taps, upscale, time_factor
        self.padding = size // 2
        # Holds the weights; its own forward is never called.
        self.conv: nn.Conv3d | nn.Conv2d = (
            nn.Conv3d(inputs, outputs, (taps, size, size), padding=(0, size // 2, size // 2))
            if published_rank == 5
            else nn.Conv2d(inputs, outputs, size, padding=size // 2)
        )
        self.folded = None

    def forward(self, x: Tensor, time: Timeline) -> Tensor:
        """(T*B, inputs, H, W) -> (r*T*B, outputs / (r*u*u), u*H, u*W)."""
        *kernels, bias = self.folded if self.folded is not None else self.kernels()
        x = time.pad(x, self.taps // 2)
        if len(kernels) == 1:
            x = F.conv2d(_joined(x, self.taps, time.batch), kernels[0], bias, padding=self.padding)
        else:
            convolve = _two_at_once if len(kernels) == 4 else _sum_of_taps
            x = convolve(x, kernels, bias, time.batch, padding=self.padding)
        if self.upscale * self.time_factor > 1:
            x = shuffle(x, time.batch, self.upscale, self.time_factor)
        return x

    def kernels(self, form: Form = "joined") -> list[Tensor]:
        """The 2-D kernels of a form: one, three or four, and the bias after them."""
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        if weight.dim() == 4:
            weight = weight.unsqueeze(2)
        u, r = self.upscale, self.time_factor
        if u * r > 1:  # published: channel, row, column, frame; here: frame, row, column, channel
            shape, order = (-1, u, u, r), (3, 1, 2, 0)
            kernel = weight.shape[1:]
            weight = weight.reshape(*shape, *kernel).permute(*order, 4, 5, 6, 7).flatten(0, 3)
            bias = bias.reshape(shape).permute(order).flatten()
        taps = list(weight.unbind(2))
        if form == "joined" or len(taps) == 1:
            return [torch.cat(taps, dim=1), bias]
        if form == "winograd" and weight.shape[1] >= MIN_WINOGRAD_CHANNELS:
            outer = taps[0] + taps[2]
            taps = [taps[0], (outer + taps[1]) / 2, (outer - taps[1]) / 2, taps[2]]
        return [*taps, bias]


class SeparableConv(nn.Module):
    """Depthwise convolution, kernel (size, size, size), then a 1x1 one to mix channels."""

    folded: nn.ParameterList | None

    def __init__(self, inputs: int, outputs: int, *, size: int) -> None:
        super().__init__()
        self.size = size
        # They hold the weights; their own forward is never called.
        self.depthwise_conv = nn.Conv3d(inputs, inputs, size, groups=inputs)
        self.pointwise_conv = nn.Conv3d(inputs, outputs, 1)
        self.folded = None

    def forward(self, x: Tensor, time: Timeline) -> Tensor:
        """(T*B, inputs, H, W) -> (T*B, outputs, H, W)."""
        made = self.folded if self.folded is not None else self.kernels()
        *taps, bias, mix, mix_bias = made
        with _float32_on_cpu(x):  # in bfloat16 its gradients take a CPU four times as long
            x = time.pad(x.to(bias.dtype), self.size // 2)
            x = _sum_of_taps(x, taps, bias, time.batch, padding=self.size // 2, groups=x.shape[1])
        return F.conv2d(x, mix, mix_bias)

    def kernels(self, form: Form = "taps") -> list[Tensor]:
        """A depthwise 2-D kernel per tap and their bias; the mixing kernel and its bias."""
        depthwise, pointwise = self.depthwise_conv, self.pointwise_conv
        assert depthwise.bias is not None and pointwise.bias is not None
        taps = depthwise.weight.unbind(2)
        return [*taps, depthwise.bias, pointwise.weight.squeeze(2), pointwise.bias]


def _joined(x: Tensor, taps: int, batch: int) -> Tensor:
    """The channels of the shifted frames of a padded x side by side."""
    return torch.cat(_shifted(x, taps, batch), dim=1) if taps > 1 else x


def _sum_of_taps(
    x: Tensor, taps: list[Tensor], bias: Tensor, batch: int, *, padding: int, groups: int = 1
) -> Tensor:
    """One 2-D convolution per tap over the shifted frames of a padded x, added up."""
    shifted = _shifted(x, len(taps), batch)
    total = F.conv2d(shifted[0], taps[0], bias, padding=padding, groups=groups)
    for frames, tap in zip(shifted[1:], taps[1:], strict=True):
        total += F.conv2d(frames, tap, padding=padding, groups=groups)
    return total


def _shifted(x: Tensor, taps: int, batch: int) -> list[Tensor]:
    """What each tap sees of a padded x, each (count*B, C, H, W)."""
    frames = x.shape[0] // batch
    count = max(0, frames - (taps - 1))
    if not torch.is_grad_enabled():
        return [x[k * batch : (k + count) * batch] for k in range(taps)]
    # The gradient of each slice would be a padded x of zeros, contiguous, and all added up.
    each = torch.split(x, batch)
    return [torch.cat(each[k : k + count]) for k in range(taps)]


def _float32_on_cpu(x: Tensor) -> AbstractContextManager[object]:
    """Without autocast, where x lies on a CPU."""
    if _is_mixed(x, "cpu"):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _is_mixed(x: Tensor, *devices: str) -> bool:
    """Whether x lies on one of the devices, under autocast."""
    return x.device.type in devices and torch.is_autocast_enabled(x.device.type)


def _two_at_once(
    x: Tensor, kernels: list[Tensor], bias: Tensor, batch: int, *, padding: int
) -> Tensor:
    """As `_sum_of_taps` with three taps, from Winograd's four kernels."""
    # Of one video each entry is a frame: exporters would turn one more dimension into copies.
    frames = x if batch == 1 else x.reshape(x.shape[0] // batch, batch, *x.shape[1:])
    count = max(0, len(frames) - 2)
    pairs, whole = (count + 1) // 2, count // 2  # the last pair may be half
    even, odd = frames[::2], frames[1::2]

    def conv(k: int, d: Tensor, bias: Tensor | None = None) -> Tensor:
        d = d if batch == 1 else d.flatten(0, 1)
        return F.conv2d(d, kernels[k], bias, padding=padding)

    middle = conv(1, odd[:pairs] + even[1 : pairs + 1], bias)
    other = conv(2, even[1 : pairs + 1] - odd[:pairs])
    first = conv(0, even[:pairs] - even[1 : pairs + 1]).add_(middle).add_(other)
    second = conv(3, odd[1 : whole + 1] - odd[:whole]).add_(middle.sub_(other)[: whole * batch])
    del middle, other
    found = [part[k * batch : (k + 1) * batch] for k in range(pairs) for part in (first, second)]
    return torch.cat(found[:count]) if count > 1 else first


def shuffle(x: Tensor, batch: int, upscale: int, time_factor: int) -> Tensor:
    """Channels to frames, rows and columns: (T*B, r*u*u*C, H, W) -> (T*r*B, C, u*H, u*W).

    The channels stand as frame, row, column, channel. The memory format stays.
    """
    (n, channels, height, width), u, r = x.shape, upscale, time_factor
    frames, c = n // batch, channels // (r * u * u)
    if x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(frames, batch, height, width, r, u, u, c)
        x = x.permute(0, 4, 1, 2, 5, 3, 6, 7).reshape(n * r, height * u, width * u, c)
        return x.permute(0, 3, 1, 2)
    if batch > 1 and r > 1:
        x = x.reshape(frames, batch, r, c * u * u * height * width).transpose(1, 2)
    x = x.reshape(n * r, u, u, c, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n * r, c, height * u, width * u)


class ChannelMean(nn.Module):
    """Mean over channels plus a constant, (F, C, H, W) -> (F, 1, H, W), as a 1x1 convolution."""

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, plus: float = 0.0) -> None:
        super().__init__()
        weight = torch.full((1, channels, 1, 1), 1 / channels)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", torch.tensor([plus]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class RmsNorm(nn.Module):
    """x / sqrt(mean of x^2 over channels + 1e-8), without weights; (F, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = ChannelMean(channels, _RMS_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _TrainedRmsNorm.apply(x))  # type: ignore[no-untyped-call]
        out: Tensor = x * torch.rsqrt(self.mean(x * x))
        return out


class _TrainedRmsNorm(torch.autograd.Function):
    """`RmsNorm` computed in float32 at least, which under autocast it stays in; with a backward
    pass of its own, which keeps two tensors where autograd keeps four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(_channel_mean(x * x).add_(_RMS_EPS))
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y if _is_mixed(x, "cpu", "cuda") else y.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = _channel_mean(gradient * y)
        by_x: Tensor = torch.addcmul(gradient, y, along, value=-1).mul_(scale).to(ctx.dtype)
        return by_x


def _channel_mean(x: Tensor) -> Tensor:
    """(F, C, H, W) -> (F, 1, H, W); of few channels one by one, which is faster."""
    if x.shape[1] > 8:
        return x.mean(dim=1, keepdim=True)
    first, *others = torch.split(x, 1, dim=1)
    total = first.clone()
    for channel in others:
        total += channel
    return total / x.shape[1]


class LayerNorm(nn.Module):
    """Layer norm over channels with scale and shift (C,); (F, C, H, W) to the same."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.mean, self.variance = ChannelMean(channels), ChannelMean(channels, eps)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():  # one operation, in float32 under autocast
            x = x.permute(0, 2, 3, 1)
            x = F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
            return x.permute(0, 3, 1, 2)
        x = x - self.mean(x)
        # Of four dimensions, so that a runtime can lay them out as x.
        scale, shift = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
        return x * torch.rsqrt(self.variance(x * x)) * scale + shift


@torch.no_grad()
def fold(layer: FrameConv | SeparableConv, form: Form, memory_format: torch.memory_format) -> None:
    """Make the 2-D kernels of a layer once, in place; the published weights are gone then."""
    made = layer.kernels(form)
    layer.folded = nn.ParameterList(
        nn.Parameter(
            torch.empty_like(
                kernel, memory_format=memory_format if kernel.dim() == 4 else torch.preserve_format
            ).copy_(kernel),
            requires_grad=False,
        )
        for kernel in made
    )
    holders = ("conv",) if isinstance(layer, FrameConv) else ("depthwise_conv", "pointwise_conv")
    for name in holders:
        delattr(layer, name)
