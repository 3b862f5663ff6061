"""Calendar months in UTC, as AWS bills them, and the part of a charge that lies in one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Self

from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import AMOUNT_QUANTUM, share, total_usd
from turbo_vaed.errors import UserError

_FORM = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Month:
    """A month of a year, 1 to 12."""

    year: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2026-11`.

        Raises:
            UserError: another form, or no such month.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise UserError(f"month {text!r}: expected YYYY-MM such as 2026-11")
        return cls(year=int(found[1]), number=int(found[2]))

    @classmethod
    def of(cls, at: datetime) -> Self:
        """The month that a moment lies in.

        Raises:
            ValueError: `at` has no time zone.
        """
        if at.utcoffset() is None:
            raise ValueError(f"{at} has no time zone")
        at = at.astimezone(UTC)
        return cls(year=at.year, number=at.month)

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.number:02d}"

    @property
    def begins(self) -> datetime:
        """The first moment that lies in it."""
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def ends(self) -> datetime:
        """The first moment that lies in the next one."""
        year, number = divmod(12 * self.year + self.number, 12)
        return datetime(year, number + 1, 1, tzinfo=UTC)


def usd_within(charge: Charge, month: Month) -> Decimal | None:
    """The part of a charge that lies in a month; None where none of its time does.

    The amount grows with time from 0 to the whole, rounded once where months meet, so that the
    parts of a charge over all months add up to it to the last digit. A charge without duration
    lies in the month of its moment.
    """
    start, end = max(charge.started_at, month.begins), min(charge.ended_at, month.ends)
    whole = (charge.ended_at - charge.started_at) // _TICK
    if not whole:
        return charge.amount_usd if month.begins <= charge.started_at < month.ends else None
    if end <= start:
        return None
    upto_end, upto_start = (
        share(charge.amount_usd, (moment - charge.started_at) // _TICK, whole, AMOUNT_QUANTUM)
        for moment in (end, start)
    )
    return total_usd((upto_end, upto_start.copy_negate()))
