"""Losses of the distillation: L1, perceptual and feature loss of Turbo-VAED (arXiv 2508.09136).

The adversarial one, which has a network and a turn of its own, is in `adversarial`. Every loss is
a mean over clips of one size: parts of a batch, weighted by their share of its clips, add up to
the whole.

Shapes: B batch, C channels, T frames, H W pixels; videos in about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from turbo_vaed.distill.losses.adversarial import (
    PatchDiscriminator3d,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    last_layer_gradients,
)
from turbo_vaed.distill.losses.feature import feature_loss
from turbo_vaed.distill.losses.perceptual import perceptual
from turbo_vaed.distill.losses.reconstruction import l1

__all__ = [
    "Losses",
    "PatchDiscriminator3d",
    "Weights",
    "adaptive_weight",
    "distillation_losses",
    "feature_loss",
    "hinge_discriminator",
    "hinge_generator",
    "l1",
    "last_layer_gradients",
    "perceptual",
]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of each part in the total; one of weight 0 is not computed.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    source: float
    """L1 to the source."""
    teacher: float
    """L1 to the teacher's own reconstruction."""
    perceptual: float
    """To the source."""
    feature: float

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not (isfinite(weight) and weight >= 0):
                raise ValueError(f"weight of {name}: found {weight}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Scalars: what is minimised, and its parts without their weights."""

    total: Tensor
    parts: dict[str, Tensor]
    """By the names of `Weights`, those alone that were computed."""


def distillation_losses(
    video: Tensor,
    projected: Mapping[str, Tensor],
    source: Tensor,
    teacher: Tensor | None,
    features: Mapping[str, Tensor],
    weights: Weights,
    perceptual: nn.Module | None = None,
) -> Losses:
    """The student's losses on a batch, in float32; call it outside of autocast.

    Args:
        video: what the student makes of the latents, (B, 3, T, H, W).
        projected: its features behind the alignment heads, by block.
        source: the clips, (B, 3, T, H, W).
        teacher: the teacher's reconstruction of them; None where its weight is 0.
        features: the teacher's features (B, C, T', H', W') by block.
        weights: of the parts.
        perceptual: one of `losses.perceptual`; None for no such part, whatever its weight.

    Raises:
        ValueError: a part has a weight and lacks what it is made from, no part has a weight, or
            shapes do not match.
    """
    video = video.float()
    parts: dict[str, Tensor] = {}
    if weights.source:
        parts["source"] = l1(video, source)
    if weights.teacher:
        if teacher is None:
            raise ValueError("teacher: found no reconstruction, but its loss has a weight")
        parts["teacher"] = l1(video, teacher)
    if weights.perceptual and perceptual is not None:
        parts["perceptual"] = perceptual(video, source)
    if weights.feature:
        parts["feature"] = feature_loss(projected, features)
    if not parts:
        raise ValueError("weights: found none above 0 of a loss that there is, expected one")
    scaled = [getattr(weights, name) * loss for name, loss in parts.items()]
    return Losses(total=torch.stack(scaled).sum(), parts=parts)
