"""Feature distillation: the student's hidden states, projected, against the teacher's.

Mean squared error at the aligned blocks, summed over them: Turbo-VAED (arXiv 2508.09136). The
projections are `turbo_vaed.models.AlignmentHeads`.

Shapes: B batch, C teacher channels, T frames, H W positions of the teacher's features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.models.alignment import match_resolution


def feature_loss(projected: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Sum over blocks of the mean squared error of `projected` to `teacher`, in float32.

    Args:
        projected: what the heads put out, (B, C * 1, 4 or 8, ...) by block; they are shuffled to
            the teacher's resolution here.
        teacher: (B, C, T, H, W) by block, of the clips or crops that `projected` is of.

    Raises:
        ValueError: no block, other blocks than the teacher's, or features that do not match.
    """
    if not projected or projected.keys() != teacher.keys():
        raise ValueError(
            f"features: found {sorted(projected)} of the student and {sorted(teacher)} of the "
            "teacher, expected the same blocks, at least one; see models.alignment.aligned_config"
        )
    losses = [_block_loss(name, projected[name], teacher[name]) for name in projected]
    return sum(losses[1:], losses[0])


def _block_loss(name: str, projected: Tensor, teacher: Tensor) -> Tensor:
    found = match_resolution(projected.float(), teacher.shape[1])
    if found.shape != teacher.shape:
        raise ValueError(
            f"features of {name}: found {tuple(found.shape)} of the student, shuffled, and "
            f"{tuple(teacher.shape)} of the teacher, expected the same: are they of the same crop, "
            "and the student's aligned blocks for this teacher?"
        )
    return F.mse_loss(found, teacher.float())
