"""What a cluster's nodes cost while no stage runs on them: between two stages, until a driver that
was lost is started again, and to the end of the run.

A meter ends with its stage, and the driver of a cluster may not outlive it. So a stage keeps in a
file when it last saw each node, and whoever comes next charges the nodes that are still there.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from turbo_vaed.costs import Charge, Ledger, Nodes, PartlyPriced, Rate, total_usd
from turbo_vaed.costs.meter import UNIT, node_charge
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
        try:
            _write(path, run, dict.fromkeys(found, now()))
        except OSError as error:  # a full disk: they are charged all the same
            _log.warning("that nodes are there is not kept: %s", error)
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
    own_node: str = "",
    now: Callable[[], datetime] = _now,
) -> list[Charge]:
    """Charge the nodes that `path` knows of this run and that are still there, from when they were
    seen last; a node that has gone meanwhile is not charged, for nobody saw when, nor one whose
    price is not known.

    Args:
        before: the stage that begins now. If it was charged in this run before, the wait is that
            for a driver that was lost, and is wasted.
        own_node: this machine, where it is one of the nodes: what stages that run on it alone
            were charged meanwhile, as such a node, is not charged again.

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
    waited: defaultdict[tuple[Rate, datetime], Decimal] = defaultdict(Decimal)
    for node, rate in held.items():
        if node not in last:
            continue
        began = max([last[node], *paid_until])
        seconds = _seconds(began, ended)
        if node == own_node:
            seconds -= _on_this_machine(charged, rate, began)
        waited[rate, began] += max(Decimal(0), seconds)
    charges = [
        node_charge(
            rate, seconds, run=run, customer=customer, stage=STAGE, began=began, ended=ended,
            is_wasted=is_again,
        )
        for (rate, began), seconds in waited.items()
        if seconds
    ]  # fmt: skip
    ledger.add_all(charges)
    _write(path, run, dict.fromkeys(last, ended))
    return charges


def _on_this_machine(charged: Iterable[Charge], rate: Rate, since: datetime) -> Decimal:
    """Node-seconds that its own stages were charged, as the node that it is."""
    own = [
        c for c in charged
        if c.stage not in _OF_NODES and c.started_at >= since
        and (c.resource, c.market) == (rate.resource, rate.market)
    ]  # fmt: skip
    return total_usd(charge.quantity for charge in own)


def _seconds(began: datetime, ended: datetime) -> Decimal:
    return Decimal((ended - began) // timedelta(microseconds=1)).scaleb(-6)


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
    # A meter's threads write at once.
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    partial.write_text(json.dumps(document) + "\n")
    os.replace(partial, path)
