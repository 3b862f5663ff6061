"""A PoC run on an EC2 machine of its own: the one on which it is expected to cost the least.

Ray's cluster launcher starts the machine, brings the checkout there and sets it up, by
`infra/ray/machine.yaml` and what `configuration` adds to it. The run is the same `turbo-vaed poc`.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from flows import runs
from turbo_vaed.costs import Charge, Ledger, PriceBook, allowance, format_usd, require_allowance
from turbo_vaed.costs.choice import Choice
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import per_second, quantise_usd
from turbo_vaed.costs.tags import ec2_tags, resource_tags
from turbo_vaed.distill.follow import hours_and_minutes
from turbo_vaed.errors import BudgetRefused, Fault, UserError
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.estimates import PACE
from turbo_vaed.stages.prices import limits_of
from turbo_vaed.stages.quote import Quote, quote

TEMPLATE = Path("infra/ray/machine.yaml")
HOME = "~/turbo-vaed"
"""The checkout on the machine."""
STAGE = "machine"
"""What the ledger has of a machine beside its stages: start, set-up, copies, end."""
MACHINE, PLANNED = "machine.yaml", "planned.yaml"
"""What Ray's launcher was told of a machine that may be up; and what it would be told."""
ENVIRONMENT, EXIT_CODE, CHECKOUT = "environment", "exit-code", "checkout"
PASSED_ON = (
    "TURBO_VAED_LEDGER_URL",
    "TURBO_VAED_CHECKPOINTS",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
)
"""Variables that hold there, too. AWS credentials are not among them: the machine has a role."""
_ENDS_ITSELF_MINUTES = 15
"""After the run there has ended, where nobody here ends the machine before."""


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The machine of a run, and why it is that one."""

    choice: Choice
    quote: Quote
    minutes: int
    """After which the machine ends itself: what may be spent is spent by then, at the most that
    an hour of it can cost."""

    @property
    def sentence(self) -> str:
        """What is started, and what it is expected to cost."""
        machine = self.choice.machine
        assert self.choice.usd is not None and machine.usd_per_hour is not None
        late = ""
        if self.choice.seconds > self.minutes * 60:
            late = f", BEFORE the {hours_and_minutes(self.choice.seconds)} that it needs"
        return (
            f"{machine.instance_type} {machine.market} in {machine.zone}: distillation is expected "
            f"to cost {format_usd(self.choice.usd)}, at {format_usd(machine.usd_per_hour)} an "
            f"hour; the machine ends itself after {self.minutes} minutes at the latest{late}"
        )


def pick(
    poc: Poc,
    settings: Settings,
    run: runs.Run,
    *,
    instance_type: str | None = None,
    market: str | None = None,
    book: PriceBook | None = None,
) -> Picked:
    """The EC2 machine on which the customer's distillation is expected to cost the least.

    Args:
        instance_type: of prices.candidates; any by default.
        market: spot or on-demand; either by default.
        book: of prices; AWS is asked by default.

    Raises:
        UserError: no candidate is of that type and market; as `quote`.
        BudgetRefused: no price is known; it does not fit what the run may spend.
    """
    found = quote(poc, settings, book)
    offers = [
        choice
        for choice in found.choices
        if choice.machine.market != "local"
        and instance_type in (None, choice.machine.instance_type)
        and market in (None, choice.machine.market)
    ]
    if not offers:
        known = ", ".join(dict.fromkeys(c.instance_type for c in poc.params.prices.candidates))
        raise UserError(
            f"no EC2 machine of type {instance_type or 'any'} and market {market or 'any'} is in "
            f"prices.candidates of {poc.customer}, which has {known or 'none'}"
        )
    best = offers[0]
    if best.usd is None:
        why = dict.fromkeys(choice.machine.why_unknown for choice in offers)
        raise BudgetRefused(f"nothing is started: {'; '.join(why)}")
    with Ledger.open(settings.ledger_url) as ledger:
        limits, now = limits_of(poc.params), datetime.now(UTC)
        may_spend = allowance(ledger, limits, run=run.run_id, customer=poc.customer, at=now)
        left = may_spend.usd - ledger.total(run=run.run_id)
    require_allowance(may_spend)
    name = f"{best.machine.instance_type} {best.machine.market} in {best.machine.zone}"
    if best.usd > left:
        raise BudgetRefused(
            f"nothing is started: {name} is the cheapest at {format_usd(best.usd)}, and "
            f"{format_usd(left)} are left of {may_spend.by}; lower distill.steps, or raise the "
            "budget"
        )
    most = _on_demand_usd_per_hour(found, best)
    if most is None:
        raise BudgetRefused(
            f"nothing is started: what {name} can come to is not known, for AWS tells no price on "
            "demand of it (pricing:GetProducts)"
        )
    return Picked(choice=best, quote=found, minutes=int(left / most * 60))


def _on_demand_usd_per_hour(found: Quote, best: Choice) -> Decimal | None:
    """What the machine can come to: EC2 takes a spot machine back before it costs more."""
    wanted = (best.machine.instance_type, best.machine.region)
    for choice in found.choices:
        machine = choice.machine
        if (machine.instance_type, machine.region) == wanted and machine.market == "on-demand":
            return machine.usd_per_hour
    return None


def configuration(
    poc: Poc, run: runs.Run, picked: Picked, template: Mapping[str, Any]
) -> dict[str, Any]:
    """What Ray's launcher is told: the template with machine, tags and files.

    Raises:
        UserError: the template lacks what is added to.
    """
    config: dict[str, Any] = copy.deepcopy(dict(template))
    machine = picked.choice.machine
    tags = ec2_tags(resource_tags(run=run.run_id, customer=poc.customer, stage="poc"))
    kinds = ["instance", "volume"]
    try:
        node = config["available_node_types"][config["head_node_type"]]["node_config"]
        # Of the run, so that nobody else's machine is taken for it.
        config["cluster_name"] = f"{config['cluster_name']}-{run.run_id}"
        config["provider"]["region"] = machine.region
        setup = config["setup_commands"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{TEMPLATE} lacks {error}; compare it with the one in git") from None
    node["InstanceType"] = machine.instance_type
    if machine.market == "spot":
        config["provider"]["availability_zone"] = machine.zone
        node["InstanceMarketOptions"] = {"MarketType": "spot"}
        kinds.append("spot-instances-request")
    node["TagSpecifications"] = [{"ResourceType": kind, "Tags": tags} for kind in kinds]
    # At boot, so that it holds whatever fails after it, here or there.
    node["UserData"] = f"#!/bin/sh\nshutdown -h +{picked.minutes}\n"
    config["file_mounts"] = _mounts(poc, setup)
    setup.append(f"grep -q {HOME}.env ~/.bashrc || echo '. {HOME}.env' >> ~/.bashrc")
    return config


def _mounts(poc: Poc, setup: list[str]) -> dict[str, str]:
    """Place on the machine: file or folder here. The checkout as git sees it, what was made for
    the customer, its teacher, and its videos; `setup` gets a link to those that lie elsewhere."""
    mounts = {HOME: str(folder(poc) / CHECKOUT)}
    if (poc.root / ".git").is_dir():
        mounts[f"{HOME}/.git"] = str(poc.root / ".git")
    for made in sorted(poc.work.iterdir()):
        if made.name != "ec2" and not made.name.startswith("."):
            mounts[f"{HOME}/work/{poc.customer}/{made.name}"] = str(made)
    mounts[f"{HOME}.env"] = str(folder(poc) / ENVIRONMENT)
    teacher = poc.teacher_weights()
    mounts[f"{HOME}/{teacher.relative_to(poc.root.resolve())}"] = str(teacher)
    if poc.source.is_relative_to(poc.root.resolve()):
        mounts[f"{HOME}/{poc.source.relative_to(poc.root.resolve())}"] = str(poc.source)
        return mounts
    there = f"~/sources/{poc.customer}"
    mounts[there] = str(poc.source)
    setup.insert(0, f"sudo mkdir -p {shlex.quote(str(poc.source.parent))}")
    setup.insert(1, f"sudo ln -sfn {there} {shlex.quote(str(poc.source))}")
    return mounts


def _copy_checkout(poc: Poc) -> None:
    """What git tracks, or would: nothing that it ignores, so no cache, no secret, no other
    customer's files. With dvc.lock, for what is in it is not made again."""
    target = folder(poc) / CHECKOUT
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=poc.root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in {*listed.stdout.split("\0"), "dvc.lock"} - {""}:
        source, copied = poc.root / name, target / name
        if source.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copied)


