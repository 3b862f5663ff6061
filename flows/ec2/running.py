"""A machine from its start to its end: the run on it, what it made, what it cost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import FrameType

import yaml

from flows import runs
from flows.ec2.picking import Picked
from flows.ec2.telling import HOME, folder
from turbo_vaed.costs import Charge, Ledger
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import per_second, quantise_usd
from turbo_vaed.errors import Fault
from turbo_vaed.poc import Poc
from turbo_vaed.stages.estimates import PACE

STAGE = "machine"
"""What the ledger has of a machine beside its stages: start, set-up, copies, end."""
EXIT_CODE = "exit-code"
_ENDS_ITSELF_MINUTES = 15
"""After the run there has ended, where nobody here ends the machine before."""


@contextmanager
def started(config: Path) -> Iterator[None]:
    """The machine, up and set up; it is ended with the block, by a signal, too.

    Raises:
        Fault: it could not be started or set up.
    """
    with _signals_raise():
        try:
            if _ray("up", "--yes", "--no-config-cache", str(config)) != 0:
                raise Fault(
                    "the machine could not be started or set up: Ray's launcher says why above"
                )
            yield
        finally:
            end(config)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """A closed terminal or a `kill` ends the block as Ctrl-C does, and not the process at once."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    kept = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def end(config: Path) -> None:
    """End the machine; its configuration goes with it.

    Raises:
        Fault: AWS or Ray refused; it may still cost money.
    """
    if _ray("down", "--yes", str(config)) != 0:
        raise Fault(
            f"the machine of {config} could not be ended and may still cost money: turbo-vaed ec2 "
            "down, or the EC2 console; it ends itself when its budget's minutes are over"
        )
    config.unlink(missing_ok=True)


def run_there(poc: Poc, config: Path) -> int:
    """Run the PoC on the machine and fetch what it made; returns its exit code.

    Raises:
        Fault: the machine was lost, or cannot be reached any more.
    """
    place = folder(poc)
    code = f"{HOME}/{EXIT_CODE}"
    command = (
        # The machine ends itself soon after, where nobody is left here to end it.
        f"rm -f {code}; trap 'sudo shutdown -h +{_ENDS_ITSELF_MINUTES}' EXIT; trap 'exit 129' HUP; "
        "unset OMP_NUM_THREADS; "  # 1 by Ray's launcher, for every process
        f"cd {HOME} && turbo-vaed poc {poc.customer}; echo $? > {code}"
    )
    fetched = place / "fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    wanted = (EXIT_CODE, f"work/{poc.customer}/", "dvc.lock")
    is_whole = _ray("exec", str(config), command) == 0 and all(
        _ray("rsync-down", str(config), f"{HOME}/{there}", str(fetched / Path(there).name)) == 0
        for there in wanted
    )
    if not is_whole or not (fetched / EXIT_CODE).is_file():
        raise Fault(
            "the machine was lost, or cannot be reached; run the same command again to go on from "
            "the last checkpoint on the machine that is cheapest then"
        )
    _take_over(poc, fetched)
    found = int((fetched / EXIT_CODE).read_text())
    shutil.rmtree(fetched)
    return found


def _take_over(poc: Poc, fetched: Path) -> None:
    """What the run made takes the place of what was here: of this customer alone, and whole
    folders, for files that are gone there must not stay here. The pace of this machine stays."""
    for made in (fetched / poc.customer).iterdir():
        here = poc.work / made.name
        if made.name in ("ec2", PACE) or made.name.startswith("."):
            continue
        if here.is_dir():
            shutil.rmtree(here)
        os.replace(made, here)
    lock = poc.root / "dvc.lock"
    theirs = yaml.safe_load((fetched / "dvc.lock").read_text())
    whole = yaml.safe_load(lock.read_text()) if lock.is_file() else {**theirs, "stages": {}}
    own = {k: v for k, v in theirs["stages"].items() if k.endswith(f"@{poc.customer}")}
    whole["stages"] = {**whole["stages"], **own}
    lock.write_text(yaml.safe_dump(whole, sort_keys=False))


def charge_rest(
    ledger: Ledger, poc: Poc, run: runs.Run, picked: Picked, *, began: datetime, ended: datetime
) -> Charge | None:
    """Charge what the machine was up beside the stages that were charged there; None if nothing.

    At the price of when it was picked. A machine that outlived the process that started it was up
    for longer: `turbo-vaed cost reconcile` shows that.
    """
    machine = picked.choice.machine
    assert machine.usd_per_hour is not None and machine.market != "local"
    charged = sum(
        (
            charge.quantity
            for charge in ledger.charges(run=run.run_id)
            if charge.unit == UNIT and charge.resource == machine.instance_type
            and charge.started_at >= began
        ),
        start=Decimal(0),
    )  # fmt: skip
    rest = Decimal(str((ended - began).total_seconds())) - charged
    if rest <= 0:
        return None
    price = per_second(machine.usd_per_hour)
    charge = Charge(
        run=run.run_id,
        customer=poc.customer,
        stage=STAGE,
        resource=machine.instance_type,
        market=machine.market,
        quantity=rest,
        unit=UNIT,
        unit_price_usd=price,
        amount_usd=quantise_usd(rest * price),
        started_at=began,
        ended_at=ended,
        useful="useful",
        price_source="start, set-up and end, at the price of when the machine was picked",
    )
    ledger.add(charge)
    return charge


def _ray(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], check=False
    ).returncode
