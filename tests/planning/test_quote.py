"""Quotes and estimates, from what a customer's last run took."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows import admission, runs
from flows.to_do import ToDo
from tests import configs
from tests.costs.listed import NOON, Listed
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs import Charge, Ledger, PriceBook, SpendingLimit, per_second
from turbo_vaed.costs.aws_prices import Ec2Quote
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.models.teachers import teacher_flops
from turbo_vaed.planning import pricing
from turbo_vaed.planning.estimate import (
    ESTIMATE_FILE,
    CostRange,
    estimate_run,
    require_fit,
    save_estimate,
)
from turbo_vaed.planning.flops import (
    Timing,
    expected_pace,
    expected_timing,
    step_flops,
    teacher_work,
)
from turbo_vaed.planning.history import Pace, downstream, pace_key, past_runs, save_pace
from turbo_vaed.planning.pricing import reserve_seconds, spending_of
from turbo_vaed.planning.quote import cheapest_elsewhere, quote
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    configs.copy_to(tmp_path)
    (tmp_path / "assets").symlink_to(REPOSITORY / "assets")
    (tmp_path / "infra").symlink_to(REPOSITORY / "infra")
    (tmp_path / "data").symlink_to(REPOSITORY / "data")
    (tmp_path / "dvc.yaml").touch()
    workspace = Workspace.load(tmp_path, "demo")
    workspace.folder("distill").mkdir(parents=True)
    trained = NOON.timestamp() + 20_130  # within the charges of demo-2
    rows = [{"step": i + 1, "at": trained + 36 * i} for i in range(101)]
    longer = dataclasses.replace(workspace.params.distill, steps=1000)
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=longer)
    )
    key = pace_key(workspace.params.distill, local(workspace.root))
    history = {"steps": rows, "pace_key": key}
    (workspace.folder("distill") / "history.json").write_text(json.dumps(history))
    return workspace


def local(root: Path) -> Settings:
    return dataclasses.replace(Settings.from_environment(root), ray_address=None)


@pytest.fixture
def settings(workspace: Workspace) -> Settings:
    return local(workspace.root)


def book(tmp_path: Path, local: str | None = "0.08") -> PriceBook:
    ec2 = Listed(folder=tmp_path, max_age=timedelta(hours=1))
    return PriceBook(local_usd_per_hour=None if local is None else Decimal(local), ec2=ec2)


def estimated(
    workspace: Workspace,
    settings: Settings,
    ledger: Ledger,
    *,
    stages: Sequence[str] = STAGES,
    may_spend_usd: Decimal,
    spent_usd: Decimal = Decimal(0),
) -> CostRange:
    """The cost of a run of `stages`, as a flow admits it with a budget of `may_spend_usd`."""
    todo = ToDo(run=runs.fresh("demo"), stale=[stages[0]])
    facts = admission.gather_facts(workspace, settings, ledger, todo)
    facts = dataclasses.replace(facts, stages=tuple(stages), spent_usd=spent_usd)
    found = estimate_run(facts)
    save_estimate(workspace.work, found, facts)
    own = f"budget.run_usd of ${may_spend_usd}"
    limit = SpendingLimit(usd=may_spend_usd, by=own, is_own_budget=True)
    offers = partial(cheapest_elsewhere, workspace, settings, book=book(workspace.root))
    require_fit(found, facts, limit, offers)
    assert found.cost is not None
    return found.cost


def measured_pace(workspace: Workspace, settings: Settings) -> Pace | None:
    with Ledger.open(settings.ledger_url) as ledger:
        return past_runs(workspace, settings, ledger).pace


def test_machines_are_ordered_by_the_cost_to_finish(
    workspace: Workspace, settings: Settings
) -> None:
    """Ten hours here; interruptions and restarts make a machine 60 times as fast take longer than
    a sixtieth."""
    found = quote(workspace, settings, book(workspace.root))
    rows: list[dict[str, Any]] = found.rows(Decimal("0.5"))
    first = rows[0]
    assert (first["machine"], first["market"], first["zone"]) == (
        "g5.xlarge", "spot", "eu-central-1b"
    )  # fmt: skip
    assert re.search(r"^1000 steps .*g5\.xlarge spot .*eu-central-1b: ", found.sentence)
    assert "4 prices" in found.sentence
    (here,) = [row for row in rows if row["machine"] == "this machine"]
    assert (here["time"], here["steps_usd"], here["speed"]) == ("10:00:46", "$0.801", "measured")
    assert here["usd"] == "$0.808", "with 300 s for what follows"
    assert (here["fits"], first["fits"]) == (False, True)
    unknown = [row for row in rows if row["usd"] is None]
    assert rows[-4:] == unknown
    assert all(row["zone"].endswith("c") and row["why_unknown"] for row in unknown)
    costs = [choice.usd for choice in found.choices if choice.usd is not None]
    assert costs == sorted(costs)
    assert re.search(r"36 s per step.*\(measured\).*45 s per restart \(assumed\)", found.basis)


class ByType(Listed):
    """Two types, on demand."""

    def quote(self, instance_type: str, market: str, *where: Any) -> Ec2Quote | str:
        usd = {"g4dn.xlarge": "0.66", "c7i.2xlarge": "0.41"}.get(instance_type)
        if usd is None or market != "on-demand":
            return "AWS gives no price"
        return Ec2Quote(usd_per_hour=Decimal(usd), since=NOON, quoted_at=NOON, source="a list")


def test_the_cheapest_machine_is_that_of_the_cheapest_whole_run(
    workspace: Workspace, settings: Settings
) -> None:
    """250 s here: 13 s on a g4dn and 63 s on a c7i, with 300 s of reserve and half an hour of
    start and end on each."""
    workspace = with_distill(workspace, steps=500)
    rows = [{"step": i + 1, "at": 0.5 * i} for i in range(101)]
    history = {"steps": rows, "pace_key": pace_key(workspace.params.distill, settings)}
    (workspace.folder("distill") / "history.json").write_text(json.dumps(history))
    by_type = PriceBook(
        local_usd_per_hour=Decimal("0.08"),
        ec2=ByType(folder=workspace.root, max_age=timedelta(hours=1)),
    )
    found = quote(workspace, settings, by_type)
    slow, fast = (choice for choice in found.choices[1:] if choice.usd is not None)
    assert [c.machine.instance_type for c in (slow, fast)] == ["c7i.2xlarge", "g4dn.xlarge"]
    assert slow.steps_usd and slow.usd and fast.steps_usd and fast.usd
    assert fast.steps_usd - slow.steps_usd < Decimal("0.01") < fast.usd - slow.usd
    for choice, usd in ((slow, "0.41"), (fast, "0.66")):
        seconds = choice.seconds + 300 + 30 * 60
        volume = 120 * Decimal("0.0952") / 720
        whole = (Decimal(usd) + volume) * Decimal(seconds) / 3600
        assert float(choice.usd or 0) == pytest.approx(float(whole), rel=1e-6)
    named = cheapest_elsewhere(workspace, settings, Decimal(1), by_type)
    assert re.search(r"c7i\.2xlarge on-demand .*eu-central-1 .*\$", named)


def test_a_machine_has_to_fit_what_is_left_of_the_budget(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    of_run = {"quantity": Decimal(1), "unit_price_usd": Decimal("94.7")}
    before = charge("distill", "demo-9", 0, 1)
    ledger.add(dataclasses.replace(before, **of_run, amount_usd=Decimal("94.7")))

    def fits(run: str | None) -> dict[str, bool]:
        found = quote(workspace, settings, book(workspace.root), run=run)
        return {row["machine"]: row["fits"] for row in found.rows(Decimal(95)) if row["usd"]}

    assert fits(None)["this machine"], "a fresh run has all of it"
    assert not fits("demo-9")["this machine"], "0.30 of 0.81 USD"
    assert quote(workspace, settings, book(workspace.root), run="demo-9").left_usd == Decimal("0.3")


def test_measured_times_replace_assumed_ones(workspace: Workspace, settings: Settings) -> None:
    machine = {"device": "cpu", "precision": "bf16", "compiled": False}
    events: list[dict[str, Any]] = [
        {"event": "open", "at": 0.0, "job": "a", "steps": 9, "usd_per_hour": "0.1"},
        {"event": "start", "at": 1.0, "world": 1, "resumed_from": None, **machine},
        {"event": "step", "at": 2.0, "step": 1, "spent_usd": "0"},
        {"event": "checkpoint", "at": 3.0, "step": 1, "seconds": 7.0},
        {"event": "start", "at": 92.0, "world": 1, "resumed_from": 1, **machine},
    ]
    workspace.progress_file.parent.mkdir(parents=True)
    workspace.progress_file.write_text("".join(json.dumps(event) + "\n" for event in events))
    found = quote(workspace, settings, book(workspace.root))
    assert (found.save_seconds, found.restart_seconds) == (7.0, 90.0)
    assert "7 s per checkpoint (measured); 90 s per restart (measured)" in found.basis


def test_without_any_price_the_quote_names_the_key(
    workspace: Workspace, settings: Settings
) -> None:
    found = quote(workspace, settings, PriceBook(local_usd_per_hour=None))
    assert "prices.local_usd_per_hour is null" in found.sentence


@pytest.mark.slow
def test_without_a_measurement_the_pace_is_by_arithmetic(
    workspace: Workspace, settings: Settings
) -> None:
    shutil.rmtree(workspace.folder("distill"))
    found = quote(workspace, settings, book(workspace.root))
    rows: list[dict[str, Any]] = found.rows(Decimal("0.5"))
    (here,) = [row for row in rows if row["machine"] == "this machine"]
    assert here["speed"] == "assumed" and here["usd"] is not None
    assert "by arithmetic" in found.basis


@pytest.mark.slow
def test_a_student_of_more_work_is_expected_to_take_longer(
    workspace: Workspace, settings: Settings
) -> None:
    found, twice = expected_pace(workspace, settings), with_distill(workspace, batch_size=8)
    assert found is not None and 0 < found.least < found.mean < found.most
    assert step_flops(twice) == 2 * step_flops(workspace)
    assert step_flops(workspace) > 3e9, "convolutions are counted"


@pytest.mark.slow
def test_the_teachers_work_is_part_of_the_estimate(
    workspace: Workspace, settings: Settings
) -> None:
    """Of the demo: 3 videos of 24 clips at most, until they are cut; a tenth of them is decoded in
    `encode`. Towards its targets the teacher decodes every train clip once, or in every step a
    crop of a quarter of a clip, whichever is less."""
    one = teacher_flops("ltx-video", workspace.teacher_weights(), 9, 128, 128)
    encoding, targets = teacher_work(workspace)
    assert encoding == pytest.approx(72 * (one.encode + 0.1 * one.decode))
    assert targets == pytest.approx(72 * 0.8 * one.decode), "1000 steps of 4 crops are more"
    alone = with_distill(workspace, weight_teacher=0.0)
    assert teacher_work(alone) == (encoding, 0) and teacher_work(alone, ["distill"]) == (0, 0)
    workspace.folder("clip").mkdir()
    cut: dict[str, Any] = {"frames": 9, "size": 128, "clips": [{}] * 36}
    (workspace.folder("clip") / "clips.json").write_text(json.dumps(cut))
    assert teacher_work(workspace) == (encoding, targets), "they will be cut again"
    assert teacher_work(workspace, ["encode", "distill"]) == (encoding / 2, targets / 2)
    few = with_distill(workspace, steps=10)
    assert teacher_work(few, ["distill"]) == (0, pytest.approx(10 * 4 / 4 * one.decode))
    cached = with_distill(workspace, steps=10, teacher_targets="cache")
    assert teacher_work(cached, ["distill"]) == (0, targets / 2)
    found = expected_timing(workspace, settings)
    less = expected_timing(workspace, settings, ["distill"])
    assert found is not None and 0 < found.once.least < found.once.mean < found.once.most
    assert less is not None and less.once.mean < found.once.mean


def test_a_first_run_is_estimated_with_its_teacher(
    workspace: Workspace, settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that takes five times as long as all steps."""
    pace, once = Pace(least=1, mean=2, most=4), Pace(least=5000, mean=10_000, most=20_000)
    timing = Timing(pace=pace, once=once)
    monkeypatch.setattr(admission, "expected_timing", lambda *_: timing)
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


