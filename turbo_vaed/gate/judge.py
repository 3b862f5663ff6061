"""What was measured against the thresholds of a use case.

`judge` is pure. A check passes where the whole interval of the measured value is on the right side
of its limit, fails where it is on the wrong side, and is inconclusive otherwise: nothing passes
that was not measured, or not well enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from turbo_vaed.config.schema import UseCase
from turbo_vaed.gate.verdict import CHECK_NAMES, Check, Result, Verdict, judged, result_of

BYTES_PER_MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a package; None where it was not measured. Quality is that of the frames
    that the device put out, against the source video, over the test clips."""

    psnr_db: float | None
    ssim: float | None
    ms_ssim: float | None
    worst_psnr_db: float | None
    """Mean over the worst share of the clips."""
    teacher_psnr_db: float | None
    """The teacher's own reconstruction of the same clips, against the source."""
    parity_psnr_db: float | None
    """The device's output against PyTorch's, of the clip where they differ most."""
    cold_start_seconds: float | None
    peak_memory_bytes: float | None
    package_bytes: float | None
    latency_seconds: float | None
    """Median after warm-up, of a clip."""
    teacher_latency_seconds: float | None
    """As above, the teacher's decoder on the same host."""
    fps: float | None
    """Frames of video per second, by the median, of the program that the device's apps use."""
    flicker_ratio: float | None
    """Of its flicker to the teacher's."""
    detail_retention: float | None
    """Of its detail to the teacher's."""
    intervals: Mapping[str, tuple[float, float]]
    """By check: between which values the measured one lies, at `confidence`."""
    confidence: float
    unknown: Mapping[str, str]
    """By check: why what was measured is no basis for a verdict."""
    broken: str
    """Why the package put out nothing of use, as where it crashed; empty where it did. Checks
    without a value have failed then, for this reason."""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How a check is named and reported."""

    name: str
    threshold: str
    """The limit's name in policy.yaml."""
    what: str
    unit: str
    direction: Literal["min", "max"]
    digits: int = 2


_RULES = (
    _Rule(
        name="psnr_retention", threshold="min_psnr_retention",
        what="PSNR relative to the teacher's", unit="share", direction="min", digits=3,
    ),
    _Rule(
        name="psnr", threshold="min_psnr", what="mean PSNR against the source", unit="dB",
        direction="min",
    ),
    _Rule(
        name="ssim", threshold="min_ssim", what="mean SSIM against the source", unit="",
        direction="min", digits=3,
    ),
    _Rule(
        name="ms_ssim", threshold="min_ms_ssim", what="mean MS-SSIM against the source", unit="",
        direction="min", digits=3,
    ),
    _Rule(
        name="worst_psnr", threshold="min_worst_psnr", what="PSNR of the worst clips", unit="dB",
        direction="min",
    ),
    _Rule(
        name="flicker_ratio", threshold="max_flicker", what="flicker relative to the teacher's",
        unit="ratio", direction="max",
    ),
    _Rule(
        name="detail_retention", threshold="min_detail_retention",
        what="fine structure relative to the teacher's", unit="share", direction="min", digits=3,
    ),
    _Rule(
        name="parity_psnr", threshold="min_parity", what="PSNR of the package against PyTorch",
        unit="dB", direction="min",
    ),
    _Rule(
        name="fps", threshold="min_fps", what="frames per second on the device", unit="fps",
        direction="min", digits=1,
    ),
    _Rule(
        name="cold_start_seconds", threshold="max_cold_start_seconds", what="cold start",
        unit="s", direction="max",
    ),
    _Rule(
        name="peak_memory_mb", threshold="max_peak_memory_mb", what="peak memory", unit="MB",
        direction="max", digits=0,
    ),
    _Rule(
        name="package_mb", threshold="max_package_mb", what="package size", unit="MB",
        direction="max",
    ),
    _Rule(
        name="latency_ratio", threshold="max_latency_ratio",
        what="latency relative to the teacher's", unit="ratio", direction="max",
    ),
)  # fmt: skip
PARITY_RATIONALE = "a correct conversion at this precision stays at least this close to PyTorch"
assert tuple(rule.name for rule in _RULES) == CHECK_NAMES


