"""Which of several packages ships: pure, and said in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from turbo_vaed.gate.verdict import TIMED, Verdict

How = Literal["fastest", "best"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A package that was measured and judged."""

    name: str
    """`executorch-xnnpack/int8`."""
    verdict: Verdict
    psnr_db: float | None
    """Of what the device put out, against the source."""
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

    Where none passes, it is one that ran, with the fewest failed checks, then with the fewest whose
    uncertainty is not one of times, which another measurement may end, then with the fewest that
    are not certain; and it ships nowhere: its verdict says why. Among equals the faster one counts,
    then the better one, then the smaller one, then the first by name.

    Raises:
        ValueError: there is no candidate.
    """
    if not candidates:
        raise ValueError("candidates: found none, expected one or more")
    passing = [c for c in candidates if c.verdict.result == "passes"]
    if not passing:
        chosen = min(candidates, key=lambda c: (*_shortfall(c), *_order(c, how)))
        return Choice(
            name=chosen.name,
            reason=f"none of {len(candidates)} packages passes; {chosen.name} is the closest to it",
        )
    chosen = min(passing, key=lambda c: _order(c, how))
    if len(candidates) == 1:
        return Choice(name=chosen.name, reason="it is the only package, and passes")
    what = "the fastest" if how == "fastest" else "of the best PSNR"
    return Choice(
        name=chosen.name,
        reason=f"{chosen.name} is {_of(what, len(passing))}, of {len(candidates)}",
    )


def _of(what: str, passing: int) -> str:
    return "the only one that passes" if passing == 1 else f"{what} of the {passing} that pass"


def _shortfall(candidate: Candidate) -> tuple[bool, int, int, int]:
    open_ = candidate.verdict.failed
    fails = sum(check.result == "fails" for check in open_)
    in_doubt = sum(check.result == "inconclusive" and check.name not in TIMED for check in open_)
    return candidate.psnr_db is None, fails, in_doubt, len(open_) - fails


def _order(candidate: Candidate, how: How) -> tuple[float, float, int, str]:
    """Least first; what did not run is last."""
    unknown = float("inf")
    slow = unknown if candidate.latency_seconds is None else candidate.latency_seconds
    poor = unknown if candidate.psnr_db is None else -candidate.psnr_db
    first, second = (slow, poor) if how == "fastest" else (poor, slow)
    return first, second, candidate.size_bytes, candidate.name
