"""The disk that a run's files take, from when they were written to its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from turbo_vaed.costs import Charge, Ledger, total_usd
from turbo_vaed.costs.storage import UNIT, storage_charge
from turbo_vaed.poc import Poc

KEPT = {"clip": "clip", "encode": "encode", "targets": "distill", "checkpoints": "distill"}
"""Folders of a customer that hold clips, latents, the teacher's targets and checkpoints, and the
stages that write them. Checkpoints in a bucket are removed at the end of a run and not charged."""
SOURCE = "params.yaml prices.storage_usd_per_gb_month"


def book_storage(
    poc: Poc, ledger: Ledger, *, run: str, began: datetime, ended: datetime
) -> Decimal:
    """Charge what is kept at the end of a run, for as long as this run kept it; returns USD.

    Files of an earlier run are charged from the beginning of this one: the time between runs is
    nobody's. Where an earlier try of this run was charged, from there on.

    Raises:
        Unreachable: the ledger does not take it.
    """
    until = {c.resource: c.ended_at for c in ledger.charges(run=run) if c.unit == UNIT}
    charges = [charge for charge in _charges(poc, run, began, ended, until) if charge.quantity > 0]
    ledger.add_all(charges)
    return total_usd(charge.amount_usd for charge in charges)


def _charges(
    poc: Poc, run: str, began: datetime, ended: datetime, charged_until: Mapping[str, datetime]
) -> Iterator[Charge]:
    price = poc.params.prices.storage_usd_per_gb_month
    for folder, stage in KEPT.items():
        files = [path for path in (poc.work / folder).rglob("*") if path.is_file()]
        if not files:
            continue
        resource = f"disk ({folder})"
        free_until = max(began, charged_until.get(resource, began))
        kept = [(path.stat().st_size, max(free_until, _written(path))) for path in files]
        yield storage_charge(
            run=run,
            customer=poc.customer,
            stage=stage,
            resource=resource,
            byte_microseconds=sum(
                size * max(0, (ended - since) // timedelta(microseconds=1)) for size, since in kept
            ),
            since=min(*(since for _, since in kept), ended),
            until=ended,
            usd_per_gb_month=price,
            price_source=SOURCE,
        )


def _written(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
