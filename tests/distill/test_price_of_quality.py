"""What quality costs, and how long a run will take."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.distill.events import recent_usd_per_tenth_db, seconds_left, spent_in_all

usd = st.decimals("0", "95", places=6)
validations = st.lists(st.tuples(usd, st.floats(10, 50)), max_size=12).map(
    lambda rows: list(zip(sorted(r[0] for r in rows), (r[1] for r in rows), strict=True))
)


def test_the_price_of_quality() -> None:
    known = [(Decimal("0.01"), 30.0), (Decimal("0.02"), 30.5), (Decimal("0.03"), 30.4)]
    assert recent_usd_per_tenth_db(known[:1]) is None
    assert recent_usd_per_tenth_db(known[:2]) == pytest.approx(Decimal("0.002"))
    assert recent_usd_per_tenth_db(known) == pytest.approx(
        Decimal("0.004")
    )  # the best stays the best
    assert recent_usd_per_tenth_db([*known[1:], (Decimal("0.04"), 30.5)]) is None
    later = [*known, *[(Decimal(n), 30.5) for n in range(1, 6)]]
    assert recent_usd_per_tenth_db(later) is None  # the gain lies too far back
    assert recent_usd_per_tenth_db(
        [(Decimal(0), float("nan")), *known[:2]]
    ) == recent_usd_per_tenth_db(known[:2])


def test_the_spend_of_a_resumed_run_is_added_to_what_came_before() -> None:
    spent = [Decimal(text) for text in ("0.04", "0.05", "0.01", "0.02", "0.005")]
    in_all = [Decimal(text) for text in ("0.04", "0.05", "0.06", "0.07", "0.075")]
    assert spent_in_all(spent) == in_all
    known = list(zip(spent, (30.0, 30.1, 30.2, 30.3, 30.5), strict=True))
    assert recent_usd_per_tenth_db(known) == pytest.approx(Decimal("0.007"))


@given(validations)
def test_the_price_of_quality_is_never_negative_and_adds_up_to_what_was_paid(known) -> None:
    price = recent_usd_per_tenth_db(known)
    if price is None:
        return
    assert price >= 0
    best = [max(psnr for _, psnr in known[: i + 1]) for i in range(len(known))][-5:]
    paid = known[-1][0] - known[-len(best)][0]
    assert float(price) * 10 * (best[-1] - best[0]) == pytest.approx(float(paid), abs=1e-9)


def test_time_left_includes_validations_and_ignores_a_single_delay() -> None:
    reached, now = {0: 0.0}, 0.0
    for n in range(1, 101):
        now += 1 + (4 if n % 10 == 0 else 0) + (300 if n == 95 else 0)
        reached[n] = now
    validated = list(range(10, 101, 10))
    assert seconds_left(reached, [], step=100, steps=300) == pytest.approx(200)
    assert seconds_left(reached, validated, step=100, steps=300) == pytest.approx(200 + 20 * 4)
    assert seconds_left({0: 0.0}, [], step=0, steps=300) is None
    assert seconds_left(reached, validated, step=100, steps=100) == 0
