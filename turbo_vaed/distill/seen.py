"""What a distillation has seen of checkpoints and interruptions, by its progress file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from turbo_vaed.costs.choice import checkpoint_interval_seconds, losses_per_hour
from turbo_vaed.distill.events import PREPARING, Account, read_events

SAVE_SECONDS, RESTART_SECONDS = 1.0, 45.0
"""Where no checkpoint and no restart was seen yet: as bench/distill.py has them, rounded up."""
_NOTICED = "machine taken back with notice"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Medians in seconds, None where nothing was seen; and the losses without notice."""

    save_seconds: float | None
    restart_seconds: float | None
    losses: int
    hours: float

    @property
    def checkpoint_every_seconds(self) -> float:
        """Young and Daly, from what was seen."""
        return checkpoint_interval_seconds(
            self.save_seconds or SAVE_SECONDS, losses_per_hour(self.losses, self.hours)
        )


def seen_in(progress_file: Path) -> Seen:
    """Of the run in that file, which need not be there.

    Raises:
        CorruptFile: it is no progress file.
    """
    account, saves, seconds, last = Account(), [], 0.0, None
    for event in read_events(progress_file) if progress_file.is_file() else ():
        account.add(event)
        if event["event"] == PREPARING:  # not in steps, where losses are counted
            continue
        if event["event"] == "checkpoint":
            saves.append(event["seconds"])
        if last is not None and event["event"] != "open":  # before an `open` nothing ran
            seconds += max(0.0, event["at"] - last)
        last = event["at"]
    restarts = [restart.seconds for restart in account.restarts]
    return Seen(
        save_seconds=statistics.median(saves) if saves else None,
        restart_seconds=statistics.median(restarts) if restarts else None,
        losses=sum(restart.reason != _NOTICED for restart in account.restarts),
        hours=seconds / 3600,
    )
