"""A pass over clips checks after every clip whether the budget covers the rest."""

from __future__ import annotations

import itertools

import pytest

from turbo_vaed.dataset import clip_pass
from turbo_vaed.errors import BudgetRefused


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds between two looks at it."""
    seconds = itertools.count(0, 10)
    monkeypatch.setattr(clip_pass.time, "monotonic", lambda: float(next(seconds)))


def test_the_remaining_time_is_estimated_from_the_pace_so_far(clock: None) -> None:
    seconds_left: list[float] = []
    assert list(clip_pass._within_budget("abcd", 4, seconds_left.append)) == list("abcd")
    assert seconds_left == [20.0, 10.0], "two clips to go, then one; nothing is known of the first"


def test_a_pass_ends_when_the_rest_is_beyond_the_budget(clock: None) -> None:
    def check_budget(seconds: float) -> None:
        if seconds > 25:
            raise BudgetRefused("no more")

    seen = []
    with pytest.raises(BudgetRefused):
        for item in clip_pass._within_budget("abcdef", 6, check_budget):
            seen.append(item)
    assert seen == ["a", "b"]


def test_a_pass_beyond_the_budget_does_not_start() -> None:
    def check_budget(seconds: float) -> None:
        raise BudgetRefused(f"{seconds:g} s")

    with pytest.raises(BudgetRefused, match=r"^0 s$"):
        clip_pass.pass_over_clips(
            object, (), [0], batch_size=1, label="x", check_budget=check_budget
        )
