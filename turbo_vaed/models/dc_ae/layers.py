"""The layers of Video DC-AE: what its blocks and steps are made of.

Shapes: B batch, C channels, T frames, H W. Attributes bear the names of the published keys.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORM_EPS = 1e-5


# --- shortcuts: no weights ---


def average_down(x: Tensor, outputs: int, *, time: int, space: int) -> Tensor:
    """(B, C, T, H, W) -> (B, outputs, T/time, H/space, W/space).

    The positions of each cell become channels, and neighbouring channels are averaged.
    """
    batch, channels, *sizes = x.shape
    t, h, w = sizes[0] // time, sizes[1] // space, sizes[2] // space
    x = x.reshape(batch, channels, t, time, h, space, w, space)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, outputs, -1, t, h, w)
    return x.mean(dim=2)


def duplicate_up(x: Tensor, outputs: int, *, time: int, space: int) -> Tensor:
    """(B, C, T, H, W) -> (B, outputs, T*time, H*space, W*space).

    Each channel is repeated, and channels become the positions of a cell.
    """
    batch, channels, t, h, w = x.shape
    x = x.repeat_interleave(outputs * time * space * space // channels, dim=1)
    x = x.reshape(batch, outputs, time, space, space, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, outputs, t * time, h * space, w * space)


# --- layers ---


class RmsNorm(nn.Module):
    """x / sqrt(mean of x^2 over channels + 1e-5), scaled and shifted; (B, C, T, H, W) to the same.

    The mean is taken in float32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # A vector norm, for that makes no square of x in between: 1 GB in the finest stage.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        x = x * torch.rsqrt(norm.square() / x.shape[1] + _NORM_EPS).to(x.dtype)
        return torch.addcmul(self.bias.view(-1, 1, 1, 1), x, self.weight.view(-1, 1, 1, 1))


class Conv(nn.Module):
    """Convolution padded with zeros, then a norm and SiLU where asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        groups: int = 1,
        has_bias: bool = True,
        has_norm: bool = False,
        has_silu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=has_bias
        )
        self.norm = RmsNorm(outputs) if has_norm else None
        self.has_silu = has_silu

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, T, H, W) -> (B, outputs, T, H, W), divided by the stride."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.silu(x) if self.has_silu else x


class Residual(nn.Module):
    """main(x) + shortcut(x); the shortcut is x itself by default."""

    def __init__(self, main: nn.Module, shortcut: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + (x if self.shortcut is None else self.shortcut(x))
        return out


class Chain(nn.Module):
    """One after the other."""

    def __init__(self, op_list: Iterable[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(op_list)

    def forward(self, x: Tensor) -> Tensor:
        for op in self.op_list:
            x = op(x)
        return x
