"""What a customer's runs leave to the next one, in whatever checkout that runs: the small files
that say which run it was, which student it may distil, and what DVC has made.

They lie in the ledger's database. A checkout whose files are another revision's takes those of the
database before a run; what the files refer to is in DVC's remote.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import yaml

from flows.open_run import Heartbeat
from flows.runs import BEGUN_FILE, RUN_FILE
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs.open_runs import CustomerState, OpenRuns
from turbo_vaed.metering.idle_nodes import TRACKING_FILE
from turbo_vaed.planning.estimate import ESTIMATE_FILE
from turbo_vaed.planning.history import PACE_FILE
from turbo_vaed.planning.worker_files import RECORD_FILE
from turbo_vaed.runtime.files import read_json, write_json, write_text
from turbo_vaed.workspace import Workspace

_IN_WORK = (RUN_FILE, BEGUN_FILE, ESTIMATE_FILE, PACE_FILE, TRACKING_FILE, RECORD_FILE)
_MARKER = "state.json"
"""In the customer's folder: the revision that the files there are of."""
log = logging.getLogger(__name__)


def fetch(workspace: Workspace, open_runs: OpenRuns) -> bool:
    """Take the files of the customer's last run, if that ran in another checkout; returns whether
    it did. Only for whoever holds the customer, or while nobody does.

    Raises:
        Unreachable: the database does not answer.
    """
    found = of_another_checkout(workspace, open_runs)
    if found is None:
        return False
    lock = workspace.dvc_lock
    before = _outputs(lock.read_text(encoding="utf-8") if lock.is_file() else "")
    now = _outputs(found.files.get(lock.name, ""))
    for stage in STAGES:
        if stage not in now or now[stage] != before.get(stage):
            shutil.rmtree(workspace.folder(stage), ignore_errors=True)  # in DVC's cache and remote
    for name, path in _paths(workspace).items():
        if name in found.files:
            write_text(path, found.files[name])
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(workspace.report.parent, ignore_errors=True)  # of an earlier run
    write_json(workspace.work / _MARKER, {"revision": found.revision})
    return True


def of_another_checkout(workspace: Workspace, open_runs: OpenRuns) -> CustomerState | None:
    """What the customer's last run has left, where that ran in another checkout; else None.

    Raises:
        Unreachable: the database does not answer.
    """
    found, marker = open_runs.state_of(workspace.customer), workspace.work / _MARKER
    if found is None or (marker.is_file() and read_json(marker)["revision"] == found.revision):
        return None
    return found


def save(workspace: Workspace, heartbeat: Heartbeat) -> None:
    """Leave the files as they are now to whatever runs next. Where that fails, the next time does
    it: another checkout would resume further back until then."""
    try:
        revision = heartbeat.save_state(_contents(workspace))
        if revision is not None:
            write_json(workspace.work / _MARKER, {"revision": revision})
    except Exception as error:  # what the run has made is worth more
        log.warning("other checkouts do not see how far %s is: %s", workspace.customer, error)


def is_saved(workspace: Workspace, open_runs: OpenRuns) -> bool:
    """Whether the database has the files as they are here.

    Raises:
        Unreachable: the database does not answer.
    """
    found = open_runs.state_of(workspace.customer)
    return found is not None and dict(found.files) == _contents(workspace)


def _contents(workspace: Workspace) -> dict[str, str]:
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in _paths(workspace).items()
        if path.is_file()
    }


def _outputs(lock: str) -> dict[str, list[str]]:
    """Digests of each stage's outputs, by a dvc.lock."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {})
    return {stage: [out.get("md5", "") for out in made["outs"]] for stage, made in stages.items()}


def _paths(workspace: Workspace) -> dict[str, Path]:
    here = {name: workspace.work / name for name in _IN_WORK}
    return {**here, workspace.dvc_lock.name: workspace.dvc_lock}
