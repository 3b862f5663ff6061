"""The layers of the decoder: convolutions over time and norms over channels, in 2-D operations.

Shapes: B batch, C channels, T frames, H W; frames are folded into the batch with time
outermost, (B, C, T, H, W) -> (T*B, C, H, W), so one step in time is B entries, and a shift
in time is a slice of the leading dimension, for every batch size.

Mobile runtimes have no 3-D convolution, so there is none here. A dense one is one 2-D
convolution over the channels of the shifted frames; a depthwise one is a sum of depthwise
2-D convolutions, one per tap in time. Time is padded by repeating the first and the last
frame, height and width by zeros. Means over channels are 1x1 convolutions with constant
weights, which keeps a lowered graph in one piece.

Checkpoints keep the published 3-D weights: `published()` and `load()` convert.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RMS_EPS = 1e-8  # fixed in the published model; `resnet_norm_eps` is the layer norms'


def fold_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (T*B, C, H, W)."""
    return x.permute(2, 0, 1, 3, 4).flatten(0, 1)


def unfold_frames(x: Tensor, batch: int) -> Tensor:
    """(T*B, C, H, W) -> (B, C, T, H, W)."""
    return x.reshape(x.shape[0] // batch, batch, *x.shape[1:]).permute(1, 2, 0, 3, 4)


def pad_time(x: Tensor, batch: int, frames: int) -> Tensor:
    """Repeat the first and the last frame: (T*B, C, H, W) -> ((T+2*frames)*B, C, H, W)."""
    return torch.cat([x[:batch]] * frames + [x] + [x[-batch:]] * frames) if frames else x


class FrameConv(nn.Module):
    """Dense convolution over time and space, kernel (taps, size, size), as one 2-D one.

    With `time_factor` r the output channels hold r frames, the first frame's channels
    first (published: the frame varies fastest), so that unfolding them is a reshape.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        taps: int = 3,
        size: int = 3,
        time_factor: int = 1,
        published_rank: int = 5,
    ) -> None:
        super().__init__()
        self.taps, self.time_factor, self.published_rank = taps, time_factor, published_rank
        self.conv = nn.Conv2d(taps * inputs, outputs, size, padding=size // 2)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """(T*B, inputs, H, W) -> (T*B, outputs, H, W)."""
        if self.taps > 1:
            padded, count = pad_time(x, batch, self.taps // 2), x.shape[0]
            x = torch.cat([padded[k * batch : k * batch + count] for k in range(self.taps)], dim=1)
        out: Tensor = self.conv(x)
        return out

    def published(self) -> dict[str, Tensor]:
        """Published names and layouts: weight (out, in, taps, size, size)."""
        assert self.conv.bias is not None
        _, inputs, *kernel = self.conv.weight.shape
        taps, factor = self.taps, self.time_factor
        weight = self.conv.weight.reshape(factor, -1, taps, inputs // taps, *kernel)
        weight = weight.permute(1, 0, 3, 2, 4, 5).flatten(0, 1)
        return {
            "conv.weight": weight if self.published_rank == 5 else weight.squeeze(2),
            "conv.bias": self.conv.bias.reshape(factor, -1).t().flatten(),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `published` gives."""
        assert self.conv.bias is not None
        _, inputs, *kernel = self.conv.weight.shape
        taps, factor = self.taps, self.time_factor
        weight = tensors["conv.weight"].reshape(-1, factor, inputs // taps, taps, *kernel)
        self.conv.weight.copy_(weight.permute(1, 0, 3, 2, 4, 5).flatten(0, 1).flatten(1, 2))
        self.conv.bias.copy_(tensors["conv.bias"].reshape(-1, factor).t().flatten())


class SeparableConv(nn.Module):
    """Depthwise convolution, kernel (size, size, size), then a 1x1 one to mix channels."""

    def __init__(self, inputs: int, outputs: int, *, size: int) -> None:
        super().__init__()
        bound = size**-1.5  # as nn.Conv3d starts: 1 / sqrt(fan in)
        self.taps = nn.ParameterList(
            torch.empty(inputs, 1, size, size).uniform_(-bound, bound) for _ in range(size)
        )
        self.bias = nn.Parameter(torch.empty(inputs).uniform_(-bound, bound))
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """(T*B, inputs, H, W) -> (T*B, outputs, H, W)."""
        size, count = len(self.taps), x.shape[0]
        padded, groups = pad_time(x, batch, size // 2), x.shape[1]
        total: Tensor | None = None
        for k, tap in enumerate(self.taps):
            part = F.conv2d(
                padded[k * batch : k * batch + count],
                tap,
                self.bias if k == 0 else None,
                padding=size // 2,
                groups=groups,
            )
            total = part if total is None else total + part
        out: Tensor = self.pointwise(total)
        return out

    def published(self) -> dict[str, Tensor]:
        """Published names and layouts: depthwise weight (in, 1, size, size, size)."""
        assert self.pointwise.bias is not None
        return {
            "depthwise_conv.weight": torch.stack(list(self.taps), dim=2),
            "depthwise_conv.bias": self.bias,
            "pointwise_conv.weight": self.pointwise.weight.unsqueeze(2),
            "pointwise_conv.bias": self.pointwise.bias,
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `published` gives."""
        assert self.pointwise.bias is not None
        for k, tap in enumerate(self.taps):
            tap.copy_(tensors["depthwise_conv.weight"][:, :, k])
        self.bias.copy_(tensors["depthwise_conv.bias"])
        self.pointwise.weight.copy_(tensors["pointwise_conv.weight"].squeeze(2))
        self.pointwise.bias.copy_(tensors["pointwise_conv.bias"])


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
        out: Tensor = x * torch.rsqrt(self.mean(x * x))
        return out


class LayerNorm(nn.Module):
    """Layer norm over channels with scale and shift; (F, C, H, W) to the same."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.mean, self.variance = ChannelMean(channels), ChannelMean(channels, eps)
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean(x)
        return x * torch.rsqrt(self.variance(x * x)) * self.weight + self.bias

    def published(self) -> dict[str, Tensor]:
        """Published names and layouts: (C,) each."""
        return {"weight": self.weight.flatten(), "bias": self.bias.flatten()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `published` gives."""
        self.weight.copy_(tensors["weight"].view(-1, 1, 1))
        self.bias.copy_(tensors["bias"].view(-1, 1, 1))
