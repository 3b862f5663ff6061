"""What checkpoints take of a bucket, by what was told of them."""

from __future__ import annotations

from typing import Any

from turbo_vaed.distill.bucket import Fetched, Lying, in_bucket

START = {"event": "start", "world": 2, "checkpoint": None}
END = {"event": "end", "stopped": "finished"}


def saved(step: int, at: float, size: int = 100) -> dict[str, Any]:
    return {"event": "checkpoint", "step": step, "at": at, "name": f"{step}.pt", "bytes": size}


def test_a_checkpoint_lies_there_until_enough_came_after_it() -> None:
    events = [{**START, "at": 0.0}, *(saved(i, 10.0 * i) for i in (1, 2, 3, 4))]
    found = in_bucket(events, keep=1, now=100.0)
    assert found.lying == [Lying(100, 10, 30), Lying(100, 20, 40), Lying(100, 30, 100),
                           Lying(100, 40, 100)]  # fmt: skip
    done = in_bucket([*events, {**END, "at": 50.0}], keep=1, now=100.0)
    assert [one.ended_at for one in done.lying] == [30, 40, 50, 100], "the end keeps the last one"
    late = [*events[:-1], {**END, "at": 39.0}, events[-1]]  # as the saver's thread tells it
    assert [one.ended_at for one in in_bucket(late, keep=1, now=1e6).lying[2:]] == [39, 1e6]
    diverged = in_bucket([*events, {**END, "stopped": "diverged", "at": 50.0}], keep=1, now=1e6)
    assert [one.ended_at for one in diverged.lying] == [30, 40, 50, 50], "and a divergence none"
    stopped = in_bucket([*events, {**END, "stopped": "budget", "at": 50.0}], keep=1, now=100.0)
    assert stopped.lying == found.lying, "there may be more to do"


def test_every_worker_reads_the_checkpoint_that_it_goes_on_from() -> None:
    events = [
        {**START, "at": 0.0},
        saved(1, 10.0, size=7),
        {**START, "at": 20.0, "checkpoint": "1.pt"},
        {**START, "at": 30.0, "checkpoint": "of-an-earlier-file.pt"},
    ]
    assert in_bucket(events, keep=3, now=40.0).fetched == [Fetched(14, 20.0)]
    assert in_bucket([], keep=3, now=0.0) == ([], [])
