"""Frames as the metrics take them, and how the other forms of video become that.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def frames_from_uint8(video: NDArray[np.uint8]) -> Tensor:
    """(..., T, H, W, 3) uint8 as stored -> (..., T, 3, H, W) float32 in [0, 1].

    Raises:
        ValueError: another dtype, or the last dimension is not of three channels.
    """
    if str(video.dtype) != "uint8" or video.ndim < 3 or video.shape[-1] != 3:
        raise ValueError(
            f"video: found {video.dtype} of shape {tuple(video.shape)}, "
            f"expected uint8 of (..., H, W, 3)"
        )
    return torch.tensor(video).movedim(-1, -3).float() / 255


def uint8_from_network(video: Tensor) -> NDArray[np.uint8]:
    """(B, 3, T, H, W) in about [-1, 1] -> (B, T, H, W, 3) uint8, clamped and rounded.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    if video.dim() != 5 or video.shape[1] != 3:
        raise ValueError(f"video: found shape {tuple(video.shape)}, expected (B, 3, T, H, W)")
    if not bool(torch.isfinite(video).all()):
        raise ValueError("video: found values that are not finite, expected about [-1, 1]")
    pixels = ((video.detach().float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    array: NDArray[Any] = pixels.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()
    return array


def check_pair(frames: Tensor, reference: Tensor) -> None:
    """Raise ValueError where the two are not RGB frames in [0, 1] of one and the same shape."""
    for name, x in (("frames", frames), ("reference", reference)):
        if not x.is_floating_point():
            raise ValueError(f"{name}: found {x.dtype}, expected float pixels in [0, 1]")
        if x.dim() not in (4, 5) or x.shape[-3] != 3 or 0 in x.shape:
            raise ValueError(
                f"{name}: found shape {tuple(x.shape)}, expected (T, 3, H, W) or (B, T, 3, H, W)"
            )
        low, high = float(x.amin()), float(x.amax())
        if not (low >= 0 and high <= 1):  # NaN compares false
            raise ValueError(f"{name}: found values from {low:g} to {high:g}, expected [0, 1]")
    if frames.shape != reference.shape:
        raise ValueError(
            f"frames and reference: found shapes {tuple(frames.shape)} and "
            f"{tuple(reference.shape)}, expected the same"
        )


def in_full_precision(x: Tensor) -> Tensor:
    """Float32 for half precision, in which variances drown; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
