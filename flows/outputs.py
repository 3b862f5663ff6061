"""The outputs of a customer's stages: which are stale, and which lie in DVC's remote only, as in a
fresh checkout, and have to be pulled."""

from __future__ import annotations

import logging
import shutil

from flows import customer_state, dvc, remotes, runs
from turbo_vaed.config import pipeline
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.errors import Fault
from turbo_vaed.runtime.files import read_json, write_json
from turbo_vaed.settings import Settings
from turbo_vaed.stages import params
from turbo_vaed.workspace import Workspace

_LARGE = ("clip", "encode")
"""Whose outputs only other stages read."""
_PULLING = "pulling.json"
"""In the customer's folder, while outputs are pulled: of which stages."""
log = logging.getLogger(__name__)


def stale_stages(workspace: Workspace) -> list[str]:
    """The customer's stages that are stale by the workspace's params: the pipeline and the sections
    of its params are written first, which takes no time and so needs no DVC. The customer's lock
    must be held: a run that goes on must not be given others.

    Outputs that are not here are pulled as far as that is needed to tell. After a run that is
    over, those of clip and encode are not: it has made whatever was stale.

    Raises:
        UserError: no teacher, or no perceptual weights, where the params name some.
        Fault: DVC itself failed, or its remote does not answer.
    """
    pipeline.write(workspace.root, workspace.customer, workspace.params.source)
    remotes.write(workspace.root, workspace.customer)
    params.run(workspace)
    _remove_parts(workspace)
    found = dvc.status(workspace.root, workspace.customer, STAGES)
    if not found.missing:
        return found.changed
    last = runs.read(workspace.work)
    is_over = last is not None and last.status == "done" and not found.changed
    if found.changed:  # all that follows is made again
        wanted = [stage for stage in found.missing if _comes_before(stage, found.changed[0])]
    elif is_over:
        wanted = [stage for stage in found.missing if stage not in _LARGE]
    else:
        wanted = found.missing
    is_here = _pull(workspace, wanted)
    if is_over and is_here:
        return []
    if is_over:  # a remote that is another one, or not mounted, must not cost a run
        raise Fault(
            f"{workspace.customer}'s last run is over and nothing has changed, but DVC's remote "
            f"lacks outputs of {', '.join(wanted)}: check that this checkout has the remote to "
            "which that run pushed (dvc remote list); to have them made again, at a run's price, "
            f"remove {workspace.work / runs.RUN_FILE}"
        )
    now = dvc.status(workspace.root, workspace.customer, STAGES)
    return [stage for stage in STAGES if stage in {*now.changed, *now.missing}]


def pull_inputs(workspace: Workspace, stage: str) -> None:
    """Pull the outputs of all stages before this one from DVC's remote.

    Raises:
        Fault: they are not there, or it does not answer.
    """
    _remove_parts(workspace)
    missing = [
        one for one in STAGES if _comes_before(one, stage) and not workspace.folder(one).exists()
    ]
    if not _pull(workspace, missing):
        raise Fault(
            f"{stage} needs the outputs of {', '.join(missing)}, which are neither here nor in "
            "DVC's remote: dvc repro them, or push them from the checkout that has them"
        )


def fetch(workspace: Workspace, settings: Settings) -> list[str]:
    """Pull all that the customer's last run has made, wherever it ran; returns the stages.

    Raises:
        Busy: a run of the customer is going on.
        Unreachable: the ledger does not answer.
        Fault: DVC failed, or its remote does not answer or lacks some of it.
    """
    pipeline.write(workspace.root, workspace.customer, workspace.params.source)
    remotes.write(workspace.root, workspace.customer)
    with (
        runs.customer_lock(workspace.work, workspace.customer),
        OpenRuns.open(settings.ledger_url) as open_runs,
    ):
        open_runs.require_free(workspace.customer)
        customer_state.fetch(workspace, open_runs)
        if workspace.dvc_lock.is_file() and not _pull(workspace, list(STAGES)):
            raise Fault(f"DVC's remote lacks outputs of {workspace.customer}'s last run")
    return [stage for stage in STAGES if workspace.folder(stage).exists()]


def _pull(workspace: Workspace, stages: list[str]) -> bool:
    """`dvc pull` of the outputs of stages; false where they are not all in the remote."""
    if not stages:
        return True
    log.info("pulling the outputs of %s from DVC's remote", ", ".join(stages))
    write_json(workspace.work / _PULLING, {"stages": stages})
    is_whole = dvc.pull(workspace.root, workspace.customer, stages)
    (workspace.work / _PULLING).unlink()
    if not is_whole:
        log.warning("DVC's remote does not have all outputs of %s", ", ".join(stages))
    return is_whole


def _remove_parts(workspace: Workspace) -> None:
    """Remove what a pull that was cut off has left, which would count as changed."""
    path = workspace.work / _PULLING
    if not path.is_file():
        return
    for stage in read_json(path)["stages"]:
        shutil.rmtree(workspace.folder(stage), ignore_errors=True)
    path.unlink()


def _comes_before(stage: str, other: str) -> bool:
    return STAGES.index(stage) < STAGES.index(other)
