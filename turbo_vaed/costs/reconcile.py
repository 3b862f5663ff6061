"""The ledger against AWS's bill of a month: what agrees, what differs, and by how much.

Nothing here changes the ledger, which is append only. `correction` says what would be booked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from turbo_vaed.costs import storage, transfer
from turbo_vaed.costs.bill import REQUEST_USD, Bill, BillRow
from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import PRICE_QUANTUM, format_usd, plain, quantise_usd, total_usd
from turbo_vaed.costs.months import Month, usd_within

TOLERANCE_USD = Decimal("0.50")
TOLERANCE_SHARE = Decimal("0.01")
"""Of the bill; a difference above either is reported."""
CORRECTION_STAGE = "bill"
UNTAGGED = "untagged"
BOOKING = (
    "The ledger is append only and was not changed. Once a difference is explained and the bill is "
    "final, it is booked as one more charge of its run (stage bill, bill - ledger USD, in the "
    "month): --format json holds it as `correction`, docs/costs.md how to add it."
)
_PERCENT_QUANTUM = Decimal("0.01")

What = Literal["ledger only", "bill only", "differs", "agrees"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run in the ledger and on the bill."""

    customer: str | None
    """None: what is billed has no such tag."""
    run: str | None
    ledger_usd: Decimal
    bill_usd: Decimal
    what: What
    problem: str = ""
    """Why the bill's row cannot be relied on; such a row never agrees."""
    local_usd: Decimal = Decimal(0)
    """What the ledger has of this run on market `local`, apart from `ledger_usd`."""

    @property
    def difference_usd(self) -> Decimal:
        """Ledger - bill, exactly: above 0 where the ledger has charged too much."""
        return total_usd((self.ledger_usd, self.bill_usd.copy_negate()))

    @property
    def difference_percent(self) -> Decimal | None:
        """Of the bill, rounded to a hundredth; None where the bill is 0."""
        if self.bill_usd == 0:
            return None
        percent = 100 * self.difference_usd / self.bill_usd.copy_abs()
        return quantise_usd(percent, _PERCENT_QUANTUM)

    @property
    def is_run(self) -> bool:
        return self.customer is not None and self.run is not None

    @property
    def note(self) -> str:
        """What a reader should know of a row that differs."""
        notes = [self.problem] if self.problem else []
        if self.is_local_in_the_ledger:
            notes.append(
                f"the ledger has {_usd(self.local_usd)} of this run as local, which AWS does not "
                "bill"
            )
        return "; ".join(notes)

    @property
    def is_local_in_the_ledger(self) -> bool:
        """Whether AWS billed a run that the ledger knows as this machine's alone."""
        return self.what == "bill only" and self.local_usd != 0


@dataclass(frozen=True, kw_only=True)
class LocalRow:
    """What a run was charged on market `local`, which AWS does not bill."""

    customer: str
    run: str
    usd: Decimal


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """A month of the ledger compared with its bill."""

    bill: Bill
    rows: tuple[Row, ...]
    """The largest difference first."""
    not_billed: tuple[LocalRow, ...]

    @property
    def month(self) -> Month:
        return self.bill.month

    @property
    def differing(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.what != "agrees")

    @property
    def ledger_usd(self) -> Decimal:
        return total_usd(row.ledger_usd for row in self.rows)

    @property
    def bill_usd(self) -> Decimal:
        return total_usd(row.bill_usd for row in self.rows)

    @property
    def not_billed_usd(self) -> Decimal:
        return total_usd(row.usd for row in self.not_billed)

    @property
    def difference_usd(self) -> Decimal:
        """Ledger - bill of all rows; differences of both signs cancel in it."""
        return total_usd(row.difference_usd for row in self.rows)

    @property
    def sentence(self) -> str:
        """What the month comes to. Differences of both signs add up in it, and do not cancel."""
        runs = [row for row in self.rows if row.is_run]
        apart = [row for row in runs if row.what != "agrees"]
        text = (
            f"The ledger and the bill of {self.month} agree within 1 % / 0.50 USD in "
            f"{len(runs) - len(apart)} of {len(runs)} runs"
        )
        if apart:
            sizes = total_usd(row.difference_usd.copy_abs() for row in apart)
            text += f"; {len(apart)} differ{'s' * (len(apart) == 1)} by {_usd(sizes)}"
        untagged = [row for row in self.rows if not row.is_run and row.bill_usd]
        if untagged:
            text += f"; {_usd(total_usd(row.bill_usd for row in untagged))} of the bill is untagged"
        return text

    @property
    def caveats(self) -> tuple[str, ...]:
        """What stands between these figures and the last word, in sentences."""
        sentences = []
        if self.bill.is_partial:
            sentences.append(
                f"Partial: {self.month} is not over, and Cost Explorer lags by up to 24 hours."
            )
        elif self.bill.read_at < self.month.until + timedelta(hours=24):
            sentences.append(
                f"Cost Explorer lags by up to 24 hours: the last day of {self.month} may be "
                "missing on the bill."
            )
        if self.bill.is_estimated:
            sentences.append("AWS calls the bill an estimate, which may still change.")
        if self.ledger_usd and not self.bill.rows:
            sentences.append(
                "The bill has nothing with the project's tag: see in docs/costs.md whether the "
                "tags are activated as cost allocation tags."
            )
        return tuple(sentences)


