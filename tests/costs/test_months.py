"""Months as periods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.costs.months import Month, months_between
from turbo_vaed.errors import UserError

moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@given(moments)
def test_a_moment_lies_in_its_month_and_in_no_other(moment: datetime) -> None:
    month = Month.of(moment)
    assert month.since <= moment < month.until == month.next.since
    assert Month.parse(str(month)) == month


def test_a_month_is_one_in_utc() -> None:
    tokyo = datetime(2026, 9, 1, 8, tzinfo=timezone(timedelta(hours=9)))
    assert str(Month.of(tokyo)) == "2026-08"
    assert Month.parse("2026-12").next == Month.parse("2027-01")
    assert Month.parse("2026-08").label == "August 2026"


@pytest.mark.parametrize(
    "text",
    ["", "2026", "2026-8", "2026-13", "2026-00", "26-08", "2026-08-01", "2026/08", " 2026-08",
     "2026-08\n", "0000-01", "9999-12", "٢٠٢٦-08"],
)  # fmt: skip
def test_what_is_no_month_is_a_users_mistake(text: str) -> None:
    with pytest.raises(UserError, match="expected YYYY-MM"):
        Month.parse(text)


def test_months_between_are_all_of_them() -> None:
    found = months_between(datetime(2026, 11, 30, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert [str(month) for month in found] == ["2026-11", "2026-12", "2027-01"]
    assert len(months_between(found[0].since, found[0].since)) == 1