def test_observed_interruptions_are_weighed_against_assumed_ones(
    workspace: Workspace, settings: Settings, ledger: Ledger
) -> None:
    """Two days on a g5 with three losses, after an assumed one in twenty hours for a day's worth.
    Nothing was seen of the others; and of a run on this machine nothing of any."""
    progress(workspace, losses=3, hours=48)

    def seen() -> dict[tuple[str, str], float]:
        found = quote(workspace, settings, book(workspace.root))
        machines = [choice.machine for choice in found.choices]
        return {(m.instance_type, m.market): m.interruptions_per_hour for m in machines}

    assert seen()["g5.xlarge", "spot"] == pytest.approx(0.05)
    on_spot = charge("distill", "demo-4", 50_000, 50_000 + 48 * 3600)
    ledger.add(dataclasses.replace(on_spot, resource="g5.xlarge", market="spot"))
    assert seen()["g5.xlarge", "spot"] == pytest.approx((0.05 * 24 + 3) / 72, rel=1e-3)
    assert seen()["g6.xlarge", "spot"] == pytest.approx(0.05)
    assert seen()["g5.xlarge", "on-demand"] == 0
    ledger.add(charge("distill", "demo-5", 400_000, 400_001))
    assert seen()["g5.xlarge", "spot"] == pytest.approx(0.05), "the last run was here"


