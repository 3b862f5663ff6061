"""The ledger: what a run cost, charge by charge, append only, in any SQLAlchemy database.

Money is Decimal from end to end. A charge's key is the hash of its content, so that the same
charge inserted twice, by whomever, is one charge.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from turbo_vaed.costs.database import (
    CHARGES,
    DECIMALS,
    DIGITS,
    METADATA,
    answers,
    connect,
    talking,
)
from turbo_vaed.costs.money import AMOUNT_QUANTUM, PRICE_QUANTUM, plain, total_usd
from turbo_vaed.costs.prices import MARKETS, Market
from turbo_vaed.errors import UserError

Useful = Literal["useful", "wasted"]

_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Something that cost money. A correction of an earlier charge has a negative quantity.

    Raises:
        UserError: an empty name, a naive time, a float, an unknown market, or an amount that is
            not quantity x unit price (to the last digit that is kept).
    """

    run: str
    customer: str
    stage: str
    resource: str
    """What was used, a node's own name where several run at once."""
    market: Market
    quantity: Decimal
    unit: str
    """What `quantity` counts, for instance `node-second`."""
    unit_price_usd: Decimal
    amount_usd: Decimal
    started_at: datetime
    ended_at: datetime
    useful: Useful
    price_source: str

    def __post_init__(self) -> None:
        for name in ("run", "customer", "stage", "resource", "unit", "price_source"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"charge: {name} is {getattr(self, name)!r}; expected a name")
        if self.market not in MARKETS:
            raise UserError(f"charge: market {self.market!r}; allowed: {', '.join(MARKETS)}")
        if self.useful not in ("useful", "wasted"):
            raise UserError(f"charge: useful is {self.useful!r}; allowed: useful, wasted")
        for name in ("quantity", "unit_price_usd", "amount_usd"):
            _check_number(name, getattr(self, name))
        for name in ("started_at", "ended_at"):
            if getattr(self, name).utcoffset() is None:
                raise UserError(f"charge: {name} has no time zone; expected UTC")
        if self.ended_at < self.started_at:
            raise UserError(f"charge: ends {self.ended_at}, before it starts {self.started_at}")
        # A meter's amount is rounded at both its ends, a part of it at both ends once more.
        slack = 2 * AMOUNT_QUANTUM + abs(self.quantity) * PRICE_QUANTUM
        if abs(self.amount_usd - self.quantity * self.unit_price_usd) > slack:
            raise UserError(
                f"charge: amount {self.amount_usd} USD is not {self.quantity} {self.unit} x "
                f"{self.unit_price_usd} USD"
            )

    @property
    def key(self) -> str:
        """SHA-256 of the content; the same charge has the same key on every machine."""
        content = {
            name: plain(value)
            if isinstance(value, Decimal)
            else value.astimezone(UTC).isoformat(timespec="microseconds")
            if isinstance(value, datetime)
            else value
            for name, value in asdict(self).items()
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of a run cost; `wasted_usd` is the part of `usd` that bought nothing."""

    usd: Decimal
    node_seconds: Decimal
    wasted_usd: Decimal


@dataclass(frozen=True, kw_only=True)
class ChargeGroup:
    """Charges that agree in everything that is named here, added up exactly."""

    customer: str
    run: str
    stage: str
    resource: str
    market: Market
    unit: str
    useful: Useful
    price_source: str
    quantity: Decimal
    amount_usd: Decimal
    charges: int
    """How many they are."""
    first_at: datetime
    """When the first one starts."""
    last_at: datetime
    """When the last one ends."""


_GROUPED_BY = (
    "customer", "run", "stage", "resource", "market", "unit", "useful", "price_source"
)  # fmt: skip
_CONTENT = tuple(field.name for field in fields(Charge))


class Ledger:
    """An open ledger. Safe to share between threads; every process opens its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> Ledger:
        """The ledger at a SQLAlchemy URL; its folder and its table are made if they are missing.

        Raises:
            UserError: the URL cannot be read, its driver is not installed, or it is in memory.
            CorruptFile: the file is not a database.
            Unreachable: the database does not answer; the password is not shown.
        """
        engine = connect(url)
        with talking(engine.url):
            for attempt in range(_ATTEMPTS):
                try:
                    METADATA.create_all(engine)
                    break
                except DBAPIError:  # another process made the table in the same moment
                    if attempt == _ATTEMPTS - 1 or not answers(engine):
                        engine.dispose()
                        raise
                    time.sleep(0.1 * 2**attempt)
        return cls(engine)

    def add(self, charge: Charge) -> bool:
        """Append a charge; False where the very same one was there already."""
        return self.add_all((charge,)) == 1

    def add_all(self, charges: Iterable[Charge]) -> int:
        """Append charges in one transaction, all or none; how many of them were new.

        Raises:
            Unreachable: the database does not answer, stays locked, or its disk is full.
        """
        statements = [_insert_once(charge) for charge in charges]
        with talking(self._engine.url):
            for attempt in range(_ATTEMPTS):
                try:
                    with self._engine.begin() as connection:
                        return sum(connection.execute(s).rowcount for s in statements)
                except IntegrityError:  # another writer was first; the next look finds its row
                    if attempt == _ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def charges(self, *, run: str | None = None, customer: str | None = None) -> tuple[Charge, ...]:
        """The charges of a run, of a customer, of both, or all; by start, end and key."""
        query = sa.select(*(CHARGES.c[name] for name in _CONTENT)).order_by(
            CHARGES.c.started_at, CHARGES.c.ended_at, CHARGES.c.key
        )
        with talking(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(_narrow(query, run, customer)).mappings().all()
        return tuple(Charge(**row) for row in rows)

    def total(self, *, run: str | None = None, customer: str | None = None) -> Decimal:
        """The exact sum in USD; 0 where there is no charge."""
        query = _narrow(sa.select(CHARGES.c.amount_usd), run, customer)
        with talking(self._engine.url), self._engine.connect() as connection:
            return total_usd(connection.execute(query).scalars().all())

    def grouped(
        self,
        *,
        customer: str | None = None,
        run: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[ChargeGroup, ...]:
        """The charges that start in [since, until), added up where they agree, by first start."""
        groups: dict[tuple[Any, ...], list[Charge]] = {}
        for charge in self.charges(run=run, customer=customer):
            if since is not None and charge.started_at < since:
                continue
            if until is not None and charge.started_at >= until:
                continue
            groups.setdefault(tuple(getattr(charge, n) for n in _GROUPED_BY), []).append(charge)
        return tuple(
            ChargeGroup(
                **dict(zip(_GROUPED_BY, key, strict=True)),
                quantity=total_usd(c.quantity for c in found),
                amount_usd=total_usd(c.amount_usd for c in found),
                charges=len(found),
                first_at=min(c.started_at for c in found),
                last_at=max(c.ended_at for c in found),
            )
            for key, found in groups.items()
        )

    def by_stage(self, run: str) -> dict[str, StageCost]:
        """What each stage of a run cost, in the order in which they first started."""
        stages: dict[str, list[Charge]] = {}
        for charge in self.charges(run=run):
            stages.setdefault(charge.stage, []).append(charge)
        return {
            stage: StageCost(
                usd=total_usd(c.amount_usd for c in found),
                node_seconds=total_usd(c.quantity for c in found if c.unit == "node-second"),
                wasted_usd=total_usd(c.amount_usd for c in found if c.useful == "wasted"),
            )
            for stage, found in stages.items()
        }

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, Decimal) or not value.is_finite():
        raise UserError(f"charge: {name} is {value!r}; expected a finite Decimal, never a float")
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "finite"
    if -exponent > DECIMALS or value.adjusted() >= DIGITS - DECIMALS:
        raise UserError(
            f"charge: {name} is {value}; at most {DECIMALS} decimals and "
            f"{DIGITS - DECIMALS} digits before them are kept"
        )


def _insert_once(charge: Charge) -> sa.Insert:
    """INSERT … SELECT … WHERE NOT EXISTS: portable, and a write from its first statement on."""
    values = {"key": charge.key, **asdict(charge)}
    chosen = sa.select(
        *(sa.literal(value, CHARGES.c[name].type).label(name) for name, value in values.items())
    ).where(~sa.exists(sa.select(sa.literal(1)).where(CHARGES.c.key == charge.key)))
    insert = sa.insert(CHARGES).from_select(list(values), chosen)
    return insert.execution_options(preserve_rowcount=True)


def _narrow(query: sa.Select[Any], run: str | None, customer: str | None) -> sa.Select[Any]:
    if run is not None:
        query = query.where(CHARGES.c.run == run)
    if customer is not None:
        query = query.where(CHARGES.c.customer == customer)
    return query
