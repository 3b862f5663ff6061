"""Estimates of a run, from what the customer's last run took."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from decimal import Decimal

import pytest

from tests.planning.customer import (
    book,
    charge,
    estimated,
    local,
    measured_pace,
    with_distill,
)
from turbo_vaed.costs import Ledger, PriceBook
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.planning import flops, pricing
from turbo_vaed.planning.estimate import (
    ESTIMATE_FILE,
    CostRange,
)
from turbo_vaed.planning.flops import (
    Timing,
)
from turbo_vaed.planning.history import Pace, downstream, save_pace
from turbo_vaed.planning.pricing import reserve_seconds, spending_of
from turbo_vaed.planning.quote import cheapest_elsewhere, quote
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.mark.slow
def test_a_first_run_is_estimated_with_its_teacher(
    workspace: Workspace, settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that takes five times as long as all steps."""
    pace, once = Pace(least=1, mean=2, most=4), Pace(least=5000, mean=10_000, most=20_000)
    timing = Timing(pace=pace, once=once)
    monkeypatch.setattr(flops, "expected_timing", lambda *_: timing)
    (workspace.folder("distill") / "history.json").unlink()
    found = estimated(workspace, settings, ledger, may_spend_usd=Decimal(95))
    assert "2:46:40" in found.basis
    assert found.seconds == 2000, "of the steps alone"
    reserved = Decimal("0.08") * 300 / 3600 + charge("x", "x", 0, 1).amount_usd
    assert float(found.likely_usd - reserved) == pytest.approx(12_000 * 0.08 / 3600, rel=1e-4)
    assert float(found.low_usd) == pytest.approx(6_000 * 0.08 / 3600, rel=1e-4), (
        "the later stages may need nothing of what is reserved for them"
    )
    half = Decimal("0.08") * 5_500 / 3600 + reserved
    with pytest.raises(BudgetRefused) as refused:
        estimated(workspace, settings, ledger, may_spend_usd=half)
    assert "distill.steps" not in str(refused.value), "no number of steps fits"
    enough = Decimal("0.08") * 6_001 / 3600 + reserved
    assert estimated(workspace, settings, ledger, may_spend_usd=enough) == found


