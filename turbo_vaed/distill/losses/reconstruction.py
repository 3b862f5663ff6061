"""Reconstruction: how far pixels are from pixels, the L1 of Turbo-VAED (arXiv 2508.09136)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def l1(video: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two videos (B, 3, T, H, W), in the unit of their values.

    The target is the source, or the teacher's own reconstruction of it (output distillation).

    Raises:
        ValueError: the two differ in shape, which would be broadcast.
    """
    if video.shape != target.shape:
        raise ValueError(
            f"target: found shape {tuple(target.shape)}, expected the video's, {tuple(video.shape)}"
        )
    return F.l1_loss(video, target)
