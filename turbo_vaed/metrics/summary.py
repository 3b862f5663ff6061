"""The figures of many clips in two: their mean, and the mean of the worst of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from turbo_vaed.metrics.detail import detail
from turbo_vaed.metrics.flicker import flicker
from turbo_vaed.metrics.frames import frames_from_uint8
from turbo_vaed.metrics.ms_ssim import ms_ssim
from turbo_vaed.metrics.psnr import psnr
from turbo_vaed.metrics.ssim import ssim

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Direction = Literal["higher", "lower"]

QUALITY = ("psnr", "ssim", "ms_ssim")
"""The metrics that every stage reports, and the gate asks for; higher is better in each."""

BETTER: Mapping[str, Direction] = {
    **dict.fromkeys(QUALITY, "higher"),
    "flicker": "lower",
    "detail": "higher",
    "lpips": "lower",
    "rfvd": "lower",
    "vmaf": "higher",
}
"""Which way each metric is better, and so which of its values are the worst."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean over all clips, and over the worst share of them, in the metric's unit."""

    mean: float
    worst: float

    def to_json(self) -> dict[str, float]:
        """A plain mapping."""
        return asdict(self)


def summarise(
    values: Sequence[float], worst_share: float, *, better: Direction = "higher"
) -> Summary:
    """Mean of the values, and mean of the worst `worst_share` of them, at least one.

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
    worst = sorted(values, reverse=better == "lower")[:count]
    return Summary(mean=math.fsum(values) / len(values), worst=math.fsum(worst) / count)


def clip_quality(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
    """PSNR (dB), SSIM, MS-SSIM and detail of one clip (T, H, W, 3) uint8 against its reference.

    And its flicker, where there are two frames or more.

    Raises:
        ValueError: dtype or shapes are wrong, or the frames are below 11 pixels.
    """
    frames, truth = frames_from_uint8(video), frames_from_uint8(reference)
    metrics = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}
    quality = {name: float(metrics[name](frames, truth)) for name in QUALITY}
    quality["detail"] = float(detail(frames, truth))
    if len(frames) > 1:
        quality["flicker"] = float(flicker(frames, truth))
    return quality


def summarise_quality(
    clips: Sequence[Mapping[str, float]], worst_share: float
) -> dict[str, dict[str, float]]:
    """Metrics of each clip, as of `clip_quality` -> {metric: {mean, worst}}, worst by `BETTER`.

    Raises:
        ValueError: as `summarise`; a metric that some clips have and some have not, or that is
            not in `BETTER`.
    """
    names = list(clips[0]) if clips else list(QUALITY)
    for index, clip in enumerate(clips):
        if clip.keys() != set(names):
            raise ValueError(
                f"clips: found {', '.join(clip)} at {index}, expected {', '.join(names)}"
            )
    unknown = [name for name in names if name not in BETTER]
    if unknown:
        raise ValueError(
            f"clips: found {', '.join(unknown)}, expected metrics among {', '.join(BETTER)}"
        )
    return {
        name: summarise([clip[name] for clip in clips], worst_share, better=BETTER[name]).to_json()
        for name in names
    }
