from __future__ import annotations

from decimal import Context, Decimal, Inexact
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_vaed.costs.money import (
    AMOUNT_QUANTUM,
    PRICE_QUANTUM,
    difference_usd,
    format_usd,
    from_units,
    mismatch_usd,
    parse_usd,
    per_second,
    plain,
    quantise_usd,
    seconds_usd,
    share,
    time_usd,
    to_units,
    total_usd,
    usd_per,
)
from turbo_vaed.errors import UserError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.08", "0.08"),
        (" $1,234.50 ", "1234.50"),
        ("-$5", "-5"),
        (95, "95"),
        (Decimal("1e-12"), "1e-12"),
    ],
)
def test_parse_keeps_every_digit(value: str | int | Decimal, expected: str) -> None:
    assert parse_usd(value) == Decimal(expected)


@pytest.mark.parametrize("value", [0.08, True, None, "NaN", "inf", "eight cents", "", "$$5", "1$2"])
def test_parse_refuses_floats_and_nonsense(value: object) -> None:
    with pytest.raises(UserError, match="money: found"):
        parse_usd(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("0", "$0.00"),
        ("95", "$95.00"),
        ("0E-12", "$0.00"),
        ("1234.5", "$1,234.50"),
        ("12.3456", "$12.35"),
        ("0.5", "$0.50"),
        ("0.01234", "$0.0123"),
        ("0.00005312", "$0.000053"),
        ("0.9999", "$1.00"),
        ("-0.0123", "-$0.0123"),
        ("0.0000004", "<$0.000001"),
        ("-0.0000004", "-<$0.000001"),
    ],
)
def test_format(amount: str, expected: str) -> None:
    assert format_usd(Decimal(amount)) == expected


@settings(deadline=None)
@given(st.decimals(min_value="-1e6", max_value="1e6", allow_nan=False, places=12))
def test_only_zero_is_formatted_as_zero(amount: Decimal) -> None:
    assert (format_usd(amount) == "$0.00") == (amount == 0)


def test_sum_is_exact_where_the_default_context_rounds() -> None:
    amounts = [Decimal("99999999999999999999"), Decimal("1e-12")]
    assert total_usd(amounts) == Decimal("99999999999999999999.000000000001")
    assert sum(amounts) != total_usd(amounts)
    with pytest.raises(Inexact):
        total_usd([Decimal("1e60"), Decimal("1e-12")])


@settings(deadline=None)
@given(
    st.integers(0, 10**15),
    st.decimals(min_value=0, max_value=1000, places=6, allow_nan=False, allow_infinity=False),
)
def test_time_times_price_is_right_to_the_last_digit(microseconds: int, price: Decimal) -> None:
    exact = Fraction(microseconds) * Fraction(price) / 3_600_000_000
    assert abs(Fraction(time_usd(microseconds, price)) - exact) <= Fraction(AMOUNT_QUANTUM) / 2


def test_the_largest_amounts_are_rounded_half_to_even_too() -> None:
    large = "99999999999999999999.00000000000"  # more digits than Python's own context has
    for last, rounded in (("25", "2"), ("35", "4"), ("250001", "3")):
        assert quantise_usd(Decimal(large + last)) == Decimal(large + rounded)


@given(
    st.decimals(min_value=-1000, max_value=1000, places=18),
    st.integers(0, 10**9),
    st.integers(1, 10**9),
    st.sampled_from([AMOUNT_QUANTUM, PRICE_QUANTUM]),
)
def test_a_share_is_right_to_the_last_digit(
    value: Decimal, part: int, rest: int, quantum: Decimal
) -> None:
    whole = part + rest
    exact = Fraction(value) * part / whole
    found = share(value, part, whole, quantum)
    assert abs(Fraction(found) - exact) <= Fraction(quantum) / 2
    assert found == quantise_usd(found, quantum)
    assert share(value, whole, whole, Decimal("0.01")) == value, "all of it is not rounded"


def test_an_hour_costs_the_hourly_price() -> None:
    assert time_usd(3_600_000_000, Decimal("0.08")) == Decimal("0.08")
    assert per_second(Decimal("0.08")) == Decimal("0.000022222222222222")


def test_equal_amounts_have_one_plain_text() -> None:
    values = ("0.080", "8e-2", "10", "10.00", "-0", "-0.0", "1e3")
    assert [plain(Decimal(t)) for t in values] == ["0.08", "0.08", "10", "10", "0", "0", "1000"]


@given(st.integers(-(10**40), 10**40))
def test_units_and_values_are_the_same_to_the_last_digit(units: int) -> None:
    assert Fraction(from_units(units)) == Fraction(units, 10**18)
    assert to_units(from_units(units)) == units


def test_a_value_with_more_digits_than_a_ledger_stores_is_refused() -> None:
    assert to_units(Decimal("-1.50")) == -15 * 10**17
    assert str(from_units(-15 * 10**17)) == "-1.5"
    with pytest.raises(Inexact):
        to_units(Decimal("1e-19"))


def test_a_mismatch_is_seen_in_any_digit_of_the_largest_amounts() -> None:
    amount = Decimal("99999999999999999999.999999999999999999")
    assert mismatch_usd(amount, Decimal(1), amount) == 0
    assert mismatch_usd(amount, Decimal(1), amount.next_minus(Context(prec=38))) == Decimal("1e-18")


@given(
    st.decimals(Decimal("-1e19"), Decimal("1e19"), places=18),
    st.decimals(Decimal("-1e19"), Decimal("1e19"), places=18),
)
def test_a_difference_is_exact(amount: Decimal, less: Decimal) -> None:
    assert total_usd((difference_usd(amount, less), less)) == amount
    assert difference_usd(less, less) == 0


def test_costs_of_time_and_of_units_are_rounded_once() -> None:
    assert seconds_usd(Decimal(5400), Decimal("1.006")) == Decimal("1.509")
    assert seconds_usd(Decimal("-0.5"), Decimal(1)) == Decimal("-0.000138888889")
    assert usd_per(Decimal(1), 3) == Decimal("0.333333333333")
    assert usd_per(Decimal("1e6"), Decimal("0.0025")) == 400_000_000