def reconcile(charges: Iterable[Charge], bill: Bill) -> Reconciliation:
    """Compare the charges of the bill's month, by customer and run, with the bill.

    Args:
        charges: all that touch the month, of every market; what lies in other months is cut off.
    """
    billed: dict[tuple[str, str], list[Decimal]] = {}
    local: dict[tuple[str, str], list[Decimal]] = {}
    for charge in charges:
        usd = usd_within(charge, bill.month)
        if usd is not None:
            kept = local if charge.market == "local" else billed
            kept.setdefault(_billed_to(charge), []).append(usd)
    ledger = {key: total_usd(amounts) for key, amounts in billed.items()}
    apart = {key: total_usd(amounts) for key, amounts in local.items()}
    rows = [
        _row(found, ledger.get(key), apart.get(key))
        for found in bill.rows
        for key in [(found.customer or "", found.run or "")]
    ]
    on_bill = {(row.customer or "", row.run or "") for row in rows}
    for key, usd in ledger.items():
        if key not in on_bill:
            missing = BillRow(customer=key[0] or None, run=key[1] or None, usd=Decimal(0))
            row = _row(missing, usd, apart.get(key))
            rows.append(row if row.what == "agrees" else replace(row, what="ledger only"))
    return Reconciliation(
        bill=bill,
        rows=tuple(sorted(rows, key=_largest_first)),
        not_billed=tuple(
            LocalRow(customer=customer, run=run, usd=usd)
            for (customer, run), usd in sorted(apart.items())
        ),
    )


def correction(row: Row, bill: Bill) -> Charge | None:
    """The charge that would make the ledger agree with the bill, for a person to book.

    None where there is nothing to correct or no run to charge, where the bill is not final or
    cannot be relied on, and where the ledger may hold the same as local charges.
    """
    if row.customer is None or row.run is None or row.what == "agrees" or not bill.is_final:
        return None
    if row.problem or row.is_local_in_the_ledger:
        return None
    usd = quantise_usd(row.difference_usd.copy_negate(), PRICE_QUANTUM)
    moment = bill.month.until - timedelta(microseconds=1)
    return Charge(
        run=row.run,
        customer=row.customer,
        stage=CORRECTION_STAGE,
        resource="AWS",
        market="on-demand",  # the bill does not distinguish it from spot
        quantity=usd,
        unit="USD",
        unit_price_usd=Decimal(1),
        amount_usd=usd,
        started_at=moment,
        ended_at=moment,
        useful="useful",
        price_source=f"AWS bill of {bill.month}",
    )