def progress(workspace: Workspace, *, losses: int, hours: float) -> None:
    machine = {"device": "cpu", "precision": "bf16", "compiled": False, "checkpoint": None}
    first = {"event": "start", "at": 1.0, "world": 1, "resumed_from": None, **machine}
    events: list[dict[str, Any]] = [
        {"event": "open", "at": 0.0, "job": "a", "steps": 9, "usd_per_hour": "0.1"},
        first,
        {"event": "step", "at": 2.0, "step": 1, "spent_usd": "0"},
        *({**first, "at": 10.0 * (i + 1), "resumed_from": 1} for i in range(losses)),
        {"event": "step", "at": 3600.0 * hours, "step": 2, "spent_usd": "0"},
    ]
    workspace.progress_file.parent.mkdir(parents=True)
    workspace.progress_file.write_text("".join(json.dumps(event) + "\n" for event in events))


def with_distill(workspace: Workspace, **changed: Any) -> Workspace:
    params = dataclasses.replace(workspace.params.distill, **changed)
    return dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=params)
    )


def charge(stage: str, run: str, begin: float, end: float, unit: str = "node-second") -> Charge:
    """At 0.08 USD an hour."""
    seconds, price = Decimal(str(end - begin)), per_second(Decimal("0.08"))
    return Charge(
        run=run,
        customer="demo",
        stage=stage,
        resource="node",
        market="local",
        quantity=seconds,
        unit=unit,
        unit_price_usd=price,
        amount_usd=quantise_usd(seconds * price),
        started_at=NOON + timedelta(seconds=begin),
        ended_at=NOON + timedelta(seconds=end),
        useful="useful",
        price_source="a test",
    )


