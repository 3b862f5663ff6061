"""The storage that checkpoints take in a bucket, by the events about them."""

from __future__ import annotations

from typing import Any

from turbo_vaed.metering.stored_checkpoints import Fetched, Stored, stored_checkpoints

START = {"event": "start", "world": 2, "checkpoint": None}
END = {"event": "end", "stopped": "finished"}


def saved(step: int, at: float, size: int = 100) -> dict[str, Any]:
    return {"event": "checkpoint", "step": step, "at": at, "name": f"{step}.pt", "bytes": size}


def test_a_checkpoint_is_stored_until_enough_newer_ones_exist() -> None:
    events = [{**START, "at": 0.0}, *(saved(i, 10.0 * i) for i in (1, 2, 3, 4))]
    found = stored_checkpoints(events, keep=1, now=100.0)
    assert found.stored == [Stored(100, 10, 30), Stored(100, 20, 40), Stored(100, 30, 100),
                           Stored(100, 40, 100)]  # fmt: skip
    done = stored_checkpoints([*events, {**END, "at": 50.0}], keep=1, now=100.0)
    assert [one.ended_at for one in done.stored] == [30, 40, 50, 100], "the end keeps the last one"
    late = [*events[:-1], {**END, "at": 39.0}, events[-1]]  # as the saver's thread reports it
    assert [one.ended_at for one in stored_checkpoints(late, keep=1, now=1e6).stored[2:]] == [
        39,
        1e6,
    ]
    diverged = stored_checkpoints(
        [*events, {**END, "stopped": "diverged", "at": 50.0}], keep=1, now=1e6
    )
    assert [one.ended_at for one in diverged.stored] == [30, 40, 50, 50], "and a divergence none"
    stopped = stored_checkpoints(
        [*events, {**END, "stopped": "budget", "at": 50.0}], keep=1, now=100.0
    )
    assert stopped.stored == found.stored, "there may be more to do"


def test_every_worker_downloads_the_checkpoint_that_it_resumes_from() -> None:
    events = [
        {**START, "at": 0.0},
        saved(1, 10.0, size=7),
        {**START, "at": 20.0, "checkpoint": "1.pt"},
        {**START, "at": 30.0, "checkpoint": "of-an-earlier-file.pt"},
    ]
    assert stored_checkpoints(events, keep=3, now=40.0).fetched == [Fetched(14, 20.0)]
    assert stored_checkpoints([], keep=3, now=0.0) == ([], [])
