"""Months, and charges cut where they meet: the parts are the whole to the last digit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.costs.bills import NOVEMBER, charge
from turbo_vaed.costs import Ledger, total_usd
from turbo_vaed.costs.months import Month, months_between, usd_within
from turbo_vaed.errors import UserError

MIDNIGHT = datetime(2026, 12, 1, tzinfo=UTC)
DECEMBER = Month(year=2026, number=12)
AMOUNTS = st.decimals(min_value="-1e9", max_value="1e9", places=18)
MOMENTS = st.datetimes(datetime(2026, 9, 1), datetime(2027, 3, 1), timezones=st.just(UTC))
SPANS = st.timedeltas(timedelta(0), timedelta(days=150))


def months(start: datetime, end: datetime) -> list[Month]:
    """All that touch the span, and one beside it at each end."""
    first, last = (12 * moment.year + moment.month - 1 for moment in (start, end))
    return [Month(year=n // 12, number=n % 12 + 1) for n in range(first - 1, last + 2)]


def test_adjacent_months_meet() -> None:
    assert (NOVEMBER.since, NOVEMBER.until) == (datetime(2026, 11, 1, tzinfo=UTC), MIDNIGHT)
    assert (DECEMBER.since, DECEMBER.until) == (MIDNIGHT, datetime(2027, 1, 1, tzinfo=UTC))
    assert Month.parse("2026-11") == NOVEMBER and str(NOVEMBER) == "2026-11"


@pytest.mark.parametrize(
    "text",
    [
        "2026-13",
        "2026-00",
        "2026-1",
        "26-11",
        "2026-11-01",
        "",
        "now",
        "2026/08",
        " 2026-08",
        "2026-08\n",
        "0000-01",
        "9999-12",
        "٢٠٢٦-08",
    ],
)
def test_a_text_that_is_not_a_month_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected YYYY-MM"):
        Month.parse(text)


@given(AMOUNTS, MOMENTS, SPANS)
@example(Decimal("1e-18"), MIDNIGHT - timedelta(seconds=1), timedelta(seconds=3))
@example(Decimal(1), MIDNIGHT, timedelta(0))
@example(Decimal(1), MIDNIGHT - timedelta(seconds=1), timedelta(seconds=1))
def test_the_parts_of_a_charge_add_up_to_it(usd: Decimal, start: datetime, span: timedelta) -> None:
    one = charge(usd, started_at=start, ended_at=start + span)
    parts = [usd_within(one, month) for month in months(start, start + span)]
    assert total_usd(part for part in parts if part is not None) == one.amount_usd
    back = replace(one, quantity=-one.quantity, amount_usd=one.amount_usd.copy_negate())
    cancelled = [usd_within(back, month) for month in months(start, start + span)]
    assert [None if p is None else p.copy_negate() for p in cancelled] == parts


def test_a_part_of_a_charge_is_in_proportion_to_its_time() -> None:
    one = charge(
        "3", started_at=MIDNIGHT - timedelta(hours=1), ended_at=MIDNIGHT + timedelta(hours=2)
    )
    assert (usd_within(one, NOVEMBER), usd_within(one, DECEMBER)) == (1, 2)


def test_midnight_is_that_of_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    at = datetime(2026, 12, 1, 8, tzinfo=tokyo)  # 23 h of the day before in UTC
    one = charge("1", started_at=at, ended_at=at + timedelta(hours=1))
    assert (usd_within(one, NOVEMBER), usd_within(one, DECEMBER)) == (1, None)


def test_a_moment_lies_in_one_month() -> None:
    one = charge("1", started_at=MIDNIGHT, ended_at=MIDNIGHT)
    assert (usd_within(one, NOVEMBER), usd_within(one, DECEMBER)) == (None, 1)


def test_the_ledger_returns_every_charge_that_overlaps_a_month(tmp_path: Path) -> None:
    second = timedelta(seconds=1)
    spans = {
        "before": (NOVEMBER.since - 2 * second, NOVEMBER.since - second),
        "across": (NOVEMBER.since - second, NOVEMBER.since + second),
        "around": (NOVEMBER.since - second, NOVEMBER.until + second),
        "moment": (NOVEMBER.since, NOVEMBER.since),
        "last": (NOVEMBER.until - second, NOVEMBER.until),
        "next": (NOVEMBER.until, NOVEMBER.until + second),
    }
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(
            charge("1", run=run, started_at=a, ended_at=b) for run, (a, b) in spans.items()
        )
        found = ledger.charges(since=NOVEMBER.since, until=NOVEMBER.until)
        assert len(ledger.charges()) == len(spans)
        assert ledger.charges(run="last", until=NOVEMBER.until, since=NOVEMBER.since)
    assert {one.run for one in found} == {"across", "around", "moment", "last"}


moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@given(moments)
def test_a_moment_is_in_exactly_one_month(moment: datetime) -> None:
    month = Month.of(moment)
    assert month.since <= moment < month.until == month.next.since
    assert Month.parse(str(month)) == month


def test_a_month_is_one_in_utc() -> None:
    tokyo = datetime(2026, 9, 1, 8, tzinfo=timezone(timedelta(hours=9)))
    assert str(Month.of(tokyo)) == "2026-08"
    assert Month.parse("2026-12").next == Month.parse("2027-01")
    assert Month.parse("2026-08").label == "August 2026"


def test_months_between_are_all_of_them() -> None:
    found = months_between(datetime(2026, 11, 30, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert [str(month) for month in found] == ["2026-11", "2026-12", "2027-01"]
    assert len(months_between(found[0].since, found[0].since)) == 1
