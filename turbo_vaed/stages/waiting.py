"""What a cluster's nodes cost while no stage runs on them: between two stages, until a driver that
was lost is started again, and to the end of the run.

A meter ends with its stage, and the driver of a cluster may not outlive it. So a stage keeps in a
file when it last saw each node, and whoever comes next charges the nodes that are still there.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from turbo_vaed.costs import Charge, Ledger, Nodes, Rate, per_second
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import quantise_usd

STAGE = "waiting"
"""What the ledger calls it."""
FILE = "nodes.json"
"""In the customer's folder: the run, and when each node was seen last."""


def _now() -> datetime:
    return datetime.now(UTC)


def remembered(nodes: Nodes, path: Path, *, run: str, now: Callable[[], datetime] = _now) -> Nodes:
    """The same nodes; whoever asks for them also keeps in the file `path` that they are there."""

    def look() -> Mapping[str, Rate]:
        found = nodes()
        _write(path, run, dict.fromkeys(found, now()))
        return found

    return look


def book_waiting(
    ledger: Ledger,
    nodes: Nodes,
    path: Path,
    *,
    run: str,
    customer: str,
    before: str = "",
    now: Callable[[], datetime] = _now,
) -> list[Charge]:
    """Charge the nodes that `path` knows of this run and that are still there, from when they were
    seen last; a node that has gone meanwhile is not charged, for nobody saw when.

    Args:
        before: the stage that begins now. If it was charged in this run before, the wait is that
            for a driver that was lost, and is wasted.

    Raises:
        PartlyPriced: a node's price is not known.
        Unreachable: the ledger does not take it; the file stays as it is.
    """
    last, ended = _read(path, run), now()
    if not last:
        return []
    charged = [charge for charge in ledger.charges(run=run) if charge.unit == UNIT]
    is_again = any(charge.stage == before for charge in charged)
    waited: Counter[tuple[Rate, datetime]] = Counter()
    for node, rate in nodes().items():
        if node in last:
            waited[rate, max([last[node], *_ends(charged, rate)])] += 1
    charges = [
        _charge(rate, began, ended, count, run=run, customer=customer, is_wasted=is_again)
        for (rate, began), count in waited.items()
        if began < ended
    ]
    ledger.add_all(charges)
    _write(path, run, dict.fromkeys(last, ended))
    return charges


def _ends(charged: Iterable[Charge], rate: Rate) -> list[datetime]:
    """When charges of such nodes ended: a meter's last slice goes on after its last look."""
    return [c.ended_at for c in charged if (c.resource, c.market) == (rate.resource, rate.market)]


def _charge(
    rate: Rate,
    began: datetime,
    ended: datetime,
    count: int,
    *,
    run: str,
    customer: str,
    is_wasted: bool,
) -> Charge:
    """Of so many nodes at one rate."""
    price = per_second(rate.usd_per_hour)
    micro = Decimal((ended - began) // timedelta(microseconds=1))
    seconds = count * micro.scaleb(-6)
    return Charge(
        run=run,
        customer=customer,
        stage=STAGE,
        resource=rate.resource,
        market=rate.market,
        quantity=seconds,
        unit=UNIT,
        unit_price_usd=price,
        amount_usd=quantise_usd(seconds * price),
        started_at=began,
        ended_at=ended,
        useful="wasted" if is_wasted else "useful",
        price_source=rate.source,
    )


def _read(path: Path, run: str) -> dict[str, datetime]:
    """The nodes of this run; none where the file is of another one, or is not whole."""
    try:
        document = json.loads(path.read_text())
        if document["run"] != run:
            return {}
        return {node: datetime.fromisoformat(at) for node, at in document["nodes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, run: str, nodes: Mapping[str, datetime]) -> None:
    document = {"run": run, "nodes": {node: at.isoformat() for node, at in nodes.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document) + "\n")
    os.replace(partial, path)
