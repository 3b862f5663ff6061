"""Perceptual losses: what an eye minds more than a mean of pixels does.

All take videos (B, 3, T, H, W) in about [-1, 1], the student's first, and give a scalar, the mean
over the clips. The student's values are taken as they are, also outside [-1, 1]: clamped, they
would have no gradient exactly where they are most wrong.

| name | what | needs |
|---|---|---|
| `gradient` | differences between neighbours in space and time | nothing |
| `ms-ssim` | 1 - MS-SSIM | nothing |
| `lpips` | features of VGG16, as in Turbo-VAED (arXiv 2508.09136) | weights |

Shapes: B batch, T frames, N frames of all clips, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.errors import UserError
from turbo_vaed.metrics.lpips import Lpips
from turbo_vaed.metrics.ms_ssim import per_frame
from turbo_vaed.metrics.ssim import check_side

NAMES = ("gradient", "ms-ssim", "lpips")
HUB = "hub"
"""For a weights file: fetch the published weights by torch.hub."""
_LEAST_FACTOR = 1e-3
"""Of MS-SSIM, in training. The metric counts a negative factor as 0: then the other scales have
no gradient either, and just above it a power below 1 is too steep to follow."""


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

    The number is that of `turbo_vaed.metrics.ms_ssim` wherever that one is defined and no factor
    is below a thousandth, with the same scales for a crop of the same size. What is left out is
    its refusal of values outside [0, 1] and of NaN: SSIM is defined for any values, and of a
    loss that is not finite the training loop knows what to do.
    """

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """Raises ValueError where a side is below 11 pixels, the window of SSIM."""
        check_side(video)
        ours, wanted = _frames(video.float()), _frames(target.float())
        return 1 - per_frame(ours, wanted, _LEAST_FACTOR).mean()


class LpipsLoss(nn.Module):
    """LPIPS (Zhang et al. 2018) of VGG16, a frame at a time, as in the published training.

    The network takes frames in [0, 1] and rescales them itself.
    """

    def __init__(self, network: Lpips) -> None:
        super().__init__()
        self.network = network

    def forward(self, video: Tensor, target: Tensor) -> Tensor:
        """Raises ValueError where a side is below 16 pixels."""
        distances: Tensor = self.network(_frames(video), _frames(target))
        return distances.mean()


def perceptual_of(params: DistillParams, device: torch.device) -> nn.Module | None:
    """The perceptual loss of a run; None where it has none. Raises: as `perceptual`."""
    if params.perceptual == "none" or params.weight_perceptual == 0:
        return None
    weights = params.perceptual_weights
    return perceptual(params.perceptual, Path(weights) if weights else None).to(device)


def perceptual(name: str, weights: str | Path | None = None) -> nn.Module:
    """The perceptual loss of a name.

    Args:
        name: one of `NAMES`.
        weights: of `lpips`: a file for `turbo_vaed.metrics.lpips.Lpips.from_file`, or `hub` to
            fetch the published ones, which must be asked for: 530 MB.

    Raises:
        UserError: another name, no weights where some are needed, or not those that are wanted.
        CorruptFile: the file is not whole.
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
    return LpipsLoss(Lpips.from_hub() if str(weights) == HUB else Lpips.from_file(Path(weights)))


def _frames(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] -> (N, 3, H, W) in [0, 1]."""
    return ((video + 1) / 2).transpose(1, 2).flatten(0, 1)
