"""Peak signal-to-noise ratio: 10 log10(1 / MSE) dB, for a peak-to-peak range of 1."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair

MAX_PSNR_DB = 100.0
"""What identical frames get, for the infinity that would make every mean infinite."""


def psnr(frames: Tensor, reference: Tensor) -> Tensor:
    """PSNR in dB of each clip, from its mean squared error over all frames and channels.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). Float64, at most `MAX_PSNR_DB`.

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN.
    """
    check_pair(frames, reference)
    squared = (frames.double() - reference.double()).square()
    return psnr_from_mse(squared.mean(dim=(-4, -3, -2, -1)))


def psnr_from_mse(mse: Tensor) -> Tensor:
    """dB of a mean squared error over pixels in [0, 1], at most `MAX_PSNR_DB`."""
    return (-10 * torch.log10(mse)).clamp(max=MAX_PSNR_DB)
