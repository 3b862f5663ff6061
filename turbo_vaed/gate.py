"""The gate: what was measured against the thresholds of a use case, as a verdict with evidence.

`judge` is pure. What is missing, NaN or infinite fails its check: nothing passes unmeasured.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self
from uuid import uuid4

from turbo_vaed.errors import CorruptFile
from turbo_vaed.params import UseCase

VERDICT_NAME = "verdict.json"
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
    """Median after warm-up."""
    teacher_latency_seconds: float | None
    """As above, the teacher's decoder on the same host."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured value, its limit and what came of it."""

    name: str
    measured: float | None
    """None where there is no usable measurement; then the check has failed."""
    limit: float
    direction: Literal["min", "max"]
    """Whether the limit is the least or the most that is allowed; the limit itself passes."""
    unit: str
    passed: bool
    reason: str
    """One sentence for a person."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every check of one package, and exactly which package, data and code it is about."""

    customer: str
    use_case: str
    result: Literal["passes", "fails"]
    checks: tuple[Check, ...]
    needs_approval: bool
    """Whether a person must agree to a promotion even where the result is `passes`."""
    package_sha256: str
    data_sha256: str
    git_revision: str
    created: str
    """ISO 8601, UTC."""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The verdict that `to_json` gave.

        Raises:
            ValueError: keys are missing or unknown, or it contradicts itself: the result does
                not follow from the checks, or a check's from its value.
        """
        try:
            checks = tuple(Check(**check) for check in document["checks"])
            verdict = cls(**{**document, "checks": checks})
            lying = [
                check.name
                for check in checks
                if check.passed is not _within(check.measured, check.limit, check.direction)
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verdict: {error}") from error
        if lying:
            raise ValueError(f"the result of {', '.join(lying)} does not follow from its value")
        names = tuple(check.name for check in checks)
        if names != CHECK_NAMES:
            raise ValueError(f"checks are {', '.join(names)}; expected {', '.join(CHECK_NAMES)}")
        if verdict.result != _result(checks):
            raise ValueError(f"result is {verdict.result!r}, its checks say {_result(checks)!r}")
        return verdict


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How a check is named, computed and said."""

    name: str
    what: str
    unit: str
    direction: Literal["min", "max"]
    digits: int = 2


_RULES = (
    _Rule(
        name="psnr_retention", what="PSNR kept of the teacher's", unit="share",
        direction="min", digits=3,
    ),
    _Rule(name="psnr", what="mean PSNR against the source", unit="dB", direction="min"),
    _Rule(name="ssim", what="mean SSIM against the source", unit="", direction="min", digits=3),
    _Rule(
        name="ms_ssim", what="mean MS-SSIM against the source", unit="", direction="min", digits=3
    ),
    _Rule(name="worst_psnr", what="PSNR of the worst clips", unit="dB", direction="min"),
    _Rule(name="parity_psnr", what="PSNR of package against PyTorch", unit="dB", direction="min"),
    _Rule(name="cold_start_seconds", what="cold start", unit="s", direction="max"),
    _Rule(name="peak_memory_mb", what="peak memory", unit="MB", direction="max", digits=0),
    _Rule(name="package_mb", what="package size", unit="MB", direction="max"),
    _Rule(
        name="latency_ratio", what="latency over the teacher's", unit="ratio", direction="max"
    ),
)  # fmt: skip
CHECK_NAMES = tuple(rule.name for rule in _RULES)
"""Every check that a verdict holds, in order."""


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
) -> Verdict:
    """Every check of the evidence against the thresholds; `passes` only if all of them pass."""
    measured = {
        "psnr_retention": _ratio(evidence.psnr_db, evidence.teacher_psnr_db),
        "psnr": evidence.psnr_db,
        "ssim": evidence.ssim,
        "ms_ssim": evidence.ms_ssim,
        "worst_psnr": evidence.worst_psnr_db,
        "parity_psnr": evidence.parity_psnr_db,
        "cold_start_seconds": evidence.cold_start_seconds,
        "peak_memory_mb": _ratio(evidence.peak_memory_bytes, BYTES_PER_MB),
        "package_mb": _ratio(evidence.package_bytes, BYTES_PER_MB),
        "latency_ratio": _ratio(evidence.latency_seconds, evidence.teacher_latency_seconds),
    }
    limits = {
        "psnr_retention": thresholds.min_psnr_retention,
        "psnr": thresholds.min_psnr,
        "ssim": thresholds.min_ssim,
        "ms_ssim": thresholds.min_ms_ssim,
        "worst_psnr": thresholds.min_worst_psnr,
        "parity_psnr": min_parity_psnr,
        "cold_start_seconds": thresholds.max_cold_start_seconds,
        "peak_memory_mb": thresholds.max_peak_memory_mb,
        "package_mb": thresholds.max_package_mb,
        "latency_ratio": thresholds.max_latency_ratio,
    }
    checks = tuple(_check(rule, measured[rule.name], limits[rule.name]) for rule in _RULES)
    return Verdict(
        customer=customer,
        use_case=use_case,
        result=_result(checks),
        checks=checks,
        needs_approval=thresholds.needs_approval,
        package_sha256=package_sha256,
        data_sha256=data_sha256,
        git_revision=git_revision,
        created=created,
    )


