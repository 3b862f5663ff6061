"""SSIM, per frame and RGB channel, on frames in [0, 1].

Wang et al. 2004: an 11x11 Gaussian window of sigma 1.5, population covariance, K1 = 0.01,
K2 = 0.03, data range 1, only windows that lie inside the frame. The same numbers as
scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair, in_full_precision

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(frames: Tensor, reference: Tensor) -> Tensor:
    """Mean SSIM of each clip over windows, channels and frames.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). In [-1, 1]; 1 for identical frames.

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN, a side below 11 pixels.
    """
    check_pair(frames, reference)
    check_side(frames)
    x, y = (in_full_precision(each).flatten(0, -4) for each in (frames, reference))
    full, _ = ssim_per_channel(x, y)
    return full.reshape(*frames.shape[:-3], 3).mean(dim=(-2, -1))


def check_side(frames: Tensor) -> None:
    """Raise ValueError where the window does not fit the frames."""
    height, width = frames.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"frames: found {height}x{width} pixels, expected at least 11 each way")


def ssim_per_channel(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) twice -> SSIM and its contrast-structure part, each (N, 3)."""
    mean_x, mean_y = _blur(x), _blur(y)
    xx, yy, xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    variances = (_blur(x * x) - xx) + (_blur(y * y) - yy)
    covariance = _blur(x * y) - xy
    contrast = (2 * covariance + C2) / (variances + C2)
    full = (2 * xy + C1) / (xx + yy + C1) * contrast
    return full.mean(dim=(-2, -1)), contrast.mean(dim=(-2, -1))


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window over (N, 3, H, W), as two passes of one dimension."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    gauss = torch.exp(-(at**2) / (2 * SIGMA**2))
    gauss = (gauss / gauss.sum()).expand(3, 1, 1, WINDOW)
    return F.conv2d(F.conv2d(x, gauss, groups=3), gauss.transpose(2, 3), groups=3)
