"""What a cluster's nodes cost, by their labels, and what a stage on them may spend."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import configs
from tests.ray_head import SPOT
from turbo_vaed.cluster import nodes as cluster
from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config import load, schema
from turbo_vaed.costs import Ledger, PriceBook, Rate
from turbo_vaed.costs.aws_prices import Ec2Prices, Ec2Quote
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.metering import idle_nodes, run_stage
from turbo_vaed.planning import pricing
from turbo_vaed.planning.flops import expected_pace
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HEAD = {MARKET: "local"}
RATE = Rate(resource="node", market="local", usd_per_hour=Decimal("0.08"), source="a list")


class Listed(Ec2Prices):
    """Prices without AWS; AWS's answers are tested with `Ec2Prices` itself."""

    def quote(self, instance_type: str, market: str, *where: Any) -> Ec2Quote | str:
        known = {("g6.xlarge", "spot"): "0.31", ("g6.xlarge", "on-demand"): "0.8"}
        usd = known.get((instance_type, market))
        if usd is None:
            return "AWS gives no price"
        return Ec2Quote(
            usd_per_hour=Decimal(usd), since=NOON, quoted_at=NOON, source="a list", warning="old"
        )


def book(tmp_path: Path) -> PriceBook:
    return PriceBook(local_usd_per_hour=Decimal("0.08"), ec2=Listed(folder=tmp_path, max_age=None))  # type: ignore[arg-type]


def nodes(*labels: dict[str, str]) -> Any:
    return lambda: [{"NodeID": f"n{i}", "Labels": found} for i, found in enumerate(labels)]


def test_each_node_has_the_price_of_its_labels(tmp_path: Path) -> None:
    found = cluster.rates(book(tmp_path), nodes(HEAD, SPOT, {**SPOT, MARKET: "on-demand"}))
    assert [(r.resource, r.market, r.usd_per_hour, r.minimum_seconds) for r in found.values()] == [
        ("node", "local", Decimal("0.08"), 0),
        ("g6.xlarge", "spot", Decimal("0.31"), 60),
        ("g6.xlarge", "on-demand", Decimal("0.8"), 60),
    ]
    assert found["n1"].source == "a list; old", "a warning stands in every charge"
    assert list(found) == ["n0", "n1", "n2"]


def test_a_budget_counts_spot_machines_at_their_on_demand_price(tmp_path: Path) -> None:
    assert cluster.most_usd_of_nodes(book(tmp_path), nodes(HEAD, SPOT, SPOT)) == Decimal("1.68")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, r"labels of node .*\{\}"),
        ({MARKET: "auction"}, r"spot, on-demand, local"),
        ({MARKET: "spot"}, r"turbo-vaed node labels"),
        ({**SPOT, INSTANCE_TYPE: "p9.huge"}, r"spot .*p9\.huge .*eu-central-1b"),
    ],
)
def test_a_node_whose_price_is_unknown_is_refused_by_its_labels(
    tmp_path: Path, labels: dict[str, str], message: str
) -> None:
    with pytest.raises(BudgetRefused, match=message):
        cluster.rates(book(tmp_path), nodes(labels))


@pytest.fixture
def on_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[schema.Params, Settings]:
    """A Ray of this machine, labelled as a spot machine, and settings that call it a cluster."""
    repository = Path(__file__).parents[2]
    loaded = load.load(configs.FOLDER, "demo")
    settings = dataclasses.replace(
        Settings.from_environment(repository), ray_address="10.0.0.1:6379", own_ray_address=None
    )
    monkeypatch.setattr(cluster, "price_book", lambda *_: book(tmp_path))
    return loaded, settings


def test_a_stage_on_a_cluster_is_priced_by_the_nodes_that_ray_has(
    on_cluster: tuple[schema.Params, Settings], on_ray: None
) -> None:
    loaded, settings = on_cluster
    with ray_session(None):
        assert cluster.price_of(loaded, settings, "distill") == Decimal("0.31")
        assert cluster.most_usd_per_hour(loaded, settings, "distill") == Decimal("0.8")
        (rate,) = cluster.nodes_of(loaded, settings, "distill")().values()
        assert (rate.resource, rate.market) == ("g6.xlarge", "spot")
    assert cluster.price_of(loaded, settings, "clip") == Decimal("0.08"), "runs on this machine"


