"""The meter: node-time x price, written to the ledger in slices while the work goes on.

A process that is killed loses at most the slice it was in. Slices meet to the microsecond, and
each amount is the difference of two rounded running totals, so that the charges of a meter add up
to (all its time x price), rounded once, however often and wherever it was cut.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Self

from turbo_vaed.costs.ledger import Charge, Ledger, Useful
from turbo_vaed.costs.money import per_second, time_usd, total_usd
from turbo_vaed.costs.prices import Market
from turbo_vaed.errors import UserError

UNIT = "node-second"
_MICRO = Decimal("1e-6")
_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class Meter:
    """Charges a stage's time while the `with` block runs.

    When the block raises, everything it was charged is marked wasted: the last slice as it is
    written, the earlier ones by a pair of correcting charges that add up to nothing.
    A ledger that does not take a slice is asked again with every later one; if it has not taken
    all of them at the end of the block, that error is raised there (or noted on the block's own).

    Args:
        ledger: where the charges go.
        run, customer, stage, resource, market: what the charges are for.
        nodes: how many machines the stage holds; their seconds are what is charged.
        usd_per_hour: price of one node; `PriceBook.require` tells it.
        price_source: where that price was read.
        interval_seconds: length of a slice, and what a killed process can lose.
        clock: nanoseconds, never going back.
        now: the aware time at which the meter starts.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        run: str,
        customer: str,
        stage: str,
        resource: str,
        usd_per_hour: Decimal,
        price_source: str,
        market: Market = "local",
        nodes: int = 1,
        interval_seconds: float = 15.0,
        clock: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], datetime] = _now,
    ) -> None:
        if not isinstance(usd_per_hour, Decimal) or not usd_per_hour.is_finite():
            raise UserError(f"meter: usd_per_hour is {usd_per_hour!r}; expected a finite Decimal")
        if usd_per_hour < 0 or nodes < 1 or not interval_seconds > 0:
            raise UserError(
                f"meter: usd_per_hour {usd_per_hour}, nodes {nodes}, interval_seconds "
                f"{interval_seconds}; expected at least 0, at least 1, and above 0"
            )
        self._ledger = ledger
        self._run, self._customer, self._stage = run, customer, stage
        self._resource, self._market, self._nodes = resource, market, nodes
        self._usd_per_hour, self._price_source = usd_per_hour, price_source
        self._interval_seconds, self._clock, self._now = interval_seconds, clock, now
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._charges: list[Charge] = []
        self._written = 0
        self._done = False
        self._cut_at = 0  # microseconds since the start, up to which charges exist

    def __enter__(self) -> Self:
        self._started_at = self._now()
        self._start = self._clock() // 1000
        self._thread = threading.Thread(target=self._tick, name=f"meter-{self._stage}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        try:
            with self._lock:
                self._slice("useful" if error is None else "wasted")
                self._done = True
                if error is not None:
                    self._charges += self._corrections()
                self._write()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"the ledger did not take all charges of {self._stage}: {failed}")
        else:
            if self._error is not None:
                _log.warning("the ledger took all of %s in the end: %s", self._stage, self._error)

    @property
    def usd(self) -> Decimal:
        """What the block has cost up to this moment or its end, written or not."""
        return self._upto(self._cut_at if self._done else self._elapsed())

    def unwritten_usd(self) -> Decimal:
        """The part of it that the ledger does not have yet."""
        with self._lock:
            return self.usd - total_usd(c.amount_usd for c in self._charges[: self._written])

    def cut(self) -> None:
        """Charge the time since the last slice now; the background thread does it by itself.

        Raises:
            Unreachable: the ledger did not take it; it stays due.
        """
        with self._lock:
            self._slice("useful")
            self._write()

    def _tick(self) -> None:
        while not self._stopping.wait(self._interval_seconds):
            try:
                self.cut()
            except Exception as error:  # kept for the end of the block
                self._error = error
                _log.warning("charges of %s are late: %s", self._stage, error)

    def _elapsed(self) -> int:
        return self._clock() // 1000 - self._start

    def _slice(self, useful: Useful) -> None:
        begin, end = self._cut_at, self._elapsed()
        if end <= begin:
            return
        self._charges.append(
            self._charge(
                begin,
                end,
                (end - begin) * self._nodes,
                self._upto(end) - self._upto(begin),
                useful,
            )
        )
        self._cut_at = end

    def _upto(self, microseconds: int) -> Decimal:
        return time_usd(microseconds * self._nodes, self._usd_per_hour)

    def _corrections(self) -> list[Charge]:
        """Takes back what was charged as useful, and charges the same as wasted."""
        useful = [c for c in self._charges if c.useful == "useful"]
        if not useful:
            return []
        usd = total_usd(c.amount_usd for c in useful)
        end = round((useful[-1].ended_at - self._started_at) / timedelta(microseconds=1))
        return [
            self._charge(0, end, -end * self._nodes, -usd, "useful"),
            self._charge(0, end, end * self._nodes, usd, "wasted"),
        ]

    def _charge(
        self, begin: int, end: int, node_microseconds: int, usd: Decimal, useful: Useful
    ) -> Charge:
        return Charge(
            run=self._run,
            customer=self._customer,
            stage=self._stage,
            resource=self._resource,
            market=self._market,
            quantity=node_microseconds * _MICRO,
            unit=UNIT,
            unit_price_usd=per_second(self._usd_per_hour),
            amount_usd=usd,
            started_at=self._started_at + timedelta(microseconds=begin),
            ended_at=self._started_at + timedelta(microseconds=end),
            useful=useful,
            price_source=self._price_source,
        )

    def _write(self) -> None:
        """Every charge that is due, oldest first; one that got through unnoticed is no double."""
        due = self._charges[self._written :]
        if due:
            self._ledger.add_all(due)
            self._written += len(due)