@pytest.fixture
def ledger(settings: Settings) -> Any:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add_all(
            [
                charge("encode", "demo-1", 0, 9999),
                charge("encode", "demo-2", 20_000, 20_100),
                charge("distill", "demo-2", 20_100, 20_100 + 101 * 36 + 60),
                charge("gate", "demo-2", 30_000, 30_040),
                charge("distill", "demo-3", 40_000, 40_001),  # a later one, without a step
                charge("encode", "demo-2", 20_000, 20_001, unit="GB-month"),  # no stage's time
            ]
        )
        yield ledger


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
    assert "gate took 0:40 last time" in found.basis
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
    with pytest.raises(BudgetRefused, match=r"set distill\.steps to 489 or raise"):
        estimated(workspace, settings, ledger, may_spend_usd=half)
    machine = dataclasses.replace(settings, machine_overhead_usd=Decimal("0.5"))
    with pytest.raises(BudgetRefused, match=r"distill\.steps to 489 ") as refusal:
        estimated(workspace, machine, ledger, may_spend_usd=half + machine.machine_overhead_usd)
    remedy = re.search(r"budget\.run_usd to \$([0-9.]+[0-9])", str(refusal.value))
    assert remedy is not None
    assert estimated(workspace, machine, ledger, may_spend_usd=Decimal(remedy[1])) is not None
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
