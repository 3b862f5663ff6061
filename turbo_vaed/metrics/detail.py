"""Detail: how much of the reference's fine structure is there, and in its place.

The fine structure is what a Gaussian blur takes away: the upper band of a Laplacian pyramid
(Burt and Adelson 1983), of luma (BT.601). How much of it is kept is the regression of the video's
band on the reference's, <b_x, b_y> / <b_y, b_y>: a blur lowers it, and noise, whose band is
uncorrelated with the reference's, does not raise it, as it would raise a ratio of energies.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair

_SIGMA = 1.5
"""Pixels: structures finer than about ten pixels a period are detail."""
_RADIUS = 5
_LUMA = (0.299, 0.587, 0.114)
_LEAST_ENERGY = 1e-8
"""Mean square of the reference's band: below a hundredth of an 8-bit step there is no detail."""


def detail(frames: Tensor, reference: Tensor) -> Tensor:
    """Share of the reference's fine structure that each clip has, 1 for all of it.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). Float64. Below 0 where it is inverted; 1 where it
    is exaggerated, which makes up for no other clip, and where the reference has none to lose.

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN.
    """
    check_pair(frames, reference)
    x, y = _band(frames), _band(reference)
    along = (x * y).mean(dim=(-3, -2, -1))
    energy = (y * y).mean(dim=(-3, -2, -1))
    share = (along / energy.clamp_min(_LEAST_ENERGY)).clamp(max=1.0)
    return torch.where(energy > _LEAST_ENERGY, share, 1.0)


def _band(frames: Tensor) -> Tensor:
    """Luma less its blur, (..., T, H, W); a mirror stands at the border."""
    luma = (frames.double() * frames.new_tensor(_LUMA).double().view(3, 1, 1)).sum(dim=-3)
    flat = luma.flatten(0, -3).unsqueeze(1)
    taps = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64, device=frames.device)
    kernel = torch.exp(-(taps**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    blurred = F.pad(flat, (_RADIUS,) * 4, mode="reflect")
    blurred = F.conv2d(blurred, kernel.view(1, 1, -1, 1))
    blurred = F.conv2d(blurred, kernel.view(1, 1, 1, -1))
    return luma - blurred.reshape(luma.shape)
