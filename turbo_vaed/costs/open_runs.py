"""Open runs: who works for a customer now, on whatever machine, and whether that one still lives.

A run takes its customer in the ledger's database and sends a heartbeat there every few seconds. One
that has sent none for `DEAD_AFTER` has died, and the next run takes its place. Each holder gets a
token larger than all before it: a run that was only cut off finds, when it is back, that its own
counts no more, and ends. Times are the database's own, so that machines' clocks need not agree.

Beside it lies what a run leaves to the next one, wherever that runs: the small files that say which
run it was and what it has made. Only who holds the customer can replace them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from turbo_vaed.costs.db.engine import translated_errors, writing
from turbo_vaed.costs.db.migrate import open_database
from turbo_vaed.costs.db.schema import CUSTOMER_STATES, NOW, OPEN_RUNS
from turbo_vaed.errors import Busy
from turbo_vaed.runtime.processes import Process

DEAD_AFTER = timedelta(minutes=2)
"""A run without a heartbeat for this long is dead; a live one sends several a minute."""


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """The last run that took a customer."""

    customer: str
    token: int
    """Larger than that of every holder before."""
    run: str
    """Empty until the run is known."""
    step: str
    """What it does: a stage, `register`, `promote`; empty before the first."""
    flow_run: str
    """Prefect's id of it; empty for a run without Prefect."""
    holder: Process
    began_at: datetime
    """When it took the customer."""
    seen_at: datetime
    """When it was last seen."""
    now: datetime
    """When this was read, by the same clock."""
    abort_by: str
    """Who asked it to stop; empty where nobody has."""
    ended_at: datetime | None

    @property
    def state(self) -> str:
        """`ended`, `running`, `aborting` or `dead`."""
        if self.ended_at is not None:
            return "ended"
        if self.now - self.seen_at > DEAD_AFTER or self.holder.has_ended():
            return "dead"
        return "aborting" if self.abort_by else "running"


@dataclass(frozen=True, kw_only=True)
class CustomerState:
    """What the last run of a customer has left."""

    revision: str
    """Another one each time that it is saved."""
    files: Mapping[str, str]
    """Name -> content."""


