"""The configuration of a machine for Ray's cluster launcher: type, tags, files, environment; it is
written below `work/CUSTOMER/ec2/`."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from flows import runs
from flows.launch.instance_selection import Selection
from turbo_vaed.config import pipeline
from turbo_vaed.costs.money import plain
from turbo_vaed.costs.tags import ec2_tags, resource_tags
from turbo_vaed.errors import UserError
from turbo_vaed.planning.ec2_costs import TEMPLATE, node_config, read_template
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

HOME = "~/turbo-vaed"
"""The checkout on the machine."""
MACHINE, PLANNED = "machine.yaml", "planned.yaml"
"""The launcher's configuration of a machine that may be up, and of one that is only planned."""
ENVIRONMENT, CHECKOUT = "environment", "checkout"
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
"""Variables that are passed on to the machine. Not AWS credentials: the machine has a role."""


def configuration(
    workspace: Workspace, run: runs.Run, selection: Selection, common: dict[str, Any]
) -> dict[str, Any]:
    """The launcher's configuration: what all machines have in common, with this one's type, tags
    and files.

    Raises:
        UserError: `common` lacks a key that is extended; the checkout is a git worktree.
    """
    config: dict[str, Any] = copy.deepcopy(common)
    machine = selection.choice.machine
    tags = ec2_tags(resource_tags(run=run.run_id, customer=workspace.customer, stage="poc"))
    kinds = ["instance", "volume"]
    node = node_config(config)
    try:
        # The run's own, so that no other machine is taken for it.
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
    node["UserData"] = f"#!/bin/sh\nshutdown -h +{selection.minutes}\n"
    config["file_mounts"] = _mounts(workspace, setup)
    setup.append(f"grep -q {HOME}.env ~/.bashrc || echo '. {HOME}.env' >> ~/.bashrc")
    return config


def _mounts(workspace: Workspace, setup: list[str]) -> dict[str, str]:
    """Place on the machine: file or folder here. The checkout as git sees it, what was made for
    the customer, its teacher, and its videos; `setup` gets a link to those that lie elsewhere."""
    mounts = {HOME: str(folder(workspace) / CHECKOUT)}
    if (workspace.root / ".git").is_file():
        raise UserError(
            f"{workspace.root} is a git worktree, whose commits lie in another folder that the "
            "machine does not get; run `turbo-vaed ec2` from a clone"
        )
    if (workspace.root / ".git").is_dir():
        mounts[f"{HOME}/.git"] = str(workspace.root / ".git")
    for made in sorted(workspace.work.iterdir()):
        if made.name != "ec2" and not made.name.startswith("."):
            mounts[f"{HOME}/work/{workspace.customer}/{made.name}"] = str(made)
    mounts[f"{HOME}.env"] = str(folder(workspace) / ENVIRONMENT)
    teacher = workspace.teacher_weights()
    mounts[f"{HOME}/{teacher.relative_to(workspace.root.resolve())}"] = str(teacher)
    if weights := workspace.perceptual_weights():
        if not weights.is_relative_to(workspace.root):
            raise UserError(
                f"distill.perceptual_weights: {weights} lies outside {workspace.root}, which is "
                "all that the machine gets; copy it there, for instance to assets/"
            )
        mounts[f"{HOME}/{weights.relative_to(workspace.root)}"] = str(weights)
    if workspace.source.is_relative_to(workspace.root.resolve()):
        mounts[f"{HOME}/{workspace.source.relative_to(workspace.root.resolve())}"] = str(
            workspace.source
        )
        return mounts
    there = f"~/sources/{workspace.customer}"
    mounts[there] = str(workspace.source)
    setup.insert(0, f"sudo mkdir -p {shlex.quote(str(workspace.source.parent))}")
    setup.insert(1, f"sudo ln -sfn {there} {shlex.quote(str(workspace.source))}")
    return mounts


def _copy_checkout(workspace: Workspace) -> None:
    """What git tracks, or would: nothing that it ignores, so no cache, no secret, no other
    customer's files. With its dvc.lock, for what is in it is not made again."""
    target = folder(workspace) / CHECKOUT
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        check=True,
    )
    own = {str(path.relative_to(workspace.root)) for path in workspace.dvc_lock.parent.glob("*")}
    shared = {
        name
        for name in listed.stdout.split("\0")
        if name.split("/")[0] not in ("", pipeline.FOLDER)
    }
    for name in shared | own:
        source, copied = workspace.root / name, target / name
        if source.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copied)


def folder(workspace: Workspace) -> Path:
    """The folder with the launcher's configuration, and the files it names."""
    return workspace.work / "ec2"


def prepare(
    workspace: Workspace, settings: Settings, selection: Selection, run: runs.Run, *, name: str
) -> Path:
    """Write everything that Ray's launcher reads; returns the path of its configuration, `name`.

    Raises:
        UserError: the ledger, MLflow or checkpoints would be lost with the machine; a machine of
            this customer may be up.
    """
    place = folder(workspace)
    if (place / MACHINE).exists():
        raise UserError(
            f"a machine that was started for {workspace.customer} may be up ({place / MACHINE}): "
            f"end it first with turbo-vaed ec2 down {workspace.customer}"
        )
    _check_places(settings)
    common = read_template(settings.root)
    place.mkdir(parents=True, exist_ok=True)
    _copy_checkout(workspace)
    variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    variables |= {
        "RAY_ADDRESS": "auto",
        "TURBO_VAED_MACHINE_OVERHEAD_USD": plain(selection.machine_overhead_usd),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [
        f'export PATH="{HOME.replace("~", "$HOME")}/.venv/bin:$PATH"',
        # A machine without labels must not pass for a local one, which costs less.
        'export TURBO_VAED_MACHINE="$(turbo-vaed node labels 2> /dev/null || echo unknown)"',
    ]
    secret = place / ENVIRONMENT
    secret.touch(mode=0o600)
    secret.write_text("\n".join(lines) + "\n")
    config = configuration(workspace, run, selection, common)
    written = place / name
    written.write_text(yaml.safe_dump(config, sort_keys=False))
    document = {
        "selection": selection.sentence,
        **selection.quote.document(workspace.params.budget.run_usd),
    }
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
        raise UserError("these would be lost with the machine when it ends; set " + "; ".join(lost))
