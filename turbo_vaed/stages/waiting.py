"""What a cluster's nodes cost while no stage runs on them: between two stages, until a driver that
was lost is started again, and to the end of the run.

A meter ends with its stage, and the driver of a cluster may not outlive it. So a stage keeps in a
file when it last saw each node, and whoever comes next charges the nodes that are still there.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from turbo_vaed.costs import Charge, Ledger, Nodes, PartlyPriced, Rate, per_second, total_usd
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.stages.prices import RAY_STAGES

STAGE = "waiting"
"""What the ledger calls it."""
FILE = "nodes.json"
"""In the customer's folder: the run, and when each node was seen last."""

_OF_NODES = (*RAY_STAGES, STAGE)
"""Stages that are charged for a cluster's nodes, not for this machine."""
_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


def remembered(nodes: Nodes, path: Path, *, run: str, now: Callable[[], datetime] = _now) -> Nodes:
    """The same nodes; whoever asks for them also keeps in the file `path` that they are there."""

    def look() -> Mapping[str, Rate]:
        found = nodes()
        _write(path, run, dict.fromkeys(found, now()))
        return found

    return look


def begin(nodes: Nodes, path: Path, *, run: str, now: Callable[[], datetime] = _now) -> None:
    """Keep that the nodes are there when a run begins; one that goes on knows since when."""
    if not _read(path, run):
        remembered(nodes, path, run=run, now=now)()


def book_waiting(
    ledger: Ledger,
    nodes: Nodes,
    path: Path,
    *,
    run: str,
    customer: str,
    before: str = "",
    own_resource: str = "",
    now: Callable[[], datetime] = _now,
) -> list[Charge]:
    """Charge the nodes that `path` knows of this run and that are still there, from when they were
    seen last; a node that has gone meanwhile is not charged, for nobody saw when, nor one whose
    price is not known.

    Args:
        before: the stage that begins now. If it was charged in this run before, the wait is that
            for a driver that was lost, and is wasted.
        own_resource: what this machine is charged as, where it is one of the nodes: what stages
            that run on it alone were charged meanwhile is not charged again.

    Raises:
        Unreachable: the ledger does not take it; the file stays as it is.
    """
    last, ended = _read(path, run), now()
    if not last:
        return []
    try:
        held = dict(nodes())
    except PartlyPriced as error:
        _log.warning("of the nodes that waited some are not charged: %s", error)
        held = error.known
    charged = [charge for charge in ledger.charges(run=run) if charge.unit == UNIT]
    is_again = any(charge.stage == before for charge in charged)
    # A meter's last slice goes on after its last look.
    paid_until = [c.ended_at for c in charged if c.stage in _OF_NODES]
    waited: Counter[tuple[Rate, datetime]] = Counter()
    for node in held.keys() & last.keys():
        waited[held[node], max([last[node], *paid_until])] += 1
    charges = []
    for (rate, began), count in waited.items():
        seconds = count * _seconds(began, ended)
        if rate.resource == own_resource:
            seconds -= _on_this_machine(charged, began)
        if seconds > 0:
            charges.append(
                _charge(rate, began, ended, seconds, run=run, customer=customer, is_wasted=is_again)
            )
    ledger.add_all(charges)
    _write(path, run, dict.fromkeys(last, ended))
    return charges


def _on_this_machine(charged: Iterable[Charge], since: datetime) -> Decimal:
    """Node-seconds that its own stages were charged."""
    own = [c for c in charged if c.stage not in _OF_NODES and c.started_at >= since]
    return total_usd(charge.quantity for charge in own)


def _seconds(began: datetime, ended: datetime) -> Decimal:
    return Decimal((ended - began) // timedelta(microseconds=1)).scaleb(-6)


def _charge(
    rate: Rate,
    began: datetime,
    ended: datetime,
    node_seconds: Decimal,
    *,
    run: str,
    customer: str,
    is_wasted: bool,
) -> Charge:
    """Of all nodes at one rate."""
    price = per_second(rate.usd_per_hour)
    return Charge(
        run=run,
        customer=customer,
        stage=STAGE,
        resource=rate.resource,
        market=rate.market,
        quantity=node_seconds,
        unit=UNIT,
        unit_price_usd=price,
        amount_usd=quantise_usd(node_seconds * price),
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