class OpenRuns:
    """The tables of open runs and of what they leave, in the ledger's database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator[OpenRuns]:
        """The table in the ledger at a SQLAlchemy URL, until the block ends.

        Raises: as `Ledger.open`.
        """
        engine = open_database(url)
        try:
            yield cls(engine)
        finally:
            engine.dispose()

    def acquire(
        self, customer: str, holder: Process, *, flow_run: str = ""
    ) -> tuple[OpenRun, OpenRun | None]:
        """Take a customer for a run of this holder.

        Args:
            flow_run: Prefect's id of it.

        Returns:
            Its row; and that of the run before it, if that died and is to be settled.

        Raises:
            Busy: a run of the customer is going on.
            Unreachable: the database does not take it.
        """
        fresh = {
            "run": "", "step": "", "flow_run": flow_run, "abort_by": "", "ended_at": None,
            "began_at": NOW, "seen_at": NOW, **_columns(holder),
        }  # fmt: skip
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":  # on SQLite a writer is alone anyway
                connection.execute(sa.text(f"LOCK TABLE {OPEN_RUNS.name} IN EXCLUSIVE MODE"))
            last = _read(connection, customer)
            if last is None:
                values = {"token": _new_token(0), **fresh}
                connection.execute(OPEN_RUNS.insert().values(customer=customer, **values))
            else:
                _require_over(last)
                values = {"token": _new_token(last.token), **fresh}
                connection.execute(_of(customer).values(**values))
            mine = _read(connection, customer)
        assert mine is not None
        return mine, last if last and last.state == "dead" else None

    def require_free(self, customer: str) -> None:
        """Check that no run of a customer is going on.

        Raises:
            Busy: one is.
            Unreachable: the database does not answer.
        """
        last = self.of(customer)
        if last is not None:
            _require_over(last)

    def require_held(self, customer: str, token: int | None) -> int:
        """Check that a stage may work for a customer; returns the token of the run it belongs to.

        Args:
            token: of that run; None for a stage by hand, which may where no run is going on, and
                comes after the last one.

        Raises:
            Busy: a run with another token has the customer.
            Unreachable: the database does not answer.
        """
        last = self.of(customer)
        if token is None:
            if last is not None:
                _require_over(last)
            return _new_token(0 if last is None else last.token - 1)
        if last is None or last.token != token:
            raise Busy(
                f"another run of {customer} has taken the place of this one; nothing of this one "
                "counts any more"
            )
        return token

    def beat(self, mine: OpenRun, *, run: str, step: str) -> OpenRun | None:
        """Record that a run lives, and what it does; returns its row, by which somebody may have
        asked it to stop. None where another run has taken the customer: this one's time is over.

        Raises:
            Unreachable: the database does not take it.
        """
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            values = {"run": run, "step": step, "seen_at": NOW}
            done = connection.execute(_held(mine).values(**values))
            return _read(connection, mine.customer) if done.rowcount else None

    def end(self, mine: OpenRun) -> bool:
        """Leave the customer to the next run; returns whether it was still this one's.

        Raises:
            Unreachable: the database does not take it.
        """
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            return bool(connection.execute(_held(mine).values(ended_at=NOW)).rowcount)

    def save_state(self, mine: OpenRun, files: Mapping[str, str]) -> str | None:
        """Replace what the customer's runs leave to the next one; returns its new revision. None
        where another run has taken the customer: nothing is replaced.

        Raises:
            Unreachable: the database does not take it.
        """
        fresh = {"revision": uuid.uuid4().hex, "files": json.dumps(dict(files)), "saved_at": NOW}
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            # An update and not a query: the row stays locked until this is committed.
            if not connection.execute(_held(mine).values(token=mine.token)).rowcount:
                return None
            of = CUSTOMER_STATES.c.customer == mine.customer
            if not connection.execute(CUSTOMER_STATES.update().where(of).values(**fresh)).rowcount:
                row = CUSTOMER_STATES.insert().values(customer=mine.customer, **fresh)
                connection.execute(row)
        return str(fresh["revision"])

    def state_of(self, customer: str) -> CustomerState | None:
        """What the customer's last run has left; None where none has left anything.

        Raises:
            Unreachable: the database does not answer.
        """
        query = sa.select(CUSTOMER_STATES.c.revision, CUSTOMER_STATES.c.files)
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            found = connection.execute(
                query.where(CUSTOMER_STATES.c.customer == customer)
            ).one_or_none()
        if found is None:
            return None
        return CustomerState(revision=found.revision, files=json.loads(found.files))

    def abort(self, customer: str, by: str) -> OpenRun | None:
        """Ask the customer's run to stop, which it does when it is seen next; returns its row, None
        where none is going on.

        Raises:
            Unreachable: the database does not take it.
        """
        with translated_errors(self._engine.url), writing(self._engine) as connection:
            connection.execute(
                _of(customer).where(OPEN_RUNS.c.ended_at.is_(None)).values(abort_by=by)
            )
            found = _read(connection, customer)
        return found if found and found.state != "ended" else None

    def all(self) -> tuple[OpenRun, ...]:
        """The last run of every customer that had one, by the customers' names.

        Raises:
            Unreachable: the database does not answer.
        """
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            rows = connection.execute(_query().order_by(OPEN_RUNS.c.customer)).all()
        return tuple(_open_run(row) for row in rows)

    def of(self, customer: str) -> OpenRun | None:
        """A customer's last run; None where it had none.

        Raises:
            Unreachable: the database does not answer.
        """
        with translated_errors(self._engine.url), self._engine.connect() as connection:
            return _read(connection, customer)


def _new_token(last: int) -> int:
    """Larger than the last one, and than all of a ledger that was lost or left: checkpoints know
    theirs."""
    return max(last + 1, int(time.time()))


def _columns(holder: Process) -> dict[str, Any]:
    return {
        "host": holder.host,
        "machine": holder.machine,
        "process": holder.number,
        "process_began": holder.began,
    }


def _of(customer: str) -> sa.Update:
    return OPEN_RUNS.update().where(OPEN_RUNS.c.customer == customer)


def _held(mine: OpenRun) -> sa.Update:
    """Of its customer's row, as long as it holds it."""
    held = (OPEN_RUNS.c.token == mine.token, OPEN_RUNS.c.ended_at.is_(None))
    return _of(mine.customer).where(*held)


def _read(connection: sa.Connection, customer: str) -> OpenRun | None:
    row = connection.execute(_query().where(OPEN_RUNS.c.customer == customer)).one_or_none()
    return None if row is None else _open_run(row)


def _query() -> sa.Select[Any]:
    return sa.select(OPEN_RUNS, NOW.label("now"))


def _open_run(row: sa.Row[Any]) -> OpenRun:
    found = dict(row._mapping)
    number, began = found.pop("process"), found.pop("process_began")
    host, machine = found.pop("host"), found.pop("machine")
    holder = Process(host=host, machine=machine, number=number, began=began)
    return OpenRun(holder=holder, **found)


def _require_over(last: OpenRun) -> None:
    if last.state not in ("running", "aborting"):
        return
    what = f"run {last.run}" if last.run else "a run"
    at = f", at {last.step}" if last.step else ""
    raise Busy(
        f"{what} of {last.customer} is going on ({last.holder}{at}, since "
        f"{last.began_at:%Y-%m-%d %H:%M} UTC); wait for it, or stop it with: turbo-vaed runs abort "
        f"{last.customer}"
    )
