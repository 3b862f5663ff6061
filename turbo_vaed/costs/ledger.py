"""The ledger: what a run cost, charge by charge, append only, on SQLite or PostgreSQL; and what
runs that are not over have reserved.

Money is Decimal from end to end. A charge's key is the hash of its content, so that the same
charge inserted twice, by whomever, is one charge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from turbo_vaed.costs.db.engine import translated_errors, writing
from turbo_vaed.costs.db.migrate import open_database
from turbo_vaed.costs.db.schema import (
    CHARGE_GROUPS,
    CHARGES,
    DECIMALS,
    DIGITS,
    GROUP_NAMES,
    NAME_LENGTHS,
    RESERVATIONS,
    halves,
    sums_of,
    whole,
)
from turbo_vaed.costs.money import (
    AMOUNT_QUANTUM,
    PRICE_QUANTUM,
    mismatch_usd,
    plain,
    quantise_usd,
    total_usd,
)
from turbo_vaed.costs.prices import MARKETS, Market
from turbo_vaed.costs.reservation import Reservation
from turbo_vaed.errors import UserError

Useful = Literal["useful", "wasted"]


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
        if mismatch_usd(self.amount_usd, self.quantity, self.unit_price_usd) > slack:
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
class ChargeGroup:
    """Charges of one customer, run, stage, resource, market, unit, usefulness and price source,
    summed to the last digit."""

    customer: str
    run: str
    stage: str
    resource: str
    market: Market
    unit: str
    """What `quantity` counts."""
    useful: Useful
    price_source: str
    quantity: Decimal
    amount_usd: Decimal
    charges: int
    """How many they are."""
    first_at: datetime
    """The earliest start."""
    last_at: datetime
    """The latest end."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of a run cost; `wasted_usd` is the part of `usd` that bought nothing."""

    usd: Decimal
    node_seconds: Decimal
    wasted_usd: Decimal


_CONTENT = tuple(field.name for field in fields(Charge))


