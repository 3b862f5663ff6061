"""A pass over clips is asked, clip by clip, whether the rest can be afforded."""

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


def test_the_rest_is_told_by_what_the_last_clips_took(clock: None) -> None:
    told: list[float] = []
    assert list(clip_pass._afforded("abcd", 4, told.append)) == list("abcd")
    assert told == [20.0, 10.0], "two clips to go, then one; nothing is known of the first"


def test_a_pass_ends_with_what_cannot_be_afforded(clock: None) -> None:
    def afford(seconds: float) -> None:
        if seconds > 25:
            raise BudgetRefused("no more")

    seen = []
    with pytest.raises(BudgetRefused):
        for item in clip_pass._afforded("abcdef", 6, afford):
            seen.append(item)
    assert seen == ["a", "b"]


def test_nothing_is_started_that_cannot_be_afforded() -> None:
    def afford(seconds: float) -> None:
        raise BudgetRefused(f"{seconds:g} s")

    with pytest.raises(BudgetRefused, match=r"^0 s$"):
        clip_pass.pass_over_clips(object, (), [0], batch_size=1, label="x", afford=afford)