def test_idle_time_of_a_cluster_between_stages_is_charged(
    on_cluster: tuple[schema.Params, Settings], on_ray: None, tmp_path: Path
) -> None:
    """From when the last one looked to when the next begins; a run that goes on had lost its
    driver. The workers are timed there, too."""
    _, settings = on_cluster
    (tmp_path / "assets").symlink_to(settings.root / "assets")
    configs.copy_to(tmp_path)
    workspace = Workspace.load(tmp_path, "demo")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        for stage in ("encode", "distill"):
            with run_stage._nodes(workspace, settings, ledger, "demo-1", stage) as nodes:
                assert [rate.resource for rate in nodes().values()] == ["g6.xlarge"]
        (waited,) = ledger.charges()
        assert (waited.stage, waited.resource, waited.useful) == ("waiting", "g6.xlarge", "useful")
        assert waited.quantity > 0
        held, seen = (
            cluster.nodes_of(workspace.params, settings, "distill"),
            workspace.work / idle_nodes.TRACKING_FILE,
        )
        idle_nodes.start_tracking(ledger, held, seen, run="demo-1", customer="demo")
        last = max(ledger.charges(), key=lambda one: one.ended_at)
        assert (last.stage, last.useful) == ("waiting", "wasted")
    pace = expected_pace(workspace, settings)
    assert pace is not None and pace.mean > 0


def test_nodes_that_come_and_go_during_a_local_stage_are_charged_as_idle(
    on_cluster: tuple[schema.Params, Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver is one of the nodes and has a charge of its own. Of the others one stays, one
    goes, one comes, and one has no price."""
    _, settings = on_cluster
    configs.copy_to(tmp_path)
    workspace, on_demand = Workspace.load(tmp_path, "demo"), {**SPOT, MARKET: "on-demand"}
    there = {"driver": on_demand, "stays": SPOT, "goes": on_demand}

    class Watching:
        """A child that sees them."""

        own_node = "driver"

        def __init__(self, address: str, *, seconds: float) -> None:
            assert address == settings.ray_address

        def __enter__(self) -> Watching:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def nodes(self) -> list[dict[str, Any]]:
            return [{"NodeID": name, "Labels": found} for name, found in there.items()]

    monkeypatch.setattr(run_stage, "Watch", Watching)
    monkeypatch.setattr(run_stage, "CLUSTER_SLICE_SECONDS", 0.02)
    seen = workspace.work / idle_nodes.TRACKING_FILE
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        with run_stage._metering_idle_nodes(workspace, settings, ledger, "demo-1", "gate"):
            time.sleep(0.1)
        assert ledger.charges() == (), "no run has begun on the cluster"
        at_first = cluster.nodes_of(
            workspace.params, settings, "distill", Watching("10.0.0.1:6379", seconds=1).nodes
        )
        idle_nodes.start_tracking(ledger, at_first, seen, run="demo-1", customer="demo")
        start = time.monotonic()
        with run_stage._metering_idle_nodes(workspace, settings, ledger, "demo-1", "gate"):
            time.sleep(0.5)
            del there["goes"]
            there |= {"comes": HEAD, "unknown": {MARKET: "spot"}}
            half = time.monotonic() - start
            time.sleep(0.5)
        whole = time.monotonic() - start
        for_node = {(g.resource, g.market): float(g.quantity) for g in ledger.grouped()}
        assert {group.stage for group in ledger.grouped()} == {"waiting"}
        assert for_node == {
            ("g6.xlarge", "spot"): pytest.approx(whole, abs=0.25),
            # With what the driver itself has waited from the start of the run to the stage.
            ("g6.xlarge", "on-demand"): pytest.approx(half, abs=0.25),
            ("node", "local"): pytest.approx(whole - half, abs=0.25),
        }
        before = len(ledger.charges())
        (again,) = idle_nodes.charge_idle_nodes(
            ledger, lambda: {"stays": RATE}, seen, run="demo-1", customer="demo"
        )
        assert again.quantity < Decimal("0.25"), "only what came after it"
        assert len(ledger.charges()) == before + 1


def test_a_local_stage_runs_without_its_cluster(
    on_cluster: tuple[schema.Params, Settings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, settings = on_cluster
    configs.copy_to(tmp_path)
    workspace = Workspace.load(tmp_path, "demo")
    settings = dataclasses.replace(settings, ray_address="127.0.0.1:9")
    idle_nodes.tracked(
        lambda: {"gone": RATE}, workspace.work / idle_nodes.TRACKING_FILE, run="demo-1"
    )()
    with (
        Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        run_stage._metering_idle_nodes(workspace, settings, ledger, "demo-1", "gate"),
    ):
        assert "127.0.0.1:9" in caplog.text


def test_a_price_of_the_whole_cluster_needs_no_request(
    on_cluster: tuple[schema.Params, Settings],
) -> None:
    loaded, settings = on_cluster
    known = dataclasses.replace(loaded.prices, cluster_usd_per_hour=Decimal("3.5"))
    loaded = dataclasses.replace(loaded, prices=known)
    (rate,) = cluster.nodes_of(loaded, settings, "encode")().values()
    assert (rate.resource, rate.market, rate.usd_per_hour) == ("cluster", "local", Decimal("3.5"))
    assert "cluster_usd_per_hour" in pricing.price_text(loaded, settings)
