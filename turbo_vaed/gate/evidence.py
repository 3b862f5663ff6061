"""Measurements and frames -> what the gate judges, with the interval of each figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from turbo_vaed.devices import Failed, Measurement, MedianInterval
from turbo_vaed.devices.timing import interval_of_median
from turbo_vaed.export import Package
from turbo_vaed.gate.judge import Evidence
from turbo_vaed.gate.output_quality import OutputQuality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_FLICKER = 0.001
"""Of the teacher: a quarter of an 8-bit step, below which nobody sees any, counts as so much."""
LEAST_DETAIL = 0.01
"""Of the teacher, as a share of the source's: one that keeps less has none to be kept."""


def evidence_of(
    package: Package,
    found: Measurement | Failed,
    teacher_seconds: Sequence[float],
    output: OutputQuality,
    evaluation: Mapping[str, Any],
    confidence: float,
    *,
    on_device: Measurement | Failed | None = None,
    teacher_unreliable_reason: str = "",
) -> Evidence:
    """All that is known of a package. Intervals are those of `confidence`.

    Args:
        found: of its program for the clips: what it put out, and its time against the teacher's.
        on_device: of the other one, where it is another: its speed and its memory count.
        teacher_seconds: of its decoder, per clip, which the package is compared with.
        teacher_unreliable_reason: why those are no basis for a verdict; empty where they are.
    """
    figures, intervals = _quality(output, evaluation, confidence)
    used = found if on_device is None else on_device
    timed = found if isinstance(found, Measurement) else None
    paced = used if isinstance(used, Measurement) else None
    by = interval_of_median(teacher_seconds, confidence)
    unknown: dict[str, str] = {}
    if timed is not None:
        intervals["latency_ratio"] = _ratio(timed.latency, by)
        if unreliable_reason := timed.unreliable_reason or teacher_unreliable_reason:
            unknown["latency_ratio"] = unreliable_reason
    if paced is not None:
        intervals |= _pace(paced)
        if paced.unreliable_reason:
            unknown |= dict.fromkeys(("fps", "cold_start_seconds"), paced.unreliable_reason)
    if len(output.clips) == 1:
        unknown |= dict.fromkeys(figures, "one test clip has no interval")
    broken = next((one.reason for one in (found, used) if isinstance(one, Failed)), "")
    if timed is not None and output.quality is None:
        broken = "the package put out NaN or infinity"
    return Evidence(
        psnr_db=figures.get("psnr"),
        ssim=figures.get("ssim"),
        ms_ssim=figures.get("ms_ssim"),
        worst_psnr_db=figures.get("worst_psnr"),
        teacher_psnr_db=evaluation["teacher"]["psnr"]["mean"],
        flicker_ratio=figures.get("flicker_ratio"),
        detail_retention=figures.get("detail_retention"),
        parity_psnr_db=output.parity_psnr_db,
        cold_start_seconds=paced.cold_start_seconds if paced else None,
        peak_memory_bytes=paced.peak_memory_bytes if paced else None,
        package_bytes=package.size_bytes,
        latency_seconds=timed.latency.median if timed else None,
        teacher_latency_seconds=by.median,
        fps=paced.fps if paced else None,
        intervals=intervals,
        confidence=confidence,
        unknown=unknown,
        broken=broken,
    )


def _pace(found: Measurement) -> dict[str, tuple[float, float]]:
    latency = found.latency
    starts = found.cold_starts or (found.cold_start_seconds,)
    return {
        "cold_start_seconds": (min(starts), max(starts)),
        "fps": (found.frames / latency.high, found.frames / latency.low),
    }


def _ratio(own: MedianInterval, by: MedianInterval) -> tuple[float, float]:
    return own.low / by.high, own.high / by.low


def _quality(
    output: OutputQuality, evaluation: Mapping[str, Any], confidence: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Figures of the frames by check, and their intervals over the clips."""
    if output.quality is None:
        return {}, {}
    import numpy as np

    from turbo_vaed.metrics import bootstrap, summarise

    rows = evaluation["clips"]
    own = {name: np.array([clip[name] for clip in output.clips]) for name in output.clips[0]}
    teacher = {name: np.array([row["teacher"][name] for row in rows]) for name in own}
    worst_share = evaluation["worst_share"]

    def mean(values: NDArray[np.float64], at: NDArray[np.intp]) -> float:
        return float(values[at].mean())

    def ratio(name: str, least: float = 0.0) -> Callable[[NDArray[np.intp]], float]:
        # Of the means, over the same clips: an easy clip is easy for both.
        return lambda at: mean(own[name], at) / max(mean(teacher[name], at), least)

    statistic: dict[str, Callable[[NDArray[np.intp]], float]] = {
        "psnr_retention": ratio("psnr"),
        "psnr": lambda at: mean(own["psnr"], at),
        "ssim": lambda at: mean(own["ssim"], at),
        "ms_ssim": lambda at: mean(own["ms_ssim"], at),
        "worst_psnr": lambda at: summarise(own["psnr"][at].tolist(), worst_share).worst,
        "detail_retention": ratio("detail", LEAST_DETAIL),
    }
    if "flicker" in own:
        statistic["flicker_ratio"] = ratio("flicker", LEAST_FLICKER)
    everything = np.arange(len(rows))
    videos = [row["path"] for row in rows]
    figures = {name: of(everything) for name, of in statistic.items()}
    if len(rows) < 2:
        return figures, {}
    return figures, {
        name: bootstrap(of, videos, confidence, is_extreme=name == "worst_psnr")
        for name, of in statistic.items()
    }
