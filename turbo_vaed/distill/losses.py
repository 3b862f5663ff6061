"""Losses of the distillation, each a plain function on videos in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Scalars: what is minimised, and its parts."""

    total: Tensor
    source: Tensor
    teacher: Tensor


def output_distillation(
    student: Tensor, source: Tensor, teacher: Tensor, *, weight_source: float, weight_teacher: float
) -> Losses:
    """L1 to the source and L1 to the teacher's own reconstruction, (B, 3, T, H, W) each.

    The L1 term is the published reconstruction loss (arXiv 2508.09136, section 3.3).
    """
    to_source = F.l1_loss(student, source)
    to_teacher = F.l1_loss(student, teacher)
    return Losses(
        total=weight_source * to_source + weight_teacher * to_teacher,
        source=to_source,
        teacher=to_teacher,
    )
