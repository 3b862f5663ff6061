"""A PoC run on an EC2 machine of its own: the one on which it is expected to cost the least.

Ray's cluster launcher starts the machine, brings the checkout there and sets it up, by
`infra/ray/machine.yaml` and what `configuration` adds to it. The run is the same `turbo-vaed poc`.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from flows import runs
from turbo_vaed.costs import Ledger, PriceBook, allowance, format_usd, require_allowance
from turbo_vaed.costs.choice import Choice
from turbo_vaed.costs.tags import ec2_tags, resource_tags
from turbo_vaed.errors import BudgetRefused, Fault, UserError
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.prices import limits_of
from turbo_vaed.stages.quote import Quote, quote

TEMPLATE = Path("infra/ray/machine.yaml")
HOME = "~/turbo-vaed"
"""The checkout on the machine."""
ENVIRONMENT = "environment"
EXIT_CODE = "exit-code"
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


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The machine of a run, and why it is that one."""

    choice: Choice
    region: str
    quote: Quote
    minutes: int
    """After which the machine ends itself: what may be spent is spent by then, at the most that
    an hour of it can cost."""

    @property
    def sentence(self) -> str:
        """What is started, and what it is expected to cost."""
        machine = self.choice.machine
        assert self.choice.usd is not None and machine.usd_per_hour is not None
        return (
            f"{machine.instance_type} {machine.market} in {machine.zone}: distillation is expected "
            f"to cost {format_usd(self.choice.usd)}, at {format_usd(machine.usd_per_hour)} an "
            f"hour; the machine ends itself after {self.minutes} minutes at the latest"
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
    if best.usd is None or best.machine.usd_per_hour is None:
        why = dict.fromkeys(choice.machine.why_unknown for choice in offers)
        raise BudgetRefused(f"nothing is started: {'; '.join(why)}")
    with Ledger.open(settings.ledger_url) as ledger:
        limits, now = limits_of(poc.params), datetime.now(UTC)
        may_spend = allowance(ledger, limits, run=run.run_id, customer=poc.customer, at=now)
        left = may_spend.usd - ledger.total(run=run.run_id)
    require_allowance(may_spend)
    if best.usd > left:
        raise BudgetRefused(
            f"nothing is started: {best.machine.instance_type} {best.machine.market} in "
            f"{best.machine.zone} is the cheapest at {format_usd(best.usd)}, and "
            f"{format_usd(left)} are left of {may_spend.by}; lower distill.steps, or raise the "
            "budget"
        )
    same_type = [
        choice.machine.usd_per_hour
        for choice in found.choices
        if choice.machine.instance_type == best.machine.instance_type
    ]
    most = max(usd for usd in same_type if usd is not None)
    candidate = next(
        c for c in poc.params.prices.candidates if c.instance_type == best.machine.instance_type
    )
    return Picked(
        choice=best,
        region=candidate.region,
        quote=found,
        minutes=int(left / most * 60),
    )


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
        config["cluster_name"] = f"{config['cluster_name']}-{poc.customer}"
        config["provider"]["region"] = picked.region
        setup = config["setup_commands"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{TEMPLATE} lacks {error}; compare it with the one in git") from None
    node["InstanceType"] = machine.instance_type
    if machine.market == "spot":
        config["provider"]["availability_zone"] = machine.zone
        node["InstanceMarketOptions"] = {"MarketType": "spot"}
        kinds.append("spot-instances-request")
    node["TagSpecifications"] = [{"ResourceType": kind, "Tags": tags} for kind in kinds]
    config["file_mounts"] = _mounts(poc, setup)
    # At boot, so that it holds whatever fails after it, here or there.
    node["UserData"] = f"#!/bin/sh\nshutdown -h +{picked.minutes}\n"
    setup.append(f"grep -q {HOME}.env ~/.bashrc || echo '. {HOME}.env' >> ~/.bashrc")
    return config


def _mounts(poc: Poc, setup: list[str]) -> dict[str, str]:
    """Place on the machine: file or folder here. The checkout as git sees it, what was made for
    the customer, and the customer's videos; `setup` gets a link to those that lie elsewhere."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=poc.root,
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted({name.split("/")[0] for name in listed.stdout.split("\0") if name})
    here = [".git", *(name for name in names if (poc.root / name).exists())]
    mounts = {f"{HOME}/{name}": str(poc.root / name) for name in here}
    if (poc.root / "dvc.lock").is_file():
        mounts[f"{HOME}/dvc.lock"] = str(poc.root / "dvc.lock")
    mounts[f"{HOME}/work/{poc.customer}"] = str(poc.work)
    mounts[f"{HOME}.env"] = str(folder(poc) / ENVIRONMENT)
    if not any(poc.source.is_relative_to(poc.root / name) for name in here):
        there = f"~/sources/{poc.customer}"
        mounts[there] = str(poc.source)
        link = shlex.quote(str(poc.source))
        setup.insert(0, f"sudo mkdir -p {shlex.quote(str(poc.source.parent))}")
        setup.insert(1, f"sudo ln -sfn {there} {link}")
    return mounts


def folder(poc: Poc) -> Path:
    """Where what is told to Ray's launcher is kept, and what it was told of."""
    return poc.work / "ec2"


def prepare(poc: Poc, settings: Settings, picked: Picked, run: runs.Run) -> Path:
    """Write everything that Ray's launcher reads; returns its configuration.

    Raises:
        UserError: the ledger, MLflow or checkpoints would be lost with the machine.
    """
    _check_places(settings, picked)
    path = settings.root / TEMPLATE
    try:
        template = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error}") from error
    place = folder(poc)
    place.mkdir(parents=True, exist_ok=True)
    (place / EXIT_CODE).unlink(missing_ok=True)
    told = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    told |= {"RAY_ADDRESS": "auto"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in told.items()]
    lines += [
        "unset OMP_NUM_THREADS",  # 1 by Ray's launcher, for every process on the machine
        f'export PATH="{HOME.replace("~", "$HOME")}/.venv/bin:$PATH"',
        'export TURBO_VAED_MACHINE="$(turbo-vaed node labels)"',
    ]
    secret = place / ENVIRONMENT
    secret.touch(mode=0o600)
    secret.write_text("\n".join(lines) + "\n")
    config = configuration(poc, run, picked, template)
    written = place / "machine.yaml"
    written.write_text(yaml.safe_dump(config, sort_keys=False))
    document = {"picked": picked.sentence, **picked.quote.document(poc.params.budget.run_usd)}
    (place / "choice.json").write_text(json.dumps(document, indent=1) + "\n")
    return written


def _check_places(settings: Settings, picked: Picked) -> None:
    lost = []
    if settings.ledger_url.startswith("sqlite"):
        lost.append("TURBO_VAED_LEDGER_URL (a PostgreSQL that the machine reaches)")
    if not settings.mlflow_tracking_uri.startswith(("http://", "https://")):
        lost.append("MLFLOW_TRACKING_URI (an MLflow server that the machine reaches)")
    on_spot = picked.choice.machine.market == "spot"
    if on_spot and not (settings.checkpoints_url or "").startswith("s3://"):
        lost.append("TURBO_VAED_CHECKPOINTS (s3://BUCKET/PREFIX), for a spot machine can be taken")
    if lost:
        raise UserError(
            "the machine goes at the end, and what it alone holds goes with it: set "
            + "; ".join(lost)
        )


@contextmanager
def started(config: Path) -> Iterator[None]:
    """The machine, up and set up; it is ended with the block, whatever happened.

    Raises:
        Fault: it could not be started or set up.
    """
    try:
        if _ray("up", "--yes", "--no-config-cache", str(config)) != 0:
            raise Fault("the machine could not be started or set up: Ray's launcher says why above")
        yield
    finally:
        end(config)


def end(config: Path) -> None:
    """End the machine.

    Raises:
        Fault: AWS or Ray refused; it may still cost money.
    """
    if _ray("down", "--yes", str(config)) != 0:
        raise Fault(
            f"the machine of {config} could not be ended and may still cost money: end it in the "
            "EC2 console; it ends itself when its budget's minutes are over"
        )


def run_there(poc: Poc, config: Path) -> int:
    """Run the PoC on the machine and fetch what it made; returns its exit code.

    Raises:
        Fault: the machine was lost, or cannot be reached any more.
    """
    code = f"work/{poc.customer}/ec2/{EXIT_CODE}"
    command = f"cd {HOME} && turbo-vaed poc {poc.customer}; echo $? > {HOME}/{code}"
    _ray("exec", str(config), command)
    fetched = [
        _ray("rsync-down", str(config), f"{HOME}/{there}", str(poc.root / there))
        for there in (f"work/{poc.customer}/", "dvc.lock")
    ]
    kept = poc.root / code
    if any(fetched) or not kept.is_file():
        raise Fault(
            "the machine was lost, or cannot be reached; run the same command again to go on from "
            "the last checkpoint on the machine that is cheapest then"
        )
    return int(kept.read_text())


def _ray(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], check=False
    ).returncode
