"""Calendar months in UTC, the periods that costs are told for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from turbo_vaed.errors import UserError

_FORM = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
_FIRST_YEAR, _LAST_YEAR = 1970, 9998


@dataclass(frozen=True, kw_only=True, order=True)
class Month:
    """A calendar month; a charge belongs to the one in which it starts."""

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
            raise UserError(f"--month {text!r} is no month; expected YYYY-MM such as 2026-08")
        return cls(year=int(found[1]), number=int(found[2]))

    @classmethod
    def of(cls, moment: datetime) -> Self:
        """The month, in UTC, of an aware time."""
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
