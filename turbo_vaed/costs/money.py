"""US dollars as Decimal: parsed, summed, rounded in one place, and formatted. Never a float."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Clamped, Context, Decimal, Inexact, InvalidOperation, Overflow

from turbo_vaed.errors import UserError

AMOUNT_QUANTUM = Decimal("1e-12")
"""USD; amounts are rounded to it, half to even, when time becomes money."""
PRICE_QUANTUM = Decimal("1e-18")
"""USD per unit; the last digit that a ledger keeps."""

_DOLLAR_IN_FRONT = re.compile(r"^([-+]?)\$")
_MICROSECONDS_PER_HOUR = Decimal(3_600_000_000)
_WIDE = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, Overflow, Clamped])
_EXACT = Context(prec=60, traps=[InvalidOperation, Overflow, Clamped, Inexact])


def parse_usd(value: str | int | Decimal) -> Decimal:
    """A finite amount in USD, from `"0.08"`, `"$1,234.50"`, an int or a Decimal.

    Raises:
        UserError: a float, a bool, NaN, an infinity, or text that is no number.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise UserError(
            f"money: found {value!r} ({type(value).__name__}); allowed: Decimal, int or text, "
            "for a float has already lost the digits that were typed"
        )
    text = value
    if isinstance(text, str):
        text = _DOLLAR_IN_FRONT.sub(r"\1", text.strip()).replace(",", "")
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise UserError(f"money: found {value!r}; expected an amount such as 0.08") from None
    if not amount.is_finite():
        raise UserError(f"money: found {value!r}; expected a finite amount")
    return amount


def quantise_usd(amount: Decimal, quantum: Decimal = AMOUNT_QUANTUM) -> Decimal:
    """`amount` rounded half to even to a multiple of `quantum`."""
    return amount.quantize(quantum, context=_WIDE)


def total_usd(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum; a digit that would be lost raises `decimal.Inexact`."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def difference_usd(amount: Decimal, less: Decimal) -> Decimal:
    """`amount` less `less`, exactly as `total_usd` adds."""
    return total_usd((amount, less.copy_negate()))


def usd_per(amount: Decimal, count: Decimal | int) -> Decimal:
    """`amount` over a count that is not 0, rounded once to `AMOUNT_QUANTUM`."""
    return quantise_usd(_WIDE.divide(amount, Decimal(count)))


def seconds_usd(node_seconds: Decimal, usd_per_hour: Decimal) -> Decimal:
    """Node-seconds x price, rounded once to `AMOUNT_QUANTUM`."""
    return quantise_usd(_WIDE.divide(_WIDE.multiply(node_seconds, usd_per_hour), Decimal(3600)))


def time_usd(node_microseconds: int, usd_per_hour: Decimal) -> Decimal:
    """Node-time x price, rounded once to `AMOUNT_QUANTUM`."""
    hours = _WIDE.divide(
        _WIDE.multiply(Decimal(node_microseconds), usd_per_hour), _MICROSECONDS_PER_HOUR
    )
    return quantise_usd(hours)


def share(value: Decimal, part: int, whole: int, quantum: Decimal) -> Decimal:
    """`value` x part / whole, rounded once to `quantum`; exactly `value` for the whole of it."""
    if part == whole:
        return value
    return quantise_usd(_WIDE.divide(_WIDE.multiply(value, Decimal(part)), Decimal(whole)), quantum)


def per_second(usd_per_hour: Decimal) -> Decimal:
    """USD per second, rounded to `PRICE_QUANTUM`."""
    return quantise_usd(_WIDE.divide(usd_per_hour, Decimal(3600)), PRICE_QUANTUM)


def mismatch_usd(amount: Decimal, quantity: Decimal, unit_price: Decimal) -> Decimal:
    """|amount - quantity x unit price|, whatever their size."""
    return abs(_WIDE.subtract(amount, _WIDE.multiply(quantity, unit_price)))


def plain(value: Decimal) -> str:
    """The one way to write a value without exponent or trailing zeros: `0.080` is `0.08`."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def to_units(value: Decimal) -> int:
    """How many `PRICE_QUANTUM` a value is; one with more digits raises `decimal.Inexact`."""
    return int(_EXACT.quantize(_EXACT.scaleb(value, -PRICE_QUANTUM.adjusted()), Decimal(1)))


def from_units(units: int) -> Decimal:
    """The value of so many `PRICE_QUANTUM`, without trailing zeros."""
    return Decimal(plain(_EXACT.scaleb(Decimal(units), PRICE_QUANTUM.adjusted())))


def format_usd(amount: Decimal) -> str:
    """For people: `$1,234.50`, `$0.0123`, `$0.00`; three digits that count below a dollar.

    What rounds to nothing at six decimals is `<$0.000001`, so that only nothing looks free.
    """
    sign, size = ("-" if amount < 0 else ""), abs(amount)
    places = min(6, max(2, 2 - size.adjusted()))
    rounded = quantise_usd(size, Decimal(1).scaleb(-places))
    if size and not rounded:
        return f"{sign}<$0.000001"
    whole, _, part = f"{rounded:,f}".partition(".")
    return f"{sign}${whole}.{part.rstrip('0').ljust(2, '0')}"
