"""A verdict: every check of one package, and exactly which package, data and code it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import read_json, write_json

VERDICT_NAME = "verdict.json"
Result = Literal["passes", "fails", "inconclusive"]
CHECK_NAMES = (
    "psnr_retention", "psnr", "ssim", "ms_ssim", "worst_psnr", "flicker_ratio",
    "detail_retention", "parity_psnr", "fps", "cold_start_seconds", "peak_memory_mb",
    "package_mb", "latency_ratio",
)  # fmt: skip
"""Every check that a verdict holds, in order."""
TIMED = ("fps", "cold_start_seconds", "latency_ratio")
"""Checks of times: measured again on a quieter machine, an inconclusive one may be decided."""
_FORMAT = 2
_RENAMED = {"because": "rationale"}
"""Fields of a check as earlier versions wrote them -> their names now."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured value, its limit and what came of it."""

    name: str
    measured: float | None
    """None where there is no usable measurement; then the check has not passed."""
    low: float | None
    high: float | None
    """Between which values the measured one lies; None where it is exact, as a size."""
    limit: float
    direction: Literal["min", "max"]
    """Whether the limit is the least or the most that is allowed; the limit itself passes."""
    unit: str
    result: Result
    reason: str
    """One sentence for a person."""
    rationale: str
    """Why the limit is what it is."""

    @property
    def passed(self) -> bool:
        """Whether it passes, beyond doubt."""
        return self.result == "passes"

    @property
    def margin(self) -> float | None:
        """How far the measured value is on the right side of its limit, in the check's unit;
        below 0 on the wrong one."""
        if self.measured is None:
            return None
        over = self.measured - self.limit
        return over if self.direction == "min" else -over


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every check of one package, and exactly which package, data and code it is about."""

    customer: str
    use_case: str
    result: Result
    checks: tuple[Check, ...]
    needs_approval: bool
    """Whether a person must agree to a promotion even where the result is `passes`."""
    package_sha256: str
    data_sha256: str
    git_revision: str
    created: str
    """ISO 8601, UTC."""
    confidence: float
    """Of the intervals."""
    target: str
    """The runtime and the precision of the package."""
    device: str
    """What measured it."""
    format: int = _FORMAT

    @property
    def not_passed(self) -> tuple[Check, ...]:
        """The checks that did not pass: failed or inconclusive."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes; with each check's margin, for readers that are no
        Python."""
        checks = [asdict(check) | {"margin": check.margin} for check in self.checks]
        return asdict(self) | {"checks": checks}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The verdict that `to_json` gave.

        Raises:
            ValueError: keys are missing or unknown, it is of another format, or it contradicts
                itself: the result does not follow from the checks, or a check's from its value.
        """
        if document.get("format") != _FORMAT:
            raise ValueError(
                f"found format {document.get('format')!r}, expected {_FORMAT}: an older version "
                "wrote it"
            )
        try:
            checks = tuple(Check(**_as_now(check)) for check in document["checks"])
            verdict = cls(**{**_as_now(document), "checks": checks})
            lying = [check.name for check in checks if not _follows(check)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verdict: {error}") from error
        if lying:
            raise ValueError(f"the result of {', '.join(lying)} does not follow from its value")
        names = tuple(check.name for check in checks)
        if names != CHECK_NAMES:
            raise ValueError(f"checks are {', '.join(names)}; expected {', '.join(CHECK_NAMES)}")
        if verdict.result != result_of(checks):
            raise ValueError(f"result is {verdict.result!r}, its checks say {result_of(checks)!r}")
        return verdict


def _as_now(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a check or a verdict, in today's words: registered verdicts stay readable."""
    fields = {_RENAMED.get(name, name): value for name, value in document.items()}
    fields.pop("margin", None)
    return fields | {"result": result_as_now(fields["result"])}


def result_as_now(result: str) -> str:
    """A result as it is called today: earlier versions wrote `cannot tell`."""
    return "inconclusive" if result == "cannot tell" else result


def judged(
    value: float, low: float | None, high: float | None, limit: float, direction: str
) -> Result:
    """The result by the interval, or by the value where it is exact."""
    ends = [value if low is None else low, value if high is None else high]
    right = [end >= limit if direction == "min" else end <= limit for end in ends]
    return "passes" if all(right) else "inconclusive" if any(right) else "fails"


def _follows(check: Check) -> bool:
    """Whether a check's result can be that of its value; a doubt may have other reasons."""
    if check.result == "inconclusive":
        return True
    if check.measured is None:
        return check.result == "fails"
    found = judged(check.measured, check.low, check.high, check.limit, check.direction)
    return check.result == found


def result_of(checks: tuple[Check, ...]) -> Result:
    found = {check.result for check in checks}
    if not found or "fails" in found:
        return "fails"
    return "inconclusive" if "inconclusive" in found else "passes"


def write_verdict(verdict: Verdict, folder: Path) -> Path:
    """Write `folder/verdict.json`, in full or not at all."""
    return write_json(folder / VERDICT_NAME, verdict.to_json())


def read_verdict(path: Path) -> Verdict:
    """The verdict in a file.

    Raises:
        FileNotFoundError: there is none.
        CorruptFile: it is cut short, altered, or contradicts itself.
    """
    document = read_json(path, remedy="run the gate stage again")
    try:
        return Verdict.from_json(document)
    except ValueError as error:
        raise CorruptFile(
            f"{path} is not a whole verdict ({error}); run the gate stage again"
        ) from error
