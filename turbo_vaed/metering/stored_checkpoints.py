"""Which checkpoints of a run lay where they were written, and for how long, by its event log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Stored(NamedTuple):
    """A checkpoint; moments in Unix seconds."""

    size_bytes: int
    began_at: float
    ended_at: float


class Fetched(NamedTuple):
    """A checkpoint that workers read to go on from, by all of them together."""

    size_bytes: int
    at: float


class StoredCheckpoints(NamedTuple):
    """Of a run, and how often they were read."""

    stored: list[Stored]
    fetched: list[Fetched]


def stored_checkpoints(
    events: Iterable[Mapping[str, Any]], *, keep: int, now: float
) -> StoredCheckpoints:
    """The checkpoints that a run has written, and those that were read.

    One lies there until `keep` more and another one, for the best step's is kept besides, were
    written after it; all but the last are gone when every step is done, and all
    when the run has diverged.

    Args:
        events: of the progress file, in order.
        keep: `distill.keep_checkpoints`.
        now: Unix seconds, of what still lies there.
    """
    written: list[tuple[int, float]] = []
    gone: dict[int, float] = {}
    sizes: dict[str, int] = {}
    fetched, ended_at, is_kept = [], None, True
    for event in events:
        at = float(event["at"])
        if event["event"] == "checkpoint":
            written.append((event["bytes"], at))
            sizes[event["name"]] = event["bytes"]
            gone.setdefault(len(written) - 2 - keep, at)
        elif event["event"] == "start" and event["checkpoint"] in sizes:
            fetched.append(Fetched(sizes[event["checkpoint"]] * event["world"], at))
        # The last checkpoint is written after the end; a run's next workers write anew.
        if event["event"] == "start":
            ended_at = None
        elif event["event"] == "end" and event["stopped"] in ("finished", "diverged"):
            ended_at, is_kept = at, event["stopped"] == "finished"
    last = now if ended_at is None else ended_at
    if is_kept and written:
        gone[len(written) - 1] = now
    stored = [
        Stored(size, began, max(began, gone.get(number, last)))
        for number, (size, began) in enumerate(written)
    ]
    return StoredCheckpoints(stored, fetched)