class Ledger:
    """An open ledger. Safe to share between threads; every process opens its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> Ledger:
        """The ledger at a SQLAlchemy URL; its folder and its tables are made if they are missing,
        and tables of an earlier version are brought up to date.

        Raises:
            UserError: the URL cannot be read, its driver is not installed, it is in memory, or the
                database is newer than this code or somebody else's.
            CorruptFile: the file is not a database.
            Unreachable: the database does not answer; the password is not shown.
        """
        return cls(open_database(url))

    def add(self, charge: Charge) -> bool:
        """Append a charge; False where the very same one was there already."""
        return self.add_all((charge,)) == 1

    def add_all(self, charges: Iterable[Charge]) -> int:
        """Append charges in one transaction, all or none; how many of them were new.

        Raises:
            UserError: a name is longer than a ledger keeps, or holds a NUL.
            Unreachable: the database does not answer, stays locked, or its disk is full.
        """
        # All writers take them in one order: none waits for one that waits for it.
        rows = sorted((_row(charge) for charge in charges), key=lambda row: row["key"])
        if not rows:
            return 0
        groups = {row["group_key"]: {name: row[name] for name in GROUP_NAMES} for row in rows}
        insert = self._insert
        group = sa.select(CHARGE_GROUPS.c.id).where(
            CHARGE_GROUPS.c.key == sa.bindparam("group_key")
        )
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            connection.execute(
                insert(CHARGE_GROUPS).on_conflict_do_nothing(),
                [{"key": key, **groups[key]} for key in sorted(groups)],
            )
            added = connection.execute(
                insert(CHARGES)
                .values(group_id=group.scalar_subquery())
                .on_conflict_do_nothing()
                .execution_options(preserve_rowcount=True),
                rows,
            )
            return added.rowcount

    def charges(
        self,
        *,
        run: str | None = None,
        customer: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[Charge, ...]:
        """The charges of a run, of a customer, of both, or all; by start, end and key.

        Args:
            since, until: aware times; what ended before the one or began at or after the other
                is left out.
        """
        query = sa.select(*(CHARGES.c[name] for name in _CONTENT)).order_by(
            CHARGES.c.started_at, CHARGES.c.ended_at, CHARGES.c.key
        )
        if run is not None or customer is not None:
            groups = _narrow(sa.select(CHARGE_GROUPS.c.id), run, customer)
            query = query.where(CHARGES.c.group_id.in_(groups))
        if since is not None:
            query = query.where(CHARGES.c.ended_at >= since)
        if until is not None:
            query = query.where(CHARGES.c.started_at < until)
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(Charge(**row) for row in rows)

    def grouped(
        self,
        *,
        customer: str | None = None,
        run: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        of_runs_in: tuple[datetime, datetime] | None = None,
    ) -> tuple[ChargeGroup, ...]:
        """Charges with since <= started_at < until, summed in the database, without rounding.

        Args:
            of_runs_in: two aware times; only of runs with a charge that began from the one to
                before the other.

        Returns:
            By `first_at`, then by their names.

        Raises:
            UserError: a time has no time zone.
            Unreachable: the database does not answer.
        """
        query = _narrow(
            sa.select(
                *(CHARGE_GROUPS.c[name] for name in GROUP_NAMES),
                sa.func.count(),
                sa.func.min(CHARGES.c.started_at),
                sa.func.max(CHARGES.c.ended_at),
                *sums_of("quantity"),
                *sums_of("amount"),
            )
            .join_from(CHARGE_GROUPS, CHARGES)
            .group_by(CHARGE_GROUPS.c.id),
            run,
            customer,
        )
        for name, moment in (("since", since), ("until", until)):
            if moment is not None:
                _check_aware(f"grouped: {name}", moment)
        query = _began(query, since, until)
        if of_runs_in is not None:
            query = query.where(CHARGE_GROUPS.c.run.in_(_runs_in(*of_runs_in, customer)))
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        width = len(GROUP_NAMES)
        groups = (
            ChargeGroup(
                **dict(zip(GROUP_NAMES, row, strict=False)),
                charges=row[width],
                first_at=row[width + 1],
                last_at=row[width + 2],
                quantity=whole(row[width + 3 : width + 7]),
                amount_usd=whole(row[width + 7 :]),
            )
            for row in rows
        )
        return tuple(
            sorted(groups, key=lambda g: (g.first_at, *(getattr(g, n) for n in GROUP_NAMES)))
        )

    def span(self, *, customer: str | None = None) -> tuple[datetime, datetime] | None:
        """The first and the last moment at which a charge began; None where there is none.

        Raises:
            Unreachable: the database does not answer.
        """
        # Of each group by one step into its index, where over all charges every one is looked at.
        ends = [
            sa.select(end(CHARGES.c.started_at))
            .where(CHARGES.c.group_id == CHARGE_GROUPS.c.id)
            .scalar_subquery()
            for end in (sa.func.min, sa.func.max)
        ]
        query = _narrow(sa.select(*ends), None, customer)
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = [row for row in rows if row[0] is not None]
        return (min(r[0] for r in found), max(r[1] for r in found)) if found else None

    def spent(
        self, *, customer: str | None, since: datetime, until: datetime
    ) -> tuple[Decimal, Decimal]:
        """What was spent with since <= started_at < until, USD, and the wasted part of it.

        Raises:
            Unreachable: the database does not answer.
        """
        query = _narrow(
            sa.select(CHARGE_GROUPS.c.useful, *sums_of("amount"))
            .join_from(CHARGE_GROUPS, CHARGES)
            .group_by(CHARGE_GROUPS.c.id),
            None,
            customer,
        )
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(_began(query, since, until)).all()
        found = [(row[0], whole(row[1:])) for row in rows]
        wasted = total_usd(usd for useful, usd in found if useful == "wasted")
        return total_usd(usd for _, usd in found), wasted

    def record_reservation(
        self, run: str, customer: str, upto_usd: Decimal, *, at: datetime
    ) -> None:
        """Reserve the most that the whole run may spend, in place of its earlier reservation.

        Args:
            upto_usd: what it has spent included.

        Raises:
            UserError: no finite Decimal of at least 0, or a time without a zone.
            Unreachable: the database does not take it.
        """
        if not isinstance(upto_usd, Decimal) or not upto_usd.is_finite() or upto_usd < 0:
            raise UserError(
                f"reservation: upto_usd is {upto_usd!r}; expected a Decimal of at least 0"
            )
        _check_aware("reservation: at", at)
        values = {"customer": customer, "upto_usd": quantise_usd(upto_usd), "told_at": at}
        insert = self._insert(RESERVATIONS).values(run=run, **values)
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["run"], set_=values))

    def release(self, run: str) -> None:
        """End a run's reservation; does nothing where it has none.

        Raises:
            Unreachable: the database does not take it.
        """
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            connection.execute(RESERVATIONS.delete().where(RESERVATIONS.c.run == run))

    def reservations(self, *, at: datetime) -> tuple[Reservation, ...]:
        """Of the runs that are not over, by their names, without expired ones.

        Raises:
            UserError: `at` has no time zone.
            Unreachable: the database does not answer.
        """
        _check_aware("reservations: at", at)
        query = (
            sa.select(
                RESERVATIONS.c.run,
                RESERVATIONS.c.customer,
                RESERVATIONS.c.upto_usd,
                RESERVATIONS.c.told_at,
                sa.func.max(CHARGES.c.ended_at),
                *(sa.func.coalesce(part, 0) for part in sums_of("amount")),
            )
            .join_from(
                RESERVATIONS, CHARGE_GROUPS, CHARGE_GROUPS.c.run == RESERVATIONS.c.run, isouter=True
            )
            .join(CHARGES, CHARGES.c.group_id == CHARGE_GROUPS.c.id, isouter=True)
            .group_by(*RESERVATIONS.c)
            .order_by(RESERVATIONS.c.run)
        )
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = (
            Reservation(
                run=run,
                customer=customer,
                upto_usd=upto_usd,
                spent_usd=whole(sums),
                updated_at=max(told_at, charged_at or told_at),
            )
            for run, customer, upto_usd, told_at, charged_at, *sums in rows
        )
        return tuple(one for one in found if one.is_active(at))

    @property
    def _insert(self) -> Callable[[sa.Table], Any]:
        return sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert

    def customers(self) -> tuple[str, ...]:
        """All who have a charge, by name.

        Raises:
            Unreachable: the database does not answer.
        """
        query = sa.select(CHARGE_GROUPS.c.customer).distinct()
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            return tuple(sorted(connection.execute(query).scalars()))

    def runs_of_stage(self, customer: str, stage: str) -> dict[str, tuple[datetime, datetime]]:
        """A customer's runs with charges of a stage: when their first began and the last ended.

        Raises:
            Unreachable: the database does not answer.
        """
        query = (
            sa.select(
                CHARGE_GROUPS.c.run,
                sa.func.min(CHARGES.c.started_at),
                sa.func.max(CHARGES.c.ended_at),
            )
            .join_from(CHARGE_GROUPS, CHARGES)
            .where(CHARGE_GROUPS.c.customer == customer, CHARGE_GROUPS.c.stage == stage)
            .group_by(CHARGE_GROUPS.c.id)
        )
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found: dict[str, tuple[datetime, datetime]] = {}
        for run, first, last in rows:
            known = found.get(run, (first, last))
            found[run] = min(first, known[0]), max(last, known[1])
        return found

    def total(self, *, run: str | None = None, customer: str | None = None) -> Decimal:
        """The exact sum in USD; 0 where there is no charge."""
        return total_usd(group.amount_usd for group in self.grouped(run=run, customer=customer))

    def by_stage(self, run: str) -> dict[str, StageCost]:
        """What each stage of a run cost, in the order in which they first started."""
        stages: dict[str, list[ChargeGroup]] = {}
        for group in self.grouped(run=run):
            stages.setdefault(group.stage, []).append(group)
        return {
            stage: StageCost(
                usd=total_usd(g.amount_usd for g in found),
                node_seconds=total_usd(g.quantity for g in found if g.unit == "node-second"),
                wasted_usd=total_usd(g.amount_usd for g in found if g.useful == "wasted"),
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


def _check_aware(what: str, moment: datetime) -> None:
    if moment.utcoffset() is None:
        raise UserError(f"{what} {moment} has no time zone; expected for one UTC")


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


def _row(charge: Charge) -> dict[str, Any]:
    """What the table holds of a charge, with the key of its group for the group's number."""
    values = asdict(charge)
    for name, length in NAME_LENGTHS.items():
        if len(values[name]) > length or "\0" in values[name]:
            raise UserError(
                f"charge: {name} {values[name][:50]!r} … has {len(values[name])} characters; "
                f"at most {length} are kept, and no NUL"
            )
    content = json.dumps([values[name] for name in GROUP_NAMES])
    quantity_high, quantity_low = halves(charge.quantity)
    amount_high, amount_low = halves(charge.amount_usd)
    return {
        "key": charge.key,
        **values,
        "group_key": hashlib.sha256(content.encode()).hexdigest(),
        "quantity_high": quantity_high,
        "quantity_low": quantity_low,
        "amount_high": amount_high,
        "amount_low": amount_low,
    }


def _began(query: sa.Select[Any], since: datetime | None, until: datetime | None) -> sa.Select[Any]:
    if since is not None:
        query = query.where(CHARGES.c.started_at >= since)
    if until is not None:
        query = query.where(CHARGES.c.started_at < until)
    return query


def _runs_in(since: datetime, until: datetime, customer: str | None) -> sa.Select[Any]:
    """The runs with a charge that began so; of each group by one step into its index."""
    charges, groups = CHARGES.alias(), CHARGE_GROUPS.alias()
    began = sa.exists().where(
        charges.c.group_id == groups.c.id,
        charges.c.started_at >= since,
        charges.c.started_at < until,
    )
    query = sa.select(groups.c.run).where(began)
    return query if customer is None else query.where(groups.c.customer == customer)


def _narrow(query: sa.Select[Any], run: str | None, customer: str | None) -> sa.Select[Any]:
    if run is not None:
        query = query.where(CHARGE_GROUPS.c.run == run)
    if customer is not None:
        query = query.where(CHARGE_GROUPS.c.customer == customer)
    return query
