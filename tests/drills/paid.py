"""Whether a ledger has every second that was paid for, and none twice, by what a drill has seen of
machines and processes itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from turbo_vaed.config.stages import RAY_STAGES
from turbo_vaed.costs import Charge, price_source
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.metering.run_stage import CLUSTER_SLICE_SECONDS, SLICE_SECONDS

START_SECONDS = 45.0
"""Between the start of a stage's process and that of its meter at most: imports, joining Ray."""
END_SECONDS = 15.0
"""Between the end of its meter, or the slice that should have been written, and its own."""
CHANGE_SECONDS = 2 * CLUSTER_SLICE_SECONDS
"""Around a machine's loss or start: the meter charges up to two slices too much of it."""
Span = tuple[float, float]
"""Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """A process of a stage, as seen from outside; Unix seconds."""

    stage: str
    began: float
    ended: float
    is_killed: bool

    @property
    def may_lose_seconds(self) -> float:
        """At its end."""
        slice_seconds = CLUSTER_SLICE_SECONDS if self.stage in RAY_STAGES else SLICE_SECONDS
        return END_SECONDS + (slice_seconds if self.is_killed else 0.0)


@dataclass(frozen=True, kw_only=True)
class Uncharged:
    """Seconds of a life that no charge of its stage covers."""

    start: float
    middle: float
    end: float


def of_machines(charges: Iterable[Charge]) -> list[Charge]:
    """Those for the time of machines, without corrections, which add up to nothing."""
    return [
        one
        for one in charges
        if one.unit == UNIT
        and one.started_at < one.ended_at
        and price_source.wasted("", "") not in one.price_source
    ]


def doubled_seconds(
    charges: Iterable[Charge], machines: int, changes: Sequence[float] = ()
) -> float:
    """Machine-seconds that were charged at a moment beyond those of the machines that there are.

    Args:
        charges: of machines.
        machines: how many there are at most.
        changes: when one was lost or came; `CHANGE_SECONDS` around each are left out.
    """
    steps: defaultdict[float, float] = defaultdict(float)
    for one in charges:
        seconds = (one.ended_at - one.started_at).total_seconds()
        steps[one.started_at.timestamp()] += float(one.quantity) / seconds
        steps[one.ended_at.timestamp()] -= float(one.quantity) / seconds
    for change in changes:  # so that each piece lies inside of one or outside
        steps[change - CHANGE_SECONDS] += 0.0
        steps[change + CHANGE_SECONDS] += 0.0
    charged, doubled = 0.0, 0.0
    for began, ended in pairwise(sorted(steps)):
        charged += steps[began]
        middle = (began + ended) / 2
        if not any(abs(middle - change) < CHANGE_SECONDS for change in changes):
            doubled += max(0.0, charged - machines - 1e-3) * (ended - began)
    return doubled


def uncharged(life: Life, charges: Iterable[Charge]) -> Uncharged:
    """What is missing of a life; at its start all of it, where no charge of its stage meets it."""
    spans = _merged(
        (max(life.began, one.started_at.timestamp()), min(life.ended, one.ended_at.timestamp()))
        for one in charges
        if one.stage == life.stage
    )
    if not spans:
        return Uncharged(start=life.ended - life.began, middle=0.0, end=0.0)
    return Uncharged(
        start=spans[0][0] - life.began,
        middle=sum(after[0] - before[1] for before, after in pairwise(spans)),
        end=life.ended - spans[-1][1],
    )


def lost_seconds(lives: Iterable[Life], charges: Sequence[Charge]) -> float:
    """Seconds at the ends of lives that were killed, which are in no charge.

    Raises:
        AssertionError: more than a slice is missing of one, or something that is no end.
    """
    lost, wrong = 0.0, []
    for life in lives:
        found = uncharged(life, charges)
        is_whole = life.is_killed and found.start == life.ended - life.began
        if (
            found.middle > 0.1
            or found.end > life.may_lose_seconds
            or found.start > START_SECONDS + is_whole * life.may_lose_seconds
        ):
            wrong.append(f"of {life}, {found} is not charged")
        lost += found.end if life.is_killed else 0.0
    assert not wrong, "\n".join(wrong)
    return lost


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for began, ended in sorted(spans):
        if began >= ended:
            continue
        if merged and began <= merged[-1][1] + 1e-3:
            merged[-1] = merged[-1][0], max(ended, merged[-1][1])
        else:
            merged.append((began, ended))
    return merged