def folder(poc: Poc) -> Path:
    """Where what is told to Ray's launcher is kept, and what it was told of."""
    return poc.work / "ec2"


def prepare(poc: Poc, settings: Settings, picked: Picked, run: runs.Run, *, name: str) -> Path:
    """Write everything that Ray's launcher reads; returns its configuration, `name`.

    Raises:
        UserError: the ledger, MLflow or checkpoints would be lost with the machine; a machine of
            this customer may be up.
    """
    place = folder(poc)
    if (place / MACHINE).exists():
        raise UserError(
            f"a machine that was started for {poc.customer} may be up: {place / MACHINE}; end it "
            f"first: turbo-vaed ec2 down {poc.customer}"
        )
    _check_places(settings)
    path = settings.root / TEMPLATE
    try:
        template = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error}") from error
    place.mkdir(parents=True, exist_ok=True)
    _copy_checkout(poc)
    told = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    told |= {"RAY_ADDRESS": "auto"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in told.items()]
    lines += [
        f'export PATH="{HOME.replace("~", "$HOME")}/.venv/bin:$PATH"',
        # A machine that does not know what it is must not pass for a local one, which costs less.
        'export TURBO_VAED_MACHINE="$(turbo-vaed node labels 2> /dev/null || echo unknown)"',
    ]
    secret = place / ENVIRONMENT
    secret.touch(mode=0o600)
    secret.write_text("\n".join(lines) + "\n")
    config = configuration(poc, run, picked, template)
    written = place / name
    written.write_text(yaml.safe_dump(config, sort_keys=False))
    document = {"picked": picked.sentence, **picked.quote.document(poc.params.budget.run_usd)}
    (place / "choice.json").write_text(json.dumps(document, indent=1) + "\n")
    return written


def _check_places(settings: Settings) -> None:
    lost = []
    if settings.ledger_url.startswith("sqlite"):
        lost.append("TURBO_VAED_LEDGER_URL (a PostgreSQL that the machine reaches)")
    if not settings.mlflow_tracking_uri.startswith(("http://", "https://")):
        lost.append("MLFLOW_TRACKING_URI (an MLflow server that the machine reaches)")
    if not (settings.checkpoints_url or "").startswith("s3://"):
        lost.append("TURBO_VAED_CHECKPOINTS (s3://BUCKET/PREFIX)")
    if lost:
        raise UserError(
            "the machine goes at the end, and what it alone holds goes with it: set "
            + "; ".join(lost)
        )


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
