"""The meter: node-time x price, written to the ledger in slices while the work goes on.

A process that is killed loses at most the slice it was in: charges that the ledger does not take
are stored in the outbox. Slices meet to the microsecond, and each amount is the difference of two
rounded running totals, so that the charges of a meter at one rate add up to (all its time x price),
rounded once, however often and wherever it was cut.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self

from turbo_vaed.costs import outbox as outbox_files
from turbo_vaed.costs import price_source
from turbo_vaed.costs.ledger import Charge, Ledger
from turbo_vaed.costs.money import format_usd, per_second, quantise_usd, time_usd, total_usd
from turbo_vaed.costs.prices import Market
from turbo_vaed.costs.waste import waste_corrections
from turbo_vaed.errors import BudgetRefused, UserError

UNIT = "node-second"
_MICRO = Decimal("1e-6")
_PER_SECOND = 1_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a node costs, and where that was read.

    Raises:
        UserError: the price is no finite Decimal of at least 0, or the minimum is negative.
    """

    resource: str
    market: Market
    usd_per_hour: Decimal
    source: str
    minimum_seconds: int = 0
    """Charged for a node that is gone earlier; EC2 takes 60."""

    def __post_init__(self) -> None:
        if not isinstance(self.usd_per_hour, Decimal) or not self.usd_per_hour.is_finite():
            raise UserError(f"meter: usd_per_hour is {self.usd_per_hour!r}; expected a Decimal")
        if self.usd_per_hour < 0 or self.minimum_seconds < 0:
            raise UserError(
                f"meter: usd_per_hour {self.usd_per_hour}, minimum_seconds "
                f"{self.minimum_seconds}; expected at least 0"
            )


def node_charge(
    rate: Rate,
    node_seconds: Decimal,
    *,
    run: str,
    customer: str,
    stage: str,
    began: datetime,
    ended: datetime,
    is_wasted: bool = False,
) -> Charge:
    """The charge for time that no meter ran, of all nodes at one rate together."""
    price = per_second(rate.usd_per_hour)
    return Charge(
        run=run,
        customer=customer,
        stage=stage,
        resource=rate.resource,
        market=rate.market,
        quantity=node_seconds,
        unit=UNIT,
        unit_price_usd=price,
        amount_usd=quantise_usd(node_seconds * price),
        started_at=began,
        ended_at=ended,
        useful="wasted" if is_wasted else "useful",
        price_source=rate.source[: price_source.LENGTH],
    )


class PartlyPriced(BudgetRefused):
    """Some nodes have no price that is known; `known` are the rates of the others."""

    def __init__(self, message: str, known: Mapping[str, Rate]) -> None:
        super().__init__(message)
        self.known = dict(known)


Nodes = Callable[[], Mapping[str, Rate]]
"""The nodes that a stage holds in this moment, by an id of each, and their rates."""


def steady(rate: Rate, nodes: int = 1) -> Nodes:
    """So many nodes that neither come nor go.

    Raises:
        UserError: fewer than one.
    """
    if nodes < 1:
        raise UserError(f"meter: nodes is {nodes}; expected at least 1")
    held = {str(number): rate for number in range(nodes)}
    return lambda: held


def _now() -> datetime:
    return datetime.now(UTC)


