"""The figures of many clips in two: their mean, and the mean of the worst of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from turbo_vaed.metrics.frames import frames_from_uint8
from turbo_vaed.metrics.psnr import psnr
from turbo_vaed.metrics.ssim import ms_ssim, ssim

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUALITY = ("psnr", "ssim", "ms_ssim")
"""The metrics that every stage reports; higher is better in each."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean over all clips, and over the worst share of them, in the metric's unit."""

    mean: float
    worst: float

    def to_json(self) -> dict[str, float]:
        """A plain mapping."""
        return asdict(self)


def summarise(values: Sequence[float], worst_share: float) -> Summary:
    """Mean of the values, and mean of the lowest `worst_share` of them, at least one.

    Raises:
        ValueError: no values, one that is not finite, a share outside (0, 1].
    """
    if not 0 < worst_share <= 1:
        raise ValueError(f"worst_share: found {worst_share:g}, expected above 0 and at most 1")
    if not values:
        raise ValueError("values: found none, expected at least one clip")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"values: found {value} at {index}, expected finite numbers")
    # 0.05 * 60 may come out as 3 or as a little less.
    count = max(1, math.floor(worst_share * len(values) + 1e-9))
    return Summary(
        mean=math.fsum(values) / len(values), worst=math.fsum(sorted(values)[:count]) / count
    )


def clip_quality(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
    """PSNR (dB), SSIM and MS-SSIM of one clip (T, H, W, 3) uint8 against its reference.

    Raises:
        ValueError: dtype or shapes are wrong, or the frames are below 11 pixels.
    """
    frames, truth = frames_from_uint8(video), frames_from_uint8(reference)
    metrics = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}
    return {name: float(metrics[name](frames, truth)) for name in QUALITY}


def summarise_quality(
    clips: Sequence[Mapping[str, float]], worst_share: float
) -> dict[str, dict[str, float]]:
    """What `clip_quality` gave for each clip -> {metric: {mean, worst}}; errors of `summarise`."""
    return {
        name: summarise([clip[name] for clip in clips], worst_share).to_json() for name in QUALITY
    }
