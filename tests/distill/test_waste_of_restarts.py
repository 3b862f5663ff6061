"""What restarts wasted, whatever happens: of workers and of drivers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distill.event_log import PRICE, T0, Books, Clock, lines, make_recorder, start, step
from turbo_vaed.distill.events import RunProgress


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A run with restarts, of workers and of drivers, from any state that was there before."""
    at, done = 0.0, 0
    events: list[dict[str, Any]] = []

    def later() -> float:
        nonlocal at
        at += draw(st.integers(0, 5))
        return at

    for _ in range(draw(st.integers(1, 6))):
        if not events or draw(st.booleans()):
            events.append({"event": "open", "at": T0 + later(), "job": "a", "steps": 99,
                           "usd_per_hour": str(PRICE)})  # fmt: skip
            if draw(st.booleans()):
                continue  # gone before its workers started
        done = draw(st.integers(0, done))
        events.append(start(later(), done or None, world=draw(st.integers(1, 3))))
        for _ in range(draw(st.integers(0, 6))):
            done += 1
            events.append(step(done, later()))
    return events


def idle(events: list[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    """The times when no driver ran: from the last sign of one to the next one's `open`."""
    for last, event in pairwise(events):
        if event["event"] == "open":
            yield last["at"], event["at"]


@given(histories())
def test_waste_never_overlaps_lies_within_the_run_and_covers_repeated_steps(events) -> None:
    run = RunProgress()
    for event in events:
        run.add(event)
    wasted = sorted(part for restart in run.restarts for part in restart.wasted)
    assert all(begin < end for begin, end in wasted)
    assert all(a[1] <= b[0] for a, b in pairwise(wasted))
    for begin, end in wasted:
        assert events[0]["at"] <= begin and end <= events[-1]["at"]
        assert all(min(end, back) <= max(begin, gone) for gone, back in idle(events))
    logged = [event["step"] for event in events if event["event"] == "step"]
    assert sum(restart.lost_steps for restart in run.restarts) == len(logged) - run.step
    seconds = sum(restart.seconds for restart in run.restarts)
    paid = sum((restart.usd for restart in run.restarts), Decimal(0))
    assert float(paid) == pytest.approx(0.0001 * seconds)


@settings(deadline=None)
@given(histories(), st.data())
def test_restarted_drivers_book_the_same_waste_as_one_that_ran_throughout(
    tmp_path_factory, events, data
) -> None:
    """Each `open` is another process, which knows the file alone."""
    whole = RunProgress()
    for event in events:
        whole.add(event)
    path = tmp_path_factory.mktemp("run") / "progress.jsonl"
    books, clock = Books(), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("turbo_vaed.distill.progress.time.time", clock.time)
        recorder = None
        for event in events:
            clock.now = event["at"]
            if event["event"] == "open":
                with path.open("ab") as file:  # whatever the last one was about to write
                    file.write(json.dumps(event).encode()[: data.draw(st.integers(0, 20))])
                recorder = make_recorder(path, books.run_context(), job="a", steps=99).__enter__()
            else:
                assert recorder is not None
                recorder.on_event(event)
    booked = sorted((begin + T0, end + T0) for begin, end, _ in books.wasted)
    wanted = sorted(part for restart in whole.restarts for part in restart.wasted)
    assert booked == [pytest.approx(part, abs=1e-5) for part in wanted]
    assert len(lines(path, "wasted")) == len(whole.restarts)
