"""Charges a cluster's nodes for the time in which no stage runs on them: between two stages, until
a lost driver is restarted, and until the end of the run.

A meter ends with its stage, and the driver may be lost. So a stage records in a file when it last
saw each node, and whoever comes next charges the nodes that are still there. While a stage runs on
this machine alone, a second meter charges them as they come and go.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from turbo_vaed.config.stages import IDLE_STAGE, RAY_STAGES
from turbo_vaed.costs import Charge, Ledger, Nodes, PartlyPriced, Rate, total_usd
from turbo_vaed.costs.meter import UNIT, node_charge
from turbo_vaed.errors import Unreachable
from turbo_vaed.runtime.files import write_json

TRACKING_FILE = "nodes.json"
"""In the customer's folder: the run, its nodes, and when they were last seen."""

_OF_NODES = (*RAY_STAGES, IDLE_STAGE)
"""Stages whose charges are for the cluster's nodes and not for this machine."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A time by the wall clock, which can be set, and by the clock since boot, which cannot."""

    at: datetime
    boot: str
    """Identifies the boot; empty where the system has no such id."""
    since_boot: float
    """Seconds, including sleep."""


def this_moment() -> Moment:
    """Now, by the clocks of this machine."""
    try:
        boot = _BOOT_ID.read_text().strip()
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):  # not Linux
        boot, since_boot = "", 0.0
    return Moment(at=datetime.now(UTC), boot=boot, since_boot=since_boot)


def tracked(
    nodes: Nodes, path: Path, *, run: str, now: Callable[[], Moment] = this_moment
) -> Nodes:
    """The same nodes; reading them also records in the file `path` that they are there."""

    def look() -> Mapping[str, Rate]:
        found = nodes()
        try:
            _write(path, run, found, now())
        except OSError as error:  # a full disk: they are charged all the same
            _log.warning("the cluster's nodes cannot be recorded: %s", error)
        return found

    return look


def start_tracking(
    ledger: Ledger,
    nodes: Nodes,
    path: Path,
    *,
    run: str,
    customer: str,
    own_node: str = "",
    now: Callable[[], Moment] = this_moment,
) -> None:
    """Record the nodes when a run begins. Where it resumes after its driver was lost, they are
    charged for the time between, as wasted. Arguments as of `charge_idle_nodes`."""
    if not _read(path, run, now())[0]:
        tracked(nodes, path, run=run, now=now)()
        return
    charge_idle_nodes(
        ledger, nodes, path, run=run, customer=customer, is_wasted=True, own_node=own_node, now=now
    )


def is_tracked(path: Path, run: str) -> bool:
    """Whether `path` has nodes of this run."""
    return bool(_read(path, run, this_moment())[0])


def without_node(nodes: Nodes, own_node: str) -> Nodes:
    """The nodes that are idle while a stage runs on this machine: all but this machine and nodes of
    unknown price. Empty where the cluster cannot be reached; whoever comes next charges the
    nodes that are still there."""

    def look() -> Mapping[str, Rate]:
        try:
            found = _priced(nodes)
        except Unreachable as error:
            _log.warning("idle nodes are not charged now: %s", error)
            return {}
        return {node: rate for node, rate in found.items() if node != own_node}

    return look


def _priced(nodes: Nodes) -> dict[str, Rate]:
    try:
        return dict(nodes())
    except PartlyPriced as error:
        _log.warning("some idle nodes are not charged: %s", error)
        return error.known


def charge_idle_nodes(
    ledger: Ledger,
    nodes: Nodes,
    path: Path,
    *,
    run: str,
    customer: str,
    is_wasted: bool = False,
    own_node: str = "",
    now: Callable[[], Moment] = this_moment,
) -> list[Charge]:
    """Charge the nodes of this run in `path` that are still there, from when they were last seen.
    Nodes that have gone are not charged, as nobody saw when, nor are nodes of unknown price.
    Setting the wall clock meanwhile has no effect, unless the machine was rebooted.

    Args:
        is_wasted: whether they were idle because the driver was lost.
        own_node: this machine, where it is one of the nodes: time for which stages that run on
            it alone were charged, as for such a node, is not charged again.

    Raises:
        Unreachable: the ledger does not take it; the file stays as it is.
    """
    moment = now()
    (last, seen), ended = _read(path, run, moment), moment.at
    if not last:
        return []
    held = _priced(nodes)
    charged = [charge for charge in ledger.charges(run=run) if charge.unit == UNIT]
    # A meter's last slice ends after its last look; an end in the future comes from a wrong clock.
    ends = [c.ended_at for c in charged if c.stage in _OF_NODES]
    paid_until = [at for at in ends if at <= ended]
    idle: defaultdict[tuple[Rate, datetime], Decimal] = defaultdict(Decimal)
    for node, rate in held.items():
        if node not in last:
            continue
        began = max([seen, *paid_until])
        seconds = _seconds(began, ended)
        if node == own_node:
            seconds -= _on_this_machine(charged, rate, began)
        idle[rate, began] += max(Decimal(0), seconds)
    charges = [
        node_charge(
            rate, seconds, run=run, customer=customer, stage=IDLE_STAGE, began=began, ended=ended,
            is_wasted=is_wasted,
        )
        for (rate, began), seconds in idle.items()
        if seconds
    ]  # fmt: skip
    ledger.add_all(charges)
    _write(path, run, last, moment)
    return charges


def _on_this_machine(charged: Iterable[Charge], rate: Rate, since: datetime) -> Decimal:
    """Node-seconds that stages on this machine were charged, as for such a node."""
    own = [
        c for c in charged
        if c.stage not in _OF_NODES and c.started_at >= since
        and (c.resource, c.market) == (rate.resource, rate.market)
    ]  # fmt: skip
    return total_usd(charge.quantity for charge in own)


def _seconds(began: datetime, ended: datetime) -> Decimal:
    return Decimal((ended - began) // timedelta(microseconds=1)).scaleb(-6)


def _read(path: Path, run: str, moment: Moment) -> tuple[list[str], datetime]:
    """The nodes of this run, and when they were last seen by the wall clock of `moment`; none where
    the file belongs to another run or is damaged."""
    try:
        document = json.loads(path.read_text())
        nodes, seen = list(document["nodes"]), datetime.fromisoformat(document["at"])
        boot, since_boot = document["boot"], float(document["since_boot"])
        if document["run"] != run:
            return [], moment.at
    except (OSError, ValueError, KeyError, TypeError):
        return [], moment.at
    if boot and boot == moment.boot:
        seen = moment.at - timedelta(seconds=moment.since_boot - since_boot)
    return nodes, seen


def _write(path: Path, run: str, nodes: Iterable[str], moment: Moment) -> None:
    document = {
        "run": run,
        "nodes": list(nodes),
        "at": moment.at.isoformat(),
        "boot": moment.boot,
        "since_boot": moment.since_boot,
    }
    write_json(path, document, indent=None)
