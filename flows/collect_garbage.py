"""Removing from DVC's remote what a customer's current state does not refer to.

`dvc gc` keeps what the checkout in which it runs refers to, which may be other customers' or an
earlier run's. So it gets a checkout of one customer, made for it, and that customer's prefix.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from configobj import ConfigObj

from flows import customer_state, dvc, open_run, remotes, runs
from flows.open_run import Reached
from turbo_vaed.config import pipeline
from turbo_vaed.errors import Busy, Fault
from turbo_vaed.runtime.files import write_text
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


def collect(settings: Settings, customer: str, *, is_dry: bool) -> str:
    """Remove the objects of a customer's earlier runs from the remote; returns what DVC says of it,
    or why nothing is removed. The customer is held meanwhile, so that no run adds any.

    Args:
        is_dry: say what would be removed, and remove nothing.

    Raises:
        UserError: an unknown customer, or DVC has no default remote.
        Unreachable: the ledger does not answer.
        Fault: DVC failed, or the remote lacks objects that the customer's state refers to.
    """
    workspace = Workspace.load(settings.root, customer)
    pipeline.write(settings.root, customer, workspace.params.source)
    remotes.write(settings.root, customer)
    try:
        with (
            runs.customer_lock(workspace.work, customer),
            open_run.acquired(settings, customer, Reached(step="gc")) as heartbeat,
        ):
            customer_state.fetch(workspace, heartbeat.open_runs)
            if not workspace.dvc_lock.is_file():
                return "nothing was made yet"
            if not customer_state.is_saved(workspace, heartbeat.open_runs):
                return (
                    "left alone: this checkout has made something that its last run did not; run "
                    f"turbo-vaed poc {customer} first"
                )
            with tempfile.TemporaryDirectory() as root:
                _make_checkout(Path(root), workspace)
                if missing := dvc.missing_objects(Path(root), remotes.name_of(customer)):
                    raise Fault(
                        f"{customer}: the remote lacks objects that its last run refers to, so "
                        f"that what belongs to them cannot be told from the rest: {missing}; push "
                        f"them from a checkout that has them: dvc push "
                        f"{pipeline.FOLDER}/{customer}/dvc.yaml"
                    )
                heartbeat.poll()
                if heartbeat.is_lost:
                    return "left alone: a run has taken the customer meanwhile"
                return dvc.collect_garbage(Path(root), remotes.name_of(customer), is_dry=is_dry)
    except Busy as error:
        return f"left alone: {error}"


def _make_checkout(root: Path, workspace: Workspace) -> None:
    """A checkout that has nothing but one customer's pipeline, its lock and its remote."""
    own = pipeline.folder(root, workspace.customer)
    shutil.copytree(workspace.dvc_lock.parent, own)
    config = ConfigObj({"core": {"no_scm": "true", "analytics": "false"}})
    config.update(remotes.sections(workspace.root, workspace.customer))
    write_text(root / ".dvc" / "config", "\n".join(config.write()) + "\n")
