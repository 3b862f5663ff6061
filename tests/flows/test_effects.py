"""What follows the stages: the report, and the charges that it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows import effects, runs
from tests import configs
from turbo_vaed.costs import Ledger
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.shared_log import COPY
from turbo_vaed.errors import Unreachable
from turbo_vaed.report.context import Failure
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.mark.parametrize("is_down", [False, True])
def test_checkpoints_that_another_checkout_wrote_are_charged_where_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    """The run trained there, and went on here with the gate. A storage that is down leaves the
    charge out, and the report is written."""
    configs.copy_to(tmp_path)
    workspace, shared = Workspace.load(tmp_path, "demo"), tmp_path / "shared"
    settings = replace(Settings.from_environment(tmp_path), checkpoints_url=str(shared))
    run = runs.fresh("demo")
    written = datetime.now(UTC) - timedelta(hours=1)
    run = replace(run, started=(written - timedelta(hours=1)).isoformat())
    event = {"event": "checkpoint", "step": 1, "name": "1.pt", "bytes": 10**9}
    log = json.dumps({**event, "at": written.timestamp()}) + "\n"
    Store(str(shared / "demo")).put(COPY, log.encode())
    if is_down:

        def fail(*_: object, **__: object) -> bytes:
            raise Unreachable("S3 does not answer")

        monkeypatch.setattr(Store, "get", fail)
    failure = Failure(stage="gate", error="broken")
    effects.report(workspace, settings, run, None, failure)
    with Ledger.open(settings.ledger_url) as ledger:
        charges = ledger.charges(run=run.run_id)
    assert [c.started_at for c in charges] == ([] if is_down else [written])
    assert workspace.report.is_file()