class Meter:
    """Charges the time of a stage's nodes while the `with` block runs.

    A node is charged from the look before it was first seen to the look after it was last seen, by
    up to two intervals too much. One that comes and goes between two looks is not seen.

    When the block raises, all its charges are marked wasted, by pairs of correcting charges as
    `mark_wasted` posts them, except those up to `mark_useful_until`.

    A slice that the ledger does not take is tried again with every later one. Charges still
    pending at the end go into a file of the outbox, which the next run posts, and the log has an
    error. Where the outbox cannot be written either (the disk is full), the charges are printed to
    stderr, one JSON object per line, and the ledger's error is raised, or noted on the block's own.

    Args:
        ledger: where the charges go.
        run, customer, stage: what the charges are for.
        nodes: asked with every slice; what it raises ends the block's start, and is only logged
            later: the nodes known by then go on being charged.
        interval_seconds: length of a slice, and what a killed process can lose.
        clock: nanoseconds, never going back.
        now: the aware time at which the meter starts.
        outbox: folder for charges that the ledger does not take; None: they are only printed.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        run: str,
        customer: str,
        stage: str,
        nodes: Nodes,
        interval_seconds: float = 15.0,
        clock: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], datetime] = _now,
        outbox: Path | None = None,
    ) -> None:
        if not interval_seconds > 0:
            raise UserError(f"meter: interval_seconds is {interval_seconds}; expected above 0")
        self._ledger = ledger
        self._run, self._customer, self._stage = run, customer, stage
        self._nodes = nodes
        self._held: dict[str, Rate] = {}
        self._joined: dict[str, int] = {}  # of nodes that came later, at which microsecond
        self._charged: Counter[Rate] = Counter()  # node-microseconds up to the last cut
        self._interval_seconds, self._clock, self._now = interval_seconds, clock, now
        self._outbox = outbox
        self._stored: Path | None = None  # the outbox file of the charges that are pending
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._charges: list[Charge] = []
        self._written = 0
        self._done = False
        self._useful_until: datetime | None = None
        self._cut_at = 0  # microseconds since the start, up to which charges exist

    def __enter__(self) -> Self:
        self._held = dict(self._nodes())
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
        found = self._look()
        with self._lock:
            self._slice(found)
            self._done = True
            if error is not None:
                reason = f"{self._stage} failed ({type(error).__name__})"
                ended = self._moment(self._cut_at)
                began = min(self._useful_until or self._started_at, ended)
                self._charges += waste_corrections(self._charges, began, ended, reason)
            try:
                self._write()
            except Exception as failed:
                is_stored, note = self._store()
                if not is_stored:
                    print(
                        *outbox_files.lines(self._charges[self._written :]),
                        sep="\n",
                        file=sys.stderr,
                    )
                missed = f"the ledger did not take all charges of {self._stage}: {failed}"
                if error is not None:
                    error.add_note(missed)
                    error.add_note(note)
                elif is_stored:
                    _log.error("%s; %s", missed, note)
                else:
                    failed.add_note(note)
                    raise
                return
        if self._error is not None:
            _log.warning("the ledger took all of %s in the end: %s", self._stage, self._error)

    @property
    def usd(self) -> Decimal:
        """What the block has cost up to this moment or its end, written or not."""
        with self._lock:
            open_ = 0 if self._done else self._elapsed() - self._cut_at
            charged = self._charged.copy()
            for rate in self._held.values():
                charged[rate] += open_
        return total_usd(time_usd(time, rate.usd_per_hour) for rate, time in charged.items())

    def usd_per_hour(self) -> Decimal:
        """Of all nodes that are held, together."""
        return total_usd(rate.usd_per_hour for rate in self._held.values())

    def unwritten_usd(self) -> Decimal:
        """The part of it that the ledger does not have yet."""
        with self._lock:
            return self.usd - total_usd(c.amount_usd for c in self._charges[: self._written])

    def cut(self) -> None:
        """Charge the time since the last slice now; the background thread does it by itself.

        Raises:
            Unreachable: the ledger did not take it; it stays pending.
        """
        found = self._look()  # without the lock: AWS may take its time
        with self._lock:
            self._slice(found)
            self._write()

    def mark_useful_until(self, until: datetime) -> None:
        """Work up to `until` is saved: its charges stay useful even if the block raises. The last
        call counts."""
        self._useful_until = until

    def mark_wasted(self, began: datetime, ended: datetime, reason: str) -> Decimal:
        """What the stage was charged between two moments bought nothing: post it as wasted.

        For every process of this run and stage that the ledger knows of, this one up to now, and
        only for what is still useful: the same call again posts nothing. The total stays what it
        was to the last digit.

        Args:
            began, ended: aware times.
            reason: in words; it stands in the price source of the correcting charges.

        Returns:
            USD that are wasted by this call.

        Raises:
            ValueError: `ended` lies before `began`.
            Unreachable: the ledger cannot be read, and nothing is posted; or it does not take
                the charges, and they stay pending.
        """
        found = self._look()
        with self._lock:
            self._slice(found)
            run = self._ledger.charges(run=self._run, customer=self._customer)
            stage = [c for c in run if c.stage == self._stage]
            corrections = waste_corrections([*stage, *self._charges], began, ended, reason)
            self._charges += corrections
            self._write()
        return total_usd(c.amount_usd for c in corrections if c.useful == "wasted")

    def _tick(self) -> None:
        while not self._stopping.wait(self._interval_seconds):
            try:
                self.cut()
            except Exception as error:  # reported at the end of the block
                self._error = error
                with self._lock:
                    _, note = self._store()
                _log.warning("charges of %s are late: %s; %s", self._stage, error, note)

    def _elapsed(self) -> int:
        return self._clock() // 1000 - self._start

    def _slice(self, found: dict[str, Rate]) -> None:
        """A charge per rate from the last cut to now; it counts as useful until it is marked as
        wasted."""
        begin, end = self._cut_at, self._elapsed()
        if end <= begin:
            return
        counted: Counter[Rate] = Counter((found | self._held).values())
        for rate, nodes in counted.items():
            self._charge(rate, (end - begin) * nodes, begin, end)
        self._cut_at = end
        self._charge_minimum(self._held.keys() - found.keys(), end)
        self._joined |= dict.fromkeys(found.keys() - self._held.keys(), begin)
        self._held = found

    def _look(self) -> dict[str, Rate]:
        try:
            return dict(self._nodes())
        except PartlyPriced as error:  # what has a price is charged; training is stopped
            _log.warning("%s: %s", self._stage, error)
            return self._held | error.known
        except Exception as error:  # a cluster whose head is busy, a price that is unknown
            _log.warning(
                "cannot list the nodes of stage %s, so still charging for those last seen: %s",
                self._stage,
                error,
            )
            return dict(self._held)

    def _charge_minimum(self, gone: Set[str], end: int) -> None:
        """Charge the rest of the minimum time of nodes that are gone."""
        missing: Counter[Rate] = Counter()
        for node in gone & self._joined.keys():  # others were here before the stage, for long
            rate = self._held[node]
            least = rate.minimum_seconds * _PER_SECOND
            missing[rate] += max(0, least - (end - self._joined.pop(node)))
        for rate, microseconds in missing.items():
            if microseconds:
                source = price_source.minimum(rate.source, rate.minimum_seconds)
                self._charge(replace(rate, source=source), microseconds, end, end)

    def _charge(self, rate: Rate, microseconds: int, begin: int, end: int) -> None:
        """Of all nodes at one rate."""
        before = self._charged[rate]
        self._charged[rate] += microseconds
        after = self._charged[rate]
        amount = time_usd(after, rate.usd_per_hour) - time_usd(before, rate.usd_per_hour)
        self._charges.append(
            Charge(
                run=self._run,
                customer=self._customer,
                stage=self._stage,
                resource=rate.resource,
                market=rate.market,
                quantity=microseconds * _MICRO,
                unit=UNIT,
                unit_price_usd=per_second(rate.usd_per_hour),
                amount_usd=amount,
                started_at=self._moment(begin),
                ended_at=self._moment(end),
                useful="useful" if begin < end else "wasted",
                price_source=rate.source[: price_source.LENGTH],
            )
        )

    def _moment(self, microseconds: int) -> datetime:
        return self._started_at + timedelta(microseconds=microseconds)

    def _store(self) -> tuple[bool, str]:
        """Put the pending charges into a file of the outbox; returns whether that worked, and a
        sentence about it."""
        charges = self._charges[self._written :]
        usd = format_usd(total_usd(charge.amount_usd for charge in charges))
        if self._outbox is None:
            return False, f"charges of {usd} are NOT stored"
        try:
            # A new file each time: another process may be posting the last one.
            path = outbox_files.store(charges, self._outbox)
        except OSError as error:
            return False, f"charges of {usd} are NOT stored in {self._outbox}: {error}"
        self._forget()
        self._stored = path
        return True, f"charges of {usd} are stored in {path}, and the next run posts them"

    def _forget(self) -> None:
        """Remove the stored file once the ledger or a newer file has all its charges."""
        if self._stored is None:
            return
        try:
            self._stored.unlink(missing_ok=True)
        except OSError as error:  # posting its charges again adds none
            _log.warning("%s is no longer needed, and stays: %s", self._stored, error)
        self._stored = None

    def _write(self) -> None:
        """Post every pending charge, oldest first; one that did get through is not added twice."""
        pending = self._charges[self._written :]
        if pending:
            self._ledger.add_all(pending)
            self._written += len(pending)
            self._forget()
