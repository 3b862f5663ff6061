"""What a distillation has seen of checkpoints and interruptions, by its progress file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo_vaed.costs.choice import checkpoint_interval_seconds, losses_per_hour
from turbo_vaed.distill.events import LOST, NOTICED, PREPARING, Account, read_events

SAVE_SECONDS, RESTART_SECONDS = 1.0, 45.0
"""Where no checkpoint and no restart was seen yet: as bench/distill.py has them, rounded up."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Medians in seconds, None where nothing was seen; and the losses without notice."""

    save_seconds: float | None
    restart_seconds: float | None
    losses: int
    interruptions: int
    """Machines that were taken, with notice or without."""
    hours: float

    @property
    def checkpoint_every_seconds(self) -> float:
        """Young and Daly, from what was seen."""
        return checkpoint_interval_seconds(
            self.save_seconds or SAVE_SECONDS, losses_per_hour(self.losses, self.hours)
        )


class Watching:
    """What a run shows of itself, event by event."""

    def __init__(self) -> None:
        self.account = Account()
        self._saves: list[float] = []
        self._seconds, self._last_at = 0.0, -math.inf

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event into account."""
        self.account.add(event)
        if event["event"] == PREPARING:  # not in steps, where losses are counted
            return
        if event["event"] == "checkpoint":
            self._saves.append(event["seconds"])
        if self._last_at > -math.inf and event["event"] != "open":  # before it nothing ran
            self._seconds += max(0.0, event["at"] - self._last_at)
        self._last_at = event["at"]

    def seen(self) -> Seen:
        """Up to the last event."""
        restarts = [restart.seconds for restart in self.account.restarts]
        return Seen(
            save_seconds=statistics.median(self._saves) if self._saves else None,
            restart_seconds=statistics.median(restarts) if restarts else None,
            interruptions=sum(
                restart.reason in (NOTICED, LOST) for restart in self.account.restarts
            ),
            losses=sum(restart.reason != NOTICED for restart in self.account.restarts),
            hours=self._seconds / 3600,
        )


def seen_in(progress_file: Path) -> Seen:
    """Of the run in that file, which need not be there.

    Raises:
        CorruptFile: it is no progress file.
    """
    watching = Watching()
    for event in read_events(progress_file) if progress_file.is_file() else ():
        watching.add(event)
    return watching.seen()