def least_psnr_db(thresholds: UseCase, teacher_psnr_db: float) -> float:
    """The mean PSNR that both checks of it ask for, where the teacher has so many dB."""
    return max(thresholds.min_psnr, thresholds.min_psnr_retention * teacher_psnr_db)


def write_verdict(verdict: Verdict, folder: Path) -> Path:
    """Write `folder/verdict.json`, in full or not at all."""
    path = folder / VERDICT_NAME
    temporary = folder / f".{VERDICT_NAME}.{uuid4().hex}"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(verdict.to_json(), stream, indent=1, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_verdict(path: Path) -> Verdict:
    """The verdict in a file.

    Raises:
        FileNotFoundError: there is none.
        CorruptFile: it is cut short, altered, or contradicts itself.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"found {type(document).__name__}, expected a mapping")
        return Verdict.from_json(document)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CorruptFile(
            f"{path} is not a whole verdict ({error}); run the gate stage again"
        ) from error


def _check(rule: _Rule, measured: float | None, limit: float) -> Check:
    usable = measured is not None and math.isfinite(measured)
    passed = _within(measured, limit, rule.direction)
    bound = "at least" if rule.direction == "min" else "at most"
    allowed = f"{bound} {_say(limit, rule)} is asked"
    if not usable:
        reason = f"{rule.what}: not measured; {allowed}"
    else:
        assert measured is not None
        # Digits that tell the two apart: "30.00 dB is below 30.00 dB" explains nothing.
        digits = rule.digits
        while not passed and digits < 12 and f"{measured:.{digits}f}" == f"{limit:.{digits}f}":
            digits += 1
        word = "holds" if passed else "misses"
        reason = f"{rule.what}: {_say(measured, rule, digits)} {word} the limit; {allowed}"
    return Check(
        name=rule.name,
        measured=measured if usable else None,
        limit=limit,
        direction=rule.direction,
        unit=rule.unit,
        passed=passed,
        reason=reason,
    )


def _within(measured: float | None, limit: float, direction: str) -> bool:
    if measured is None or not math.isfinite(measured):
        return False
    return measured >= limit if direction == "min" else measured <= limit


def _result(checks: tuple[Check, ...]) -> Literal["passes", "fails"]:
    return "passes" if checks and all(check.passed for check in checks) else "fails"


def _ratio(value: float | None, by: float | None) -> float | None:
    """The quotient, None where it has no meaning."""
    if value is None or by is None or not by > 0 or not math.isfinite(by):
        return None
    return value / by


def _say(value: float, rule: _Rule, digits: int | None = None) -> str:
    if digits is None:  # a limit: the digits that a person typed
        return f"{value:g} {rule.unit}".rstrip()
    return f"{value:.{digits}f} {rule.unit}".rstrip()