def document(found: Reconciliation, *, every_row: bool) -> dict[str, Any]:
    """For programs; amounts in USD are text, which keeps their digits."""
    shown = found.rows if every_row else found.differing
    return {
        "month": str(found.month),
        "sentence": found.sentence,
        "caveats": list(found.caveats),
        "is_partial": found.bill.is_partial,
        "is_estimated": found.bill.is_estimated,
        "totals": {
            "rows": len(found.rows),
            "rows_that_differ": len(found.differing),
            "ledger_usd": plain(found.ledger_usd),
            "bill_usd": plain(found.bill_usd),
            "difference_usd": plain(found.difference_usd),
            "not_billed_usd": plain(found.not_billed_usd),
        },
        "rows": [
            {
                "customer": row.customer or UNTAGGED,
                "run": row.run or UNTAGGED,
                "ledger_usd": plain(row.ledger_usd),
                "bill_usd": plain(row.bill_usd),
                "difference_usd": plain(row.difference_usd),
                "difference_percent": None
                if row.difference_percent is None
                else plain(row.difference_percent),
                "what": row.what,
                "note": row.note,
                "correction": _written(correction(row, found.bill)),
            }
            for row in shown
        ],
        "not_billed": [
            {"customer": row.customer, "run": row.run, "ledger_usd": plain(row.usd)}
            for row in found.not_billed
        ],
        "corrections": BOOKING,
        "cost_explorer_usd": plain(found.bill.requests * REQUEST_USD),
    }


def table(found: Reconciliation, *, every_row: bool) -> list[dict[str, str]]:
    """For people: rounded, with the totals of all rows at its end."""
    shown = found.rows if every_row else found.differing
    rows = [
        {
            "customer": row.customer or UNTAGGED,
            "run": row.run or UNTAGGED,
            "ledger": format_usd(row.ledger_usd),
            "bill": format_usd(row.bill_usd),
            "difference": format_usd(row.difference_usd),
            "%": "" if row.difference_percent is None else plain(row.difference_percent),
            "what": row.what + "*" * bool(row.note),
        }
        for row in shown
    ]
    if rows:
        rows.append(
            {
                "customer": "all",
                "run": str(len(found.rows)),
                "ledger": format_usd(found.ledger_usd),
                "bill": format_usd(found.bill_usd),
                "difference": format_usd(found.difference_usd),
                "%": "",
                "what": "",
            }
        )
    return rows


def not_billed(found: Reconciliation) -> list[dict[str, str]]:
    """The runs that AWS does not bill, for people."""
    return [
        {"customer": row.customer, "run": row.run, "ledger": format_usd(row.usd)}
        for row in found.not_billed
    ]


def remarks(found: Reconciliation) -> list[str]:
    """What stands below the table."""
    sentences = [
        f"* {row.customer or UNTAGGED} {row.run or UNTAGGED}: {row.note}"
        for row in found.differing
        if row.note
    ]
    if found.not_billed:
        sentences.append(
            f"Not billed by AWS: {_usd(found.not_billed_usd)} of market local in "
            f"{len(found.not_billed)} run{'s' * (len(found.not_billed) != 1)}."
        )
    if found.differing:
        sentences.append(BOOKING)
    return sentences


def _written(charge: Charge | None) -> dict[str, str] | None:
    if charge is None:
        return None
    return {
        name: plain(value)
        if isinstance(value, Decimal)
        else value.isoformat()
        if isinstance(value, datetime)
        else value
        for name, value in asdict(charge).items()
    }


def _billed_to(charge: Charge) -> tuple[str, str]:
    """The customer and run under whose tags AWS bills a charge. Buckets and the transfer of
    what is in them are billed as a whole, under the project's tag alone."""
    is_shared = charge.resource in (
        storage.BUCKET,
        storage.ARRAYS,
        transfer.resource(transfer.CHECKPOINTS),
    )
    return ("", "") if is_shared else (charge.customer, charge.run)


def _row(found: BillRow, ledger_usd: Decimal | None, local_usd: Decimal | None) -> Row:
    row = Row(
        customer=found.customer,
        run=found.run,
        ledger_usd=ledger_usd or Decimal(0),
        bill_usd=found.usd,
        what="agrees",
        problem=found.problem,
        local_usd=local_usd or Decimal(0),
    )
    size = row.difference_usd.copy_abs()
    is_small = size <= TOLERANCE_USD and size <= TOLERANCE_SHARE * found.usd.copy_abs()
    if is_small and not row.problem:
        return row
    return replace(row, what="bill only" if ledger_usd is None else "differs")


def _largest_first(row: Row) -> tuple[Decimal, str, str]:
    return row.difference_usd.copy_abs().copy_negate(), row.customer or "", row.run or ""


def _usd(amount: Decimal) -> str:
    return f"{format_usd(amount).replace('$', '')} USD"