def test_an_estimate_is_the_last_runs_pace_and_its_other_stages(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    found = estimated(workspace, settings, ledger, may_spend_usd=Decimal(95))
    assert found is not None
    assert found.seconds == pytest.approx(1000 * 36)
    assert float(found.likely_usd) == pytest.approx((36_000 + 60 + 100 + 40 + 1) * 0.08 / 3600)
    assert "36 s per step" in found.basis and "$0.00447" in found.basis
    saved = json.loads((workspace.work / ESTIMATE_FILE).read_text())
    assert Decimal(saved["likely_usd"]) == found.likely_usd and saved["steps"] == 1000
    few = estimated(workspace, settings, ledger, stages=["distill"], may_spend_usd=Decimal(95))
    assert few is not None
    assert float(few.likely_usd) == pytest.approx((36_000 + 60 + 1) * 0.08 / 3600)


def test_later_stages_are_estimated_by_their_last_times(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    ledger.add(charge("gate", "demo-1", 10_000, 19_000))  # not the last one
    found = estimated(workspace, settings, ledger, stages=["gate"], may_spend_usd=Decimal(1))
    assert "gate took 0:40 in the last run" in found.basis
    assert float(found.likely_usd) == pytest.approx(40 * 0.08 / 3600)
    stages = ["evaluate", "export", "gate"]
    unknown = estimated(
        workspace, settings, ledger, stages=stages, may_spend_usd=Decimal(2), spent_usd=Decimal(1)
    )
    assert unknown is not None
    assert float(unknown.likely_usd) == pytest.approx(300 * 0.08 / 3600), "as it is reserved"
    kept = json.loads((workspace.work / ESTIMATE_FILE).read_text())
    assert Decimal(kept["likely_usd"]) == unknown.likely_usd + 1, "of the whole run"
    with pytest.raises(BudgetRefused, match=r"can spend \$0\.00 .*gate\.device"):
        estimated(
            workspace,
            settings,
            ledger,
            stages=["gate"],
            may_spend_usd=Decimal(1),
            spent_usd=Decimal(1),
        )


def test_a_future_run_reserves_the_most_that_devices_can_cost(
    workspace: Workspace, settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "devices_usd", lambda params: Decimal("10.2"))
    with pytest.raises(BudgetRefused, match=r"\$10\.2\d are reserved"):
        estimated(workspace, settings, ledger, may_spend_usd=Decimal("10.5"))
    assert estimated(workspace, settings, ledger, may_spend_usd=Decimal("11.1")) is not None


def test_idle_nodes_and_devices_are_in_the_estimate(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    before = estimated(workspace, settings, ledger, may_spend_usd=Decimal(95))
    waited = charge("waiting", "demo-2", 30_040, 31_040)
    phone = charge("gate", "demo-2", 30_000, 30_500, unit="device-minute")
    ledger.add_all([waited, phone])
    found = estimated(workspace, settings, ledger, may_spend_usd=Decimal(95))
    assert before
    assert found.likely_usd - before.likely_usd == waited.amount_usd + phone.amount_usd


def test_changed_params_widen_the_estimate_of_their_stage(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    """A shape was added, say: by what DVC has recorded of the last run of `export`."""
    stages, path = ["export", "gate"], workspace.work / "params" / "export.yaml"

    def found() -> CostRange:
        estimate = estimated(workspace, settings, ledger, stages=stages, may_spend_usd=Decimal(95))
        assert estimate is not None
        return estimate

    before = found()
    path.parent.mkdir(parents=True)
    path.write_text("targets: [a]\n")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    deps = [{"path": "work/demo/params/export.yaml", "md5": md5}]
    lock = {"stages": {"export": {"deps": deps}}}
    workspace.dvc_lock.parent.mkdir(parents=True)
    workspace.dvc_lock.write_text(json.dumps(lock))
    assert found() == before
    path.write_text("targets: [a, b]\n")
    after = found()
    assert after.low_usd == before.low_usd and after.high_usd > 2 * before.high_usd
    assert "parameters of export" in after.basis and "parameters" not in before.basis


@pytest.mark.slow
@pytest.mark.usefixtures("machine_speed")
def test_a_pace_of_other_params_does_not_count(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    other = with_distill(workspace, batch_size=99)
    found = estimated(other, settings, ledger, may_spend_usd=Decimal(95))
    assert found is not None and "by arithmetic" in found.basis
    assert found.low_usd < found.likely_usd / 2 < found.high_usd / 4, "a wide range"
    assert "36 s per step" not in found.basis
    elsewhere = dataclasses.replace(settings, ray_address="10.0.0.1:6379")
    with pytest.raises(UserError, match="unset RAY_ADDRESS"):
        quote(workspace, elsewhere, book(workspace.root))


def test_a_run_that_cannot_fit_is_refused_with_steps_and_budget_that_would(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    """Half of the 36200 s fit. 300 are reserved, of which the gate takes 40, and for the disk
    what another second costs: 489 steps."""
    half = Decimal("0.08") * 18100 / 3600
    with pytest.raises(BudgetRefused, match=r"set distill\.steps to 489 or raise") as refusal:
        estimated(workspace, settings, ledger, may_spend_usd=half)
    remedy = re.search(r"budget\.run_usd to \$([0-9.]+[0-9])", str(refusal.value))
    assert remedy is not None
    assert estimated(workspace, settings, ledger, may_spend_usd=Decimal(remedy[1])) is not None
    less = with_distill(workspace, steps=489)
    assert estimated(less, settings, ledger, may_spend_usd=half) is not None, "as the refusal says"
    with pytest.raises(BudgetRefused) as refused:
        estimated(workspace, settings, ledger, may_spend_usd=Decimal("0.001"))
    assert "distill.steps" not in str(refused.value), "no number of steps fits"


def test_the_longest_later_stages_so_far_are_reserved(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    """An hour of gate is more than budget.reserve_seconds; a fifth on top."""
    assert downstream(ledger.grouped(customer="demo")).seconds == 40
    ledger.add(charge("gate", "demo-3", 40_000, 43_600))
    after = downstream(ledger.grouped(customer="demo"))
    assert after.seconds == 3600, "the most of one run, not both"
    failed = dataclasses.replace(charge("gate", "demo-9", 90_000, 90_002), useful="wasted")
    ledger.add(failed)
    assert downstream(ledger.grouped(customer="demo")) == after, (
        "a gate that crashed took no time that counts"
    )
    assert after.usd == charge("x", "x", 0, 1).amount_usd, "of the disk"
    volume = charge("machine", "demo-2", 0, 99_000, unit="GB-month")
    ledger.add(dataclasses.replace(volume, resource="volume"))
    assert downstream(ledger.grouped(customer="demo")) == after, (
        "whoever starts a machine reserves its cost"
    )
    assert reserve_seconds(workspace.params, after) == pytest.approx(4320)
    run_context = RunContext(spent_usd=lambda: Decimal(0), downstream=lambda: after)
    spending = spending_of(
        dataclasses.replace(workspace, run_context=run_context), settings, "distill"
    )
    hours = (spending.budget.reserve_usd - after.usd) / Decimal("0.08")
    assert float(hours) == pytest.approx(1.2)


def test_a_machine_on_which_the_run_would_fit_is_named(
    workspace: Workspace, settings: Settings
) -> None:
    def elsewhere(usd: str) -> str:
        return cheapest_elsewhere(workspace, settings, Decimal(usd), book(workspace.root))

    fits = elsewhere("0.21")
    assert re.search(r"g5\.xlarge spot .*eu-central-1b .*\$", fits)
    assert "turbo-vaed ec2 run demo" in fits
    costly = elsewhere("0.01")
    assert "g5.xlarge" in costly and "ec2 run" not in costly
    unknown = PriceBook(local_usd_per_hour=Decimal("0.08"))
    assert "no price" in cheapest_elsewhere(workspace, settings, Decimal(1), unknown)
    on_a_cluster = dataclasses.replace(settings, ray_address="10.0.0.1:6379")
    assert cheapest_elsewhere(workspace, on_a_cluster, Decimal(1)) == ""


def test_a_run_without_steps_keeps_the_pace_of_the_one_before(workspace: Workspace) -> None:
    path, settings = workspace.folder("distill") / "history.json", local(workspace.root)
    history = json.loads(path.read_text())
    save_pace(workspace, history)
    measured = measured_pace(workspace, settings)
    for steps in ([], history["steps"][:3]):
        stopped = history | {"steps": steps}
        path.write_text(json.dumps(stopped))
        save_pace(workspace, stopped)
        assert measured is not None and measured_pace(workspace, settings) == measured
    slower = [{"step": i, "at": 72.0 * i} for i in range(20)]
    path.write_text(json.dumps(history | {"steps": slower}))
    newest = measured_pace(workspace, settings)
    assert newest is not None and newest.mean == 72
    path.write_text(json.dumps(history | {"steps": []}))
    (workspace.work / "pace.json").write_text(
        json.dumps(history | {"pace_key": "of another student"})
    )
    assert measured_pace(workspace, settings) is None
