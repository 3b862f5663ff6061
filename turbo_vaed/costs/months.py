"""Calendar months in UTC, as AWS bills and reports show them, and the part of a charge in one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Self

from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import AMOUNT_QUANTUM, share, total_usd
from turbo_vaed.errors import UserError

_FORM = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
_TICK = timedelta(microseconds=1)
_FIRST_YEAR, _LAST_YEAR = 1970, 9998


@dataclass(frozen=True, kw_only=True, order=True)
class Month:
    """A calendar month. In reports a charge belongs to the one in which it starts; only the
    comparison with a bill cuts it (`usd_within`)."""

    year: int
    number: int
    """1..12"""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The month of `2026-08`.

        Raises:
            UserError: it is none.
        """
        found = _FORM.fullmatch(text)
        if found is None or not _FIRST_YEAR <= int(found[1]) <= _LAST_YEAR:
            raise UserError(f"month {text!r}: expected YYYY-MM such as 2026-08")
        return cls(year=int(found[1]), number=int(found[2]))

    @classmethod
    def of(cls, moment: datetime) -> Self:
        """The month, in UTC, of an aware time.

        Raises:
            ValueError: `moment` has no time zone.
        """
        if moment.utcoffset() is None:
            raise ValueError(f"{moment} has no time zone")
        utc = moment.astimezone(UTC)
        return cls(year=utc.year, number=utc.month)

    @property
    def since(self) -> datetime:
        """Its first moment."""
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def until(self) -> datetime:
        """The first moment after it."""
        return self.next.since

    @property
    def next(self) -> Month:
        """The month after it."""
        return Month(year=self.year + self.number // 12, number=self.number % 12 + 1)

    @property
    def label(self) -> str:
        """For people: `August 2026`."""
        return f"{self.since:%B %Y}"

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.number:02d}"


def months_between(first: datetime, last: datetime) -> tuple[Month, ...]:
    """Every month from that of `first` to that of `last`, both included."""
    months = [Month.of(first)]
    while months[-1] < Month.of(last):
        months.append(months[-1].next)
    return tuple(months)


def usd_within(charge: Charge, month: Month) -> Decimal | None:
    """The part of a charge that lies in a month; None where none of its time does.

    The amount grows with time from 0 to the whole, rounded once where months meet, so that the
    parts of a charge over all months add up to it to the last digit. A charge without duration
    lies in the month of its moment.
    """
    start, end = max(charge.started_at, month.since), min(charge.ended_at, month.until)
    whole = (charge.ended_at - charge.started_at) // _TICK
    if not whole:
        return charge.amount_usd if month.since <= charge.started_at < month.until else None
    if end <= start:
        return None
    upto_end, upto_start = (
        share(charge.amount_usd, (moment - charge.started_at) // _TICK, whole, AMOUNT_QUANTUM)
        for moment in (end, start)
    )
    return total_usd((upto_end, upto_start.copy_negate()))
