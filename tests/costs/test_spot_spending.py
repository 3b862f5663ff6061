"""What spot machines have cost at most, against the bill of every clock that may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_vaed.costs.spot_spending import SKEW_SECONDS, SpotSpending


def bill(prices: list[float], start: float, end: float) -> float:
    """USD of a span of the market's time."""
    usd, at = 0.0, start
    while at < end:
        minute = math.floor(at / 60)
        until = min(end, 60.0 * (minute + 1))
        usd += (until - at) * prices[minute] / 3600
        at = until
    return usd


@dataclass(frozen=True, kw_only=True)
class Use:
    """Spans of the market's time, whose prices stay below their bids."""

    prices: list[float]
    spans: list[tuple[float, float, float]]


@st.composite
def uses(draw: st.DrawFn) -> Use:
    prices = draw(st.lists(st.floats(0.01, 10), min_size=30, max_size=30))
    edges = sorted(draw(st.lists(st.floats(0, 1800), min_size=2, max_size=8)))
    spans = []
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        most = max(prices[int(start // 60) : math.ceil(end / 60)], default=0.01)
        spans.append((start, end, most * draw(st.sampled_from([1.0, 1.25, 3.0]))))
    return Use(prices=prices, spans=spans)


minutes = st.one_of(st.floats(-5, 5), st.sampled_from([-5.0, 0.0, 5.0]))


@settings(deadline=None)
@given(use=uses(), skew=minutes, quoted=st.lists(st.integers(-1, 30), max_size=4))
def test_no_clock_skew_makes_the_bill_higher_than_reported(
    use: Use, skew: float, quoted: list[int]
) -> None:
    spending = SpotSpending(use.prices + [0.01] * 20)
    usd = 0.0
    for number, (start, end, bid) in enumerate(use.spans):
        spending.used(start + 60 * skew, end + 60 * skew, bid)
        usd += bill(use.prices, start, end)
        if number < len(quoted):
            # What a market quotes is of the past.
            spending.settle(min(quoted[number], int(end // 60)))
        assert spending.at_most_usd() >= usd - 1e-12
    at_bids = sum((end - start) * bid for start, end, bid in use.spans) / 3600
    assert spending.at_most_usd() <= at_bids * (1 + 1e-12) + 1e-12


@settings(deadline=None)
@given(use=uses(), skew=minutes, until=st.integers(0, 30))
def test_prices_that_are_not_quoted_yet_are_never_read(use: Use, skew: float, until: int) -> None:
    found = []
    for later in (0.01, 1000.0):
        spending = SpotSpending(use.prices[:until] + [later] * (60 - until))
        for start, end, bid in use.spans:
            spending.used(start + 60 * skew, end + 60 * skew, bid)
        spending.settle(until)
        found.append(spending.at_most_usd())
    assert found[0] == found[1]


def test_quoted_time_counts_at_its_price_and_the_rest_at_the_bid() -> None:
    spending = SpotSpending([1.0] * 200)
    spending.used(0, 3600, 4.0)
    assert spending.at_most_usd() == pytest.approx(4)
    spending.settle(30 + SKEW_SECONDS // 60)  # half an hour, by any clock
    assert spending.at_most_usd() == pytest.approx(0.5 + 2)
    assert spending.open == [(1800, 3600)]
    spending.settle(100)
    assert spending.at_most_usd() == spending.settled_usd() == pytest.approx(1)


def test_a_clock_is_never_taken_to_be_both_ahead_and_behind() -> None:
    """A jump before and one after: a clock that is wrong has run into one of them."""
    prices = [9.0] * 20 + [1.0] * 60 + [9.0] * 60
    spending = SpotSpending(prices)
    spending.used(20 * 60, 80 * 60, 9.0)
    spending.settle(140)
    # Five minutes at 9, the pair of minutes of the whole shift at most one more.
    assert 1 + 5 * 8 / 60 <= spending.at_most_usd() <= 1 + 6 * 8 / 60
