"""Losses of the distillation: L1, perceptual and feature loss of Turbo-VAED (arXiv 2508.09136).

The adversarial loss, which has a network and an optimizer of its own, is in `adversarial`. Every
loss is a mean over clips of one size: parts of a batch, weighted by their share of its clips, add
up to the whole. Values of the student are taken as they are, also outside [-1, 1]: clamped, they
would have no gradient exactly where they are most wrong.

Perceptual losses by name, each of two videos, the student's first:

| name | what | needs |
|---|---|---|
| `gradient` | differences between neighbours in space and time | nothing |
| `ms-ssim` | 1 - MS-SSIM | nothing |
| `lpips` | features of VGG16, as in Turbo-VAED | weights |

Shapes: B batch, C channels, T frames, N frames of all clips, H W pixels; videos in about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.errors import UserError
from turbo_vaed.metrics.lpips import Lpips
from turbo_vaed.metrics.ms_ssim import per_frame
from turbo_vaed.metrics.ssim import check_side
from turbo_vaed.models.alignment import match_resolution
from turbo_vaed.storage.cache import local_copy

NAMES = ("gradient", "ms-ssim", "lpips")
HUB = "hub"
"""In place of a weights file: download the published weights by torch.hub."""
_LEAST_FACTOR = 1e-3
"""Lower bound of MS-SSIM's factors in training. The metric clamps at 0, where the other scales have
no gradient either; just above 0 the gradient of a power below 1 is too steep."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weight of each part in the total; a part of weight 0 is not computed.

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
    """Scalars: the loss to minimise, and its parts before weighting."""

    total: Tensor
    parts: dict[str, Tensor]
    """By the names of `Weights`; only those that were computed."""


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
        video: the student's output, (B, 3, T, H, W).
        projected: the student's features after the alignment heads, by block.
        source: the clips, (B, 3, T, H, W).
        teacher: the teacher's reconstruction of them; None where its weight is 0.
        features: the teacher's features (B, C, T', H', W') by block.
        weights: of the parts.
        perceptual: as `perceptual()` returns it; None leaves that part out, whatever its weight.

    Raises:
        ValueError: a part with a weight lacks its input, no part has a weight, or shapes do not
            match.
    """
    video = video.float()
    parts: dict[str, Tensor] = {}
    if weights.source:
        parts["source"] = l1(video, source)
    if weights.teacher:
        if teacher is None:
            raise ValueError(
                "teacher: found no reconstruction, expected one: weight_teacher is above 0"
            )
        parts["teacher"] = l1(video, teacher)
    if weights.perceptual and perceptual is not None:
        parts["perceptual"] = perceptual(video, source)
    if weights.feature:
        parts["feature"] = feature_loss(projected, features)
    if not parts:
        raise ValueError("weights: found no loss with a weight above 0, expected at least one")
    scaled = [getattr(weights, name) * loss for name, loss in parts.items()]
    return Losses(total=torch.stack(scaled).sum(), parts=parts)


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


def feature_loss(projected: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Feature distillation: mean squared error at the aligned blocks, summed over them, in float32.

    Args:
        projected: output of `turbo_vaed.models.AlignmentHeads`, (B, C * 1, 4 or 8, ...) by block;
            it is shuffled to the teacher's resolution here.
        teacher: (B, C, T, H, W) by block, of the same clips or crops.

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


class GradientLoss(nn.Module):
    """Mean absolute error of the differences between neighbours, along x, y and time.

    The gradient difference loss (Mathieu et al. 2016, arXiv 1511.05440, equation 6) with exponent
    1 and time as a third direction, each direction's mean with the same weight. Of signed
    differences: theirs are absolute, which takes a rising edge for a falling one.
    """

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """In the unit of the values, per step; a single frame has no direction of time."""
        error = video - target
        directions = [error.diff(dim=d) for d in (2, 3, 4) if error.shape[d] > 1]
        return torch.stack([d.abs().mean() for d in directions]).mean()


class MsSsimLoss(nn.Module):
    """1 - MS-SSIM, from 0 for identical videos to about 1.

    Equal to `turbo_vaed.metrics.ms_ssim`, with the same scales for a crop of the same size, where
    that is defined and no factor is below 0.001. Unlike the metric it accepts values outside
    [0, 1] and NaN: SSIM is defined for any values, and the training loop handles a loss that is not
    finite.
    """

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """Raises ValueError where a side is below 11 pixels, the window of SSIM."""
        check_side(video)
        ours, wanted = _frames(video.float()), _frames(target.float())
        return 1 - per_frame(ours, wanted, _LEAST_FACTOR).mean()


class LpipsLoss(nn.Module):
    """LPIPS (Zhang et al. 2018) of VGG16, frame by frame, as in the published training.

    The network takes frames in [0, 1] and rescales them itself.
    """

    def __init__(self, network: Lpips) -> None:
        super().__init__()
        self.network = network

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """Raises ValueError where a side is below 16 pixels."""
        distances: Tensor = self.network(_frames(video), _frames(target))
        return distances.mean()


def perceptual_of(
    params: DistillParams, device: torch.device, weights: str | None = None
) -> nn.Module | None:
    """The perceptual loss of a run, with its weights from another place than the params name, if
    one is given; None where it has none. Raises: as `perceptual`."""
    if params.perceptual == "none" or params.weight_perceptual == 0:
        return None
    return perceptual(params.perceptual, weights or params.perceptual_weights or None).to(device)


def perceptual(name: str, weights: str | Path | None = None) -> nn.Module:
    """The perceptual loss of a name.

    Args:
        name: one of `NAMES`.
        weights: of `lpips`: a file for `turbo_vaed.metrics.lpips.Lpips.from_file`, its copy in a
            bucket (s3://…), or `hub` to download the published ones, 530 MB.

    Raises:
        UserError: an unknown name, or `lpips` without weights or with weights of another network.
        CorruptFile: the weights file is damaged.
        Unreachable: the hub does not answer.
    """
    if name == "gradient":
        return GradientLoss()
    if name == "ms-ssim":
        return MsSsimLoss()
    if name != "lpips":
        raise UserError(f"perceptual loss: found {name!r}, allowed: {', '.join(NAMES)}")
    if weights is None:
        raise UserError(
            "perceptual loss lpips: found no weights, expected a file, or `hub` to fetch them; "
            "gradient and ms-ssim need none"
        )
    if str(weights) == HUB:
        return LpipsLoss(Lpips.from_hub())
    with local_copy(weights) as path:
        return LpipsLoss(Lpips.from_file(path))


def _frames(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] -> (N, 3, H, W) in [0, 1]."""
    return ((video + 1) / 2).transpose(1, 2).flatten(0, 1)
