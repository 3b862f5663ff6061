"""Which of several packages ships, and why in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from turbo_vaed.gate.verdict import TIMED, Verdict

How = Literal["fastest", "best"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A package that was measured and judged."""

    name: str
    """`executorch-xnnpack/int8`."""
    verdict: Verdict
    psnr_db: float | None
    """Of the device's output, against the source."""
    latency_seconds: float | None
    """Median."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What ships, and why."""

    name: str
    reason: str


def choose(candidates: Sequence[Candidate], how: How) -> Choice:
    """Of those that pass, the fastest or the one of the best PSNR.

    Where none passes it is the closest, which is not promoted: one that ran, with the fewest failed
    checks, then with the fewest inconclusive checks of quality or size (measuring again may settle
    times, and nothing else), then with the fewest inconclusive ones. Ties go to the faster one,
    then the better, then the smaller, then the first by name.

    Raises:
        ValueError: there is no candidate.
    """
    if not candidates:
        raise ValueError("candidates: found none, expected one or more")
    passing = [c for c in candidates if c.verdict.result == "passes"]
    if not passing:
        chosen = min(candidates, key=lambda c: (*_shortfall(c), *_order(c, how)))
        reason = f"none of {len(candidates)} packages passes; {chosen.name} is the closest"
        if len(candidates) == 1:
            reason = "it is the only package, and it does not pass"
        return Choice(name=chosen.name, reason=reason)
    chosen = min(passing, key=lambda c: _order(c, how))
    if len(candidates) == 1:
        return Choice(name=chosen.name, reason="it is the only package, and it passes")
    if len(passing) == 1:
        reason = f"{chosen.name} is the only one of {len(candidates)} packages that passes"
    else:
        what = "is the fastest" if how == "fastest" else "has the best PSNR"
        of = f"{len(passing)} packages that pass, of {len(candidates)} that were measured"
        reason = f"{chosen.name} {what} of the {of}"
    return Choice(name=chosen.name, reason=reason)


def _shortfall(candidate: Candidate) -> tuple[bool, int, int, int]:
    failed = candidate.verdict.not_passed
    fails = sum(check.result == "fails" for check in failed)
    inconclusive = [check for check in failed if check.result == "inconclusive"]
    not_timed = sum(check.name not in TIMED for check in inconclusive)
    return candidate.psnr_db is None, fails, not_timed, len(inconclusive)


def _order(candidate: Candidate, how: How) -> tuple[float, float, int, str]:
    """Least first; what did not run is last."""
    unknown = float("inf")
    slow = unknown if candidate.latency_seconds is None else candidate.latency_seconds
    poor = unknown if candidate.psnr_db is None else -candidate.psnr_db
    first, second = (slow, poor) if how == "fastest" else (poor, slow)
    return first, second, candidate.size_bytes, candidate.name


def reason_to_repeat(result: str, not_passed: Iterable[str], choice: Mapping[str, Any]) -> str:
    """Why measuring again may settle an inconclusive verdict: the machine was busy, say. Empty of
    another result, and where quality is inconclusive, too: the same frames would be measured.

    Args:
        not_passed: names of the verdict's checks that did not pass.
        choice: choice.json, which has the chosen package's measurement.
    """
    if result != "inconclusive" or any(name not in TIMED for name in not_passed):
        return ""
    (chosen,) = (one for one in choice["candidates"] if one["name"] == choice["chosen"])
    return str(chosen.get("unreliable_reason", ""))


def repeat_advice(reason: str) -> str:
    """What a reason to repeat means, and what to do."""
    return (
        f"This is not evidence against the student ({reason}). Run the same command again while "
        "that machine is otherwise idle: only the measurement is repeated."
    )
