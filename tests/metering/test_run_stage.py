"""A stage as a run meters it: with a reservation and a tracker of its own, and none left behind."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests import configs
from tests.cluster.environments import SHAPES
from tests.e2e.checkout import ROOT
from tests.planning.customer import book
from turbo_vaed.cluster import autoscaler
from turbo_vaed.cluster.environment import FILE
from turbo_vaed.costs import Ledger
from turbo_vaed.errors import Fault
from turbo_vaed.metering import run_stage
from turbo_vaed.metering.run_stage import run_metered
from turbo_vaed.planning import cluster_config
from turbo_vaed.registry.client import experiment_id
from turbo_vaed.settings import Settings
from turbo_vaed.stages import params
from turbo_vaed.workspace import Workspace


def resolved(root: Path) -> None:
    """A checkout whose demo has its params resolved, as every stage needs them."""
    configs.copy_to(root)
    (root / "assets").symlink_to(Path(__file__).parents[2] / "assets")
    params.run(Workspace.load(root, "demo"))


def test_a_stage_has_a_tracker_of_its_run(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved(tmp_path)
    settings = dataclasses.replace(
        Settings.from_environment(tmp_path),
        run_id="demo-1",
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        mlflow_tracking_uri=store,
        ray_address=None,
    )

    def run(workspace: Workspace) -> dict[str, object]:
        run_context, start = workspace.run_context, datetime.now(UTC)
        assert run_context.log_metrics and run_context.log_picture and run_context.mark_wasted
        assert run_context.reservation
        assert run_context.reservation.claim(Decimal(7)).usd == 95
        with Ledger.open(settings.ledger_url) as ledger:
            (held,) = ledger.reservations(at=datetime.now(UTC))
        assert (held.run, held.customer, held.upto_usd) == ("demo-1", "demo", 7)
        run_context.log_metrics({"loss": 0.5}, 1)
        run_context.log_picture(b"png", "step-000001.png")
        time.sleep(0.02)
        run_context.mark_wasted(start, datetime.now(UTC), "worker lost")
        time.sleep(0.02)
        workspace.folder("distill").mkdir(parents=True)
        return {}

    monkeypatch.setattr("turbo_vaed.stages.distill.run", run)
    run_metered(settings, "distill", "demo")
    client = MlflowClient(tracking_uri=store)
    (found,) = client.search_runs([experiment_id(client, store, "demo")])
    assert found.info.run_name == "demo-1 distill"
    assert found.data.metrics == {"loss": 0.5}
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["samples"]
    with Ledger.open(settings.ledger_url) as ledger:
        cost = ledger.by_stage("demo-1")["distill"]
    assert 0 < cost.wasted_usd < cost.usd


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_run_by_hand_leaves_no_reservation(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """While a stage runs on this machine, the nodes of its cluster are metered, too: from when all
    of them were charged for their idle time, this machine with them, so that it is paid once."""
    resolved(tmp_path)
    settings = dataclasses.replace(
        Settings.from_environment(tmp_path),
        run_id=None,
        token=None,
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        mlflow_tracking_uri=store,
        ray_address="10.0.0.1:6379",
    )
    idle_meters: list[str] = []
    idle_until: list[datetime] = []

    @contextmanager
    def others(workspace: Workspace, *given: object) -> Iterator[None]:
        idle_meters.append(str(given[-1]))
        time.sleep(0.05)
        idle_until.append(datetime.now(UTC))
        yield
        idle_meters.append("over")

    def run(workspace: Workspace) -> dict[str, object]:
        assert workspace.run_context.reservation and idle_meters == ["gate"]
        workspace.run_context.reservation.claim(Decimal(7))
        with Ledger.open(settings.ledger_url) as ledger:
            assert [held.upto_usd for held in ledger.reservations(at=datetime.now(UTC))] == [7]
        workspace.folder("gate").mkdir(parents=True)
        if fails:
            raise Fault("the phone is gone")
        return {}

    monkeypatch.setattr(run_stage, "_metering_idle_nodes", others)
    monkeypatch.setattr("turbo_vaed.stages.gate.run", run)
    with pytest.raises(Fault) if fails else nullcontext():
        run_metered(settings, "gate", "demo")
    with Ledger.open(settings.ledger_url) as ledger:
        assert ledger.reservations(at=datetime.now(UTC)) == () and ledger.total() > 0
        assert all(charge.started_at >= idle_until[0] for charge in ledger.charges())


@pytest.mark.slow
def test_machines_are_asked_for_by_what_the_whole_run_may_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`encode` has a section without steps; what a run of them costs decides on demand."""
    resolved(tmp_path)
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text((ROOT / FILE).with_name("environment.example.yaml").read_text())
    settings = dataclasses.replace(
        Settings.from_environment(tmp_path),
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        ray_address="10.0.0.5:6379",
    )
    waited: list[int] = []
    monkeypatch.setattr(run_stage, "price_book", lambda *_: book(tmp_path))
    monkeypatch.setattr(run_stage, "count_by_type", Counter)
    monkeypatch.setattr(
        run_stage, "wait_for_machines", lambda path, least, say: waited.append(least)
    )
    monkeypatch.setattr(cluster_config, "describe", lambda region, candidates: SHAPES)
    stage = Workspace.for_stage(tmp_path, "demo", "encode")
    run_stage._bring_machines(stage, settings, "demo-1", "encode")
    written = yaml.safe_load((tmp_path / autoscaler.CONFIG).read_text())["available_node_types"]
    assert written["g6.xlarge-on-demand"]["max_workers"], "what the demo costs there is cents"
    assert waited == [1]
