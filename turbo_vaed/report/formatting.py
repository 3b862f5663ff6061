"""Figures as text: shares, durations, sizes, dollars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from turbo_vaed.costs.money import format_usd, plain, quantise_usd

TIMES = "\N{MULTIPLICATION SIGN}"
NEVER = "never"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as `99.1 %`; a positive share that would print as zero is `< 0.1 %`."""
    if share is None or not math.isfinite(share):
        return "unknown"
    least = 10**-digits
    if 0 < share * 100 < least / 2:
        return f"< {least:g} %"
    return f"{share * 100:.{digits}f} %"


def decibel(value: float | None) -> str:
    """dB with two decimals."""
    return "not measured" if value is None else f"{value:.2f} dB"


def seconds(value: float) -> str:
    """A duration: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def milliseconds(value_seconds: float) -> str:
    """A short duration: `131 ms`, `1.31 s`, and from ten seconds on as `seconds`."""
    if value_seconds < 1:
        return f"{value_seconds * 1000:.0f} ms"
    return f"{value_seconds:.2f} s" if value_seconds < 10 else seconds(value_seconds)


def latency(median: float, low: float, high: float) -> tuple[str, str]:
    """Seconds of a median and of its interval: `36.2 ms`, `32.4 to 41.4 ms`; in s from one on."""
    scale, unit, digits = (1000, "ms", 1) if high < 1 else (1, "s", 2)
    return (
        f"{median * scale:.{digits}f} {unit}",
        f"{low * scale:.{digits}f} to {high * scale:.{digits}f} {unit}",
    )


def size(value_bytes: int) -> str:
    """Bytes as kB or MB (1e6 bytes)."""
    return f"{value_bytes / 1e6:.1f} MB" if value_bytes >= 1e5 else f"{value_bytes / 1e3:.1f} kB"


def counted(number: int, thing: str) -> str:
    """1 worker, 2 workers."""
    return f"{count(number)} {thing}" + ("" if number == 1 else "s")


def count(value: int) -> str:
    """A count: `4,512,003`."""
    return f"{value:,}"


def million(value: int) -> str:
    """A count of parameters: `1.04 M`."""
    return f"{value / 1e6:.2f} M" if value >= 1e5 else count(value)


def amount(value: Decimal | None, unit: str = "") -> str:
    """Dollars, whole ones from a thousand on; other figures with four digits; `never` for None."""
    if value is None:
        return NEVER
    if unit.startswith("USD"):
        sign = "-" if value < 0 else ""
        return f"{sign}${abs(value):,.0f}" if abs(value) >= 1000 else format_usd(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    places = max(0, 3 - value.adjusted()) if value else 0
    return plain(quantise_usd(value, Decimal(1).scaleb(-places)))


def measured_and_limit(measured: float | None, limit: float, unit: str) -> tuple[str, str]:
    """Both with their unit, and enough digits to see on which side of the limit one is."""
    scale, sign = {"share": (100.0, " %"), "ratio": (1.0, f" {TIMES}")}.get(unit, (1.0, f" {unit}"))
    sign = sign if unit else ""
    required = f"{limit * scale:.10g}{sign}"
    if measured is None or not math.isfinite(measured):
        return "not measured", required
    printed = ""
    for digits in range(3 if unit == "MB" else 4, 16):
        printed = f"{measured * scale:.{digits}g}"
        if measured == limit or float(printed) != float(f"{limit * scale:.10g}"):
            break
    if "e" in printed:
        printed = f"{measured * scale:.0f}"
    return f"{printed}{sign}", required


def months(value: Decimal | None) -> str:
    """A number of months, or `never`."""
    return NEVER if value is None else f"{amount(value)} months"


def short_usd(value: float) -> str:
    """Dollars with three digits, as on an axis: `$950`, `-$12k`, `$3.4M`."""
    size, unit = abs(value), ""
    for power, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= 0.9995 * power:
            size, unit = size / power, name
            break
    digits = f"{size:.3g}" if size < 999.5 else f"{size:.0f}"
    return f"{'-' if value < 0 else ''}${digits}{unit}"


def column_decimals(amounts: Sequence[Decimal]) -> int:
    """Decimals that print two digits of the smallest amount that is not zero, 2 to 6."""
    least = min((value for value in amounts if value > 0), default=Decimal(1))
    return min(6, max(2, 1 - least.adjusted()))


def aligned_usd(value: Decimal, decimals: int) -> str:
    """Dollars with a fixed number of decimals, so that a column reads down."""
    return f"${value:,.{decimals}f}"


def enumerated(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