def judge(
    evidence: Evidence,
    *,
    customer: str,
    use_case: str,
    thresholds: UseCase,
    min_parity_psnr: float,
    package_sha256: str,
    data_sha256: str,
    git_revision: str,
    created: str,
    target: str = "executorch-xnnpack/fp32",
    device: str = "host",
) -> Verdict:
    """Every check of the evidence against the thresholds; `passes` only if all of them pass.

    `min_parity_psnr` is that of the package's precision; the use case may require more.
    """
    latency = evidence.latency_seconds
    measured = {
        "psnr_retention": _ratio(evidence.psnr_db, evidence.teacher_psnr_db),
        "psnr": evidence.psnr_db,
        "ssim": evidence.ssim,
        "ms_ssim": evidence.ms_ssim,
        "worst_psnr": evidence.worst_psnr_db,
        "flicker_ratio": evidence.flicker_ratio,
        "detail_retention": evidence.detail_retention,
        "parity_psnr": evidence.parity_psnr_db,
        "fps": evidence.fps,
        "cold_start_seconds": evidence.cold_start_seconds,
        "peak_memory_mb": _ratio(evidence.peak_memory_bytes, BYTES_PER_MB),
        "package_mb": _ratio(evidence.package_bytes, BYTES_PER_MB),
        "latency_ratio": _ratio(latency, evidence.teacher_latency_seconds),
    }
    limits = limits_of(thresholds, min_parity_psnr)
    rationale = dict(thresholds.rationale)
    if min_parity_psnr > thresholds.min_parity:
        rationale["min_parity"] = PARITY_RATIONALE
    checks = tuple(
        _check(
            rule,
            measured[rule.name],
            evidence,
            limit=limits[rule.name],
            rationale=rationale[rule.threshold],
        )
        for rule in _RULES
    )
    return Verdict(
        customer=customer,
        use_case=use_case,
        result=result_of(checks),
        checks=checks,
        needs_approval=thresholds.needs_approval,
        package_sha256=package_sha256,
        data_sha256=data_sha256,
        git_revision=git_revision,
        created=created,
        confidence=evidence.confidence,
        target=target,
        device=device,
    )


def limits_of(thresholds: UseCase, min_parity_psnr: float) -> dict[str, float]:
    """The limit of each check, for a package of a precision with so high a parity."""
    limits = {rule.name: float(getattr(thresholds, rule.threshold)) for rule in _RULES}
    return limits | {"parity_psnr": max(min_parity_psnr, thresholds.min_parity)}


def least_psnr_db(thresholds: UseCase, teacher_psnr_db: float) -> float:
    """The mean PSNR that its two checks require, with a teacher of `teacher_psnr_db`."""
    return max(thresholds.min_psnr, thresholds.min_psnr_retention * teacher_psnr_db)


def _check(
    rule: _Rule, measured: float | None, evidence: Evidence, *, limit: float, rationale: str
) -> Check:
    value = measured if measured is not None and math.isfinite(measured) else None
    low, high = evidence.intervals.get(rule.name, (None, None))
    unknown = evidence.unknown.get(rule.name, "")
    if value is None:
        low = high = None
        result: Result = "fails" if evidence.broken else "inconclusive"
        why = evidence.broken or unknown
        found = "not measured" + (f": {why}" if why else "")
    elif unknown:
        result = "inconclusive"
        found = f"measured {_format(value, rule, rule.digits)}, unreliable: {unknown}"
    else:
        result = judged(value, low, high, limit, rule.direction)
        found = _measured(value, low, high, limit, rule, result)
    bound = ">=" if rule.direction == "min" else "<="
    reason = f"{rule.what}: required {bound} {_format(limit, rule)}, {found}"
    return Check(
        name=rule.name,
        measured=value,
        low=low,
        high=high,
        limit=limit,
        direction=rule.direction,
        unit=rule.unit,
        result=result,
        reason=reason,
        rationale=rationale,
    )


def _measured(
    value: float, low: float | None, high: float | None, limit: float, rule: _Rule, result: Result
) -> str:
    if result == "inconclusive":
        assert low is not None and high is not None
        interval = f"{low:.{rule.digits}f} to {_format(high, rule, rule.digits)}"
        return f"measured {_format(value, rule, rule.digits)} (interval {interval})"
    # Enough digits to distinguish the two: "required >= 30 dB, measured 30.00 dB" explains nothing.
    digits = rule.digits
    while result == "fails" and digits < 12 and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"measured {_format(value, rule, digits)}"


def _ratio(value: float | None, by: float | None) -> float | None:
    """The quotient, None where it has no meaning."""
    if value is None or by is None or not by > 0 or not math.isfinite(by):
        return None
    return value / by


def _format(value: float, rule: _Rule, digits: int | None = None) -> str:
    """A number with its unit; a limit (`digits` None) as it was typed. Shares and ratios are bare
    numbers."""
    unit = "" if rule.unit in ("share", "ratio") else rule.unit
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return f"{text} {unit}".rstrip()
