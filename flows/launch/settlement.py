"""Charges what a machine cost outside its stages: start, set-up, copies, end, and downloads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

from flows import runs
from flows.launch.instance_selection import Selection
from flows.launch.launch_config import folder
from turbo_vaed.costs import Charge, Ledger, Rate, outbox
from turbo_vaed.costs.meter import UNIT, node_charge
from turbo_vaed.costs.money import plain
from turbo_vaed.costs.storage import storage_charge
from turbo_vaed.costs.transfer import transfer_charge
from turbo_vaed.errors import UserError
from turbo_vaed.planning.ec2_costs import ENDS_ITSELF_MINUTES, VOLUME
from turbo_vaed.runtime.files import read_json, write_json
from turbo_vaed.workspace import Workspace

STAGE = "machine"
"""The ledger's stage for what a machine costs outside its stages."""
RESULTS = "results"
_AMOUNTS = ("usd_per_hour", "volume_usd_per_gb_month")


@dataclass(frozen=True, kw_only=True)
class Started:
    """A machine that was started; recorded in a file until all of it is charged, so that a machine
    that outlived the process which started it is charged when `turbo-vaed ec2 down` ends it."""

    run: str
    customer: str
    instance_type: str
    market: Literal["spot", "on-demand"]
    usd_per_hour: Decimal
    """When it was selected."""
    began: datetime
    minutes: int
    """After which it ends itself."""
    volume_gib: int
    volume_usd_per_gb_month: Decimal


def record(workspace: Workspace) -> Path:
    """The file with the machine that was started last."""
    return folder(workspace) / "started.json"


def note(workspace: Workspace, run: runs.Run, selection: Selection, *, began: datetime) -> Started:
    """Record the machine that is about to be started.

    Raises:
        UserError: the machine before it is not charged yet.
    """
    path = record(workspace)
    if path.exists():
        raise UserError(
            f"the last machine of {workspace.customer} is not charged yet ({path}): run "
            f"turbo-vaed ec2 down {workspace.customer}"
        )
    machine = selection.choice.machine
    assert machine.usd_per_hour is not None and machine.market != "local"
    started = Started(
        run=run.run_id,
        customer=workspace.customer,
        instance_type=machine.instance_type,
        market=machine.market,
        usd_per_hour=machine.usd_per_hour,
        began=began,
        minutes=selection.minutes,
        volume_gib=selection.volume_gib,
        volume_usd_per_gb_month=workspace.params.prices.volume_usd_per_gb_month,
    )
    amounts = {name: plain(getattr(started, name)) for name in _AMOUNTS}
    write_json(path, asdict(started) | amounts | {"began": began.isoformat()})
    return started


def settle(ledger: Ledger, workspace: Workspace, *, ended: datetime) -> tuple[Charge, ...]:
    """Charge the last machine, once it has ended, for its time outside stages and for its volume,
    and release the run's reservation; nothing where every machine is charged.

    At the price when it was selected, and for no longer than until it ended itself: soon after its
    last stage, or when its minutes were over. If the clock was set back meanwhile, the charge is
    too low: `turbo-vaed cost reconcile` shows that.

    Raises:
        Unreachable: the ledger does not take it; `turbo-vaed ec2 down` does it again.
        CorruptFile: the record of the machine is damaged.
    """
    path = record(workspace)
    if not path.is_file():
        return ()
    document = read_json(path)
    amounts = {name: Decimal(document[name]) for name in _AMOUNTS}
    began = datetime.fromisoformat(document["began"])
    started = Started(**document | amounts | {"began": began})
    charges = tuple(_outside_stages(ledger, started, ended))
    ledger.add_all(charges)
    ledger.release(started.run)
    path.unlink()
    return charges


def _outside_stages(ledger: Ledger, started: Started, ended: datetime) -> Iterator[Charge]:
    known = [c for c in ledger.charges(run=started.run) if c.started_at >= started.began]
    stages = [c for c in known if c.unit == UNIT and c.resource == started.instance_type]
    until = min(ended, started.began + timedelta(minutes=started.minutes))
    if stages:  # it ends itself soon after its last one
        last = max(charge.ended_at for charge in stages)
        until = min(until, last + timedelta(minutes=ENDS_ITSELF_MINUTES))
    up = Decimal(str((until - started.began).total_seconds()))
    if up <= 0:
        return
    # An interrupted attempt to settle may have charged the volume.
    if not any(charge.resource == VOLUME for charge in known):
        yield storage_charge(
            run=started.run,
            customer=started.customer,
            stage=STAGE,
            resource=VOLUME,
            # A GB of EBS is 2**30 bytes; its price is for one, and so is the quantity.
            byte_microseconds=started.volume_gib * 10**9 * int(up * 10**6),
            since=started.began,
            until=until,
            usd_per_gb_month=started.volume_usd_per_gb_month,
            price_source="prices.volume_usd_per_gb_month",
            market="on-demand",
        )
    rest = up - sum((charge.quantity for charge in stages), start=Decimal(0))
    if rest <= 0:
        return
    rate = Rate(
        resource=started.instance_type,
        market=started.market,
        usd_per_hour=started.usd_per_hour,
        source="start, set-up and end, at the price when the machine was selected",
    )
    yield node_charge(
        rate, rest, run=started.run, customer=started.customer, stage=STAGE,
        began=started.began, ended=until,
    )  # fmt: skip


def fetched(
    ledger: Ledger,
    workspace: Workspace,
    run: runs.Run,
    size_bytes: int,
    *,
    at: datetime,
    outbox_folder: Path,
) -> Charge:
    """Charge what was downloaded from AWS when the run had ended."""
    charge = transfer_charge(
        run=run.run_id,
        customer=workspace.customer,
        stage=STAGE,
        what=RESULTS,
        size_bytes=size_bytes,
        began=at,
        ended=at,
        usd_per_gb=workspace.params.prices.transfer_out_usd_per_gb,
    )
    outbox.add_or_store(ledger, charge, outbox_folder)
    return charge
