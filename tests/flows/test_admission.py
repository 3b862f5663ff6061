"""What a run is estimated to cost, and refused for, before it starts or resumes."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows import admission, runs, to_do
from tests import configs
from tests.costs.charges import charge
from turbo_vaed.config.devices import parse_profile
from turbo_vaed.costs import Ledger
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.planning.estimate import ESTIMATE_FILE
from turbo_vaed.planning.history import pace_key
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

ROOT = Path(__file__).parents[2]
PHONE = parse_profile(
    {
        "name": "a-phone", "kind": "device-farm", "runner": "runner", "job_minutes": 30,
        "project": "arn:aws:devicefarm:a", "device": "arn:aws:devicefarm:a:device:b",
    }
)  # fmt: skip
"""30 minutes of 0.17 USD for each of two packages: 10.20 USD at most."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("RAY_ADDRESS", "TURBO_VAED_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(admission, "cheapest_elsewhere", lambda *given: "")  # AWS is not asked
    configs.copy_to(tmp_path)
    return Settings.from_environment(tmp_path)


@pytest.fixture
def workspace(settings: Settings) -> Workspace:
    """36 s a step, a thousand steps: 0.80 USD; and a gate that took 15 s in a run before."""
    workspace = changed(Workspace.load(settings.root, "demo"), steps=1000)
    rows = [{"step": i + 1, "at": 36.0 * i} for i in range(101)]
    history = {"steps": rows, "pace_key": pace_key(workspace.params.distill, settings)}
    workspace.folder("distill").mkdir(parents=True)
    (workspace.folder("distill") / "history.json").write_text(json.dumps(history))
    spend(settings, "demo-1", stage="gate")
    return workspace


def changed(
    workspace: Workspace, *, run_usd: str | None = None, device: Any = None, **distill: Any
) -> Workspace:
    """With other params."""
    params = workspace.params
    budget = dataclasses.replace(params.budget, run_usd=Decimal(run_usd or params.budget.run_usd))
    params = dataclasses.replace(
        params,
        budget=budget,
        device=device or params.device,
        distill=dataclasses.replace(params.distill, **distill),
    )
    return dataclasses.replace(workspace, params=params)


def spend(settings: Settings, run: str, **changes: Any) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run, **changes))


def admit(workspace: Workspace, settings: Settings, run: runs.Run, stale: list[str]) -> str:
    return admission.admit(workspace, settings, to_do.with_stages(workspace, settings, run, stale))


@pytest.mark.parametrize("stale", [["gate"], ["export"], ["evaluate", "gate"]])
def test_a_gate_on_a_paid_phone_has_to_fit_the_budget(
    workspace: Workspace, settings: Settings, stale: list[str]
) -> None:
    """A stage before the gate is followed by it, though nothing of its own has changed yet."""
    run = runs.fresh("demo")
    poor = changed(workspace, run_usd="5", device=PHONE)
    with pytest.raises(BudgetRefused, match=r"\$10\.20 .* a-phone.* \$5\.00") as refusal:
        admit(poor, settings, run, stale)
    assert re.search(r"gate\.device.*export\.targets .*2", str(refusal.value))
    rich = changed(workspace, run_usd="11", device=PHONE)
    estimate = admit(rich, settings, run, stale)
    assert estimate.startswith("estimated at $10.2") and "$11.00 left" in estimate
    here = admit(changed(workspace, run_usd="5"), settings, run, stale)
    assert here.startswith("estimated at $0.0")


def test_repeating_an_inconclusive_gate_has_to_fit_what_is_left(
    workspace: Workspace, settings: Settings
) -> None:
    run, workspace = runs.fresh("demo"), changed(workspace, run_usd="15", device=PHONE)
    admit(workspace, settings, run, ["gate"])
    minutes = {"unit": "device-minute", "quantity": Decimal(60), "market": "on-demand"}
    spend(settings, run.run_id, stage="gate", unit_price_usd=Decimal("0.17"), **minutes)
    with pytest.raises(BudgetRefused, match=r"\$4\.80"):
        admit(workspace, settings, run, ["gate"])
    spend(settings, run.run_id, stage="gate", unit_price_usd=Decimal("0.09"), **minutes)
    with pytest.raises(BudgetRefused, match=r"spent \$15\.60"):
        admit(workspace, settings, run, ["gate"])


def test_the_second_of_two_runs_may_spend_what_the_first_has_not_reserved(
    workspace: Workspace, settings: Settings
) -> None:
    """Both of 10.20 USD for a phone, of a month that holds one of them."""
    workspace = changed(workspace, device=PHONE)
    budget = dataclasses.replace(workspace.params.budget, total_month_usd=Decimal(20))
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, budget=budget)
    )
    first, second = runs.fresh("demo"), runs.Run(run_id="acme-1", started="", status="open")
    assert "estimated at $10.2" in admit(workspace, settings, first, ["gate"])
    with pytest.raises(BudgetRefused, match=rf"total_month_usd.*reserved \$10.*{first.run_id}"):
        admit(workspace, settings, second, ["gate"])
    admission.release(settings, second.run_id)
    assert "estimated at $10.2" in admit(workspace, settings, first, ["gate"]), "it goes on"
    admission.release(settings, first.run_id)
    assert "estimated at $10.2" in admit(workspace, settings, second, ["gate"])


def test_a_run_that_may_cost_more_than_is_left_reserves_all_of_it(
    workspace: Workspace, settings: Settings
) -> None:
    """It is admitted by the low end of its estimate, and nothing is left for another one."""
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    its = {"started_at": month, "ended_at": month, "quantity": Decimal(900)}  # a quarter of an hour
    spend(settings, "demo-2", stage="gate", **its)
    run, cents = runs.fresh("demo"), Decimal("0.042")
    budget = dataclasses.replace(workspace.params.budget, total_month_usd=cents)
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, budget=budget)
    )
    assert "estimated at $0.02" in admit(workspace, settings, run, ["gate"])
    with Ledger.open(settings.ledger_url) as ledger:
        (reservation,) = ledger.reservations(at=datetime.now(UTC))
        spent, _ = ledger.spent(customer=None, since=month, until=datetime.now(UTC))
    assert reservation.unspent_usd == cents - spent
    with pytest.raises(BudgetRefused, match="reserved"):
        admit(workspace, settings, runs.fresh("acme"), ["gate"])


@pytest.mark.parametrize("steps", [1000, 10**7])
def test_a_preview_writes_and_reserves_nothing(
    workspace: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Whether it would be refused or not."""
    monkeypatch.setattr(admission, "preflight", lambda *_: changed(workspace, steps=steps))
    monkeypatch.setattr(to_do.outputs, "stale_stages", lambda *_: ["distill"])
    (workspace.work / ".lock").touch()  # of nobody
    before = sorted(workspace.work.rglob("*"))
    if steps == 1000:
        preview = admission.preview(settings, "demo")
        assert preview.startswith("distill, evaluate, export, gate of demo ")
        assert "estimated at $" in preview
    else:
        with pytest.raises(BudgetRefused, match=r"raise budget\.run_usd"):
            admission.preview(settings, "demo")
    assert sorted(workspace.work.rglob("*")) == before
    with Ledger.open(settings.ledger_url) as ledger:
        assert ledger.reservations(at=datetime.now(UTC)) == ()
    done = runs.Run(run_id="demo-9", started=datetime.now(UTC).isoformat(), status="done")
    monkeypatch.setattr(admission, "to_do_now", lambda *_: None)
    runs.write(workspace.work, done)
    assert admission.preview(settings, "demo").startswith("Nothing has changed")


def test_a_months_limit_that_is_too_small_is_named_with_the_amount_missing(
    workspace: Workspace, settings: Settings
) -> None:
    budget = dataclasses.replace(workspace.params.budget, customer_month_usd=Decimal("0.1"))
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, budget=budget)
    )
    numbers = r"\$0\.80 .*budget\.customer_month_usd .*\$0\.10 .*customer_month_usd by \$0\.8"
    with pytest.raises(BudgetRefused, match=numbers):
        admit(workspace, settings, runs.fresh("demo"), ["distill"])


def begin(workspace: Workspace, settings: Settings) -> runs.Run:
    """A run of 1 USD that was killed while it distilled, with 0.60 USD spent."""
    run = runs.fresh("demo")
    assert "estimated at $0.80" in admit(workspace, settings, run, ["distill"])
    train(settings, run)
    return run


def train(settings: Settings, run: runs.Run) -> None:
    """For 0.60 USD, now."""
    now = datetime.now(UTC)
    spend(
        settings, run.run_id, stage="distill", unit_price_usd=Decimal("0.04"), started_at=now,
        ended_at=now,
    )  # fmt: skip


def test_training_resumes_without_another_estimate(
    workspace: Workspace, settings: Settings
) -> None:
    workspace = changed(workspace, run_usd="1")
    run = begin(workspace, settings)
    before = (workspace.work / ESTIMATE_FILE).read_bytes()
    assert admit(workspace, settings, run, ["distill"]).startswith(f"run {run.run_id} resumes")
    fewer = changed(workspace, keep_checkpoints=1)  # no other student
    assert admit(fewer, settings, run, ["distill", "gate"]).startswith("run ")
    assert (workspace.work / ESTIMATE_FILE).read_bytes() == before
    other = runs.fresh("demo")
    assert "estimated at" in admit(workspace, settings, other, ["distill"])


def test_other_steps_make_another_student_that_has_to_fit_what_is_left(
    workspace: Workspace, settings: Settings
) -> None:
    workspace = changed(workspace, run_usd="1")
    run = begin(workspace, settings)
    with pytest.raises(BudgetRefused, match=r"distill\.steps to [1-4]\d\d "):
        admit(changed(workspace, steps=1100), settings, run, ["distill"])
    assert admit(workspace, settings, run, ["distill"]).startswith("run "), "as it was begun"
    few = admit(changed(workspace, steps=100), settings, run, ["distill"])
    assert few.startswith("estimated at $0.0") and "$0.40 left" in few
    saved_for_few = (workspace.work / ESTIMATE_FILE).read_text()
    assert "resumes" in admit(workspace, settings, run, ["distill"]), "this one was charged"
    again = admit(changed(workspace, steps=100), settings, run, ["distill"])
    assert again == few, "and this one was not"
    (workspace.work / ESTIMATE_FILE).write_text(saved_for_few)
    saved = json.loads((workspace.work / ESTIMATE_FILE).read_text())
    assert Decimal(saved["likely_usd"]) > Decimal("0.68"), "of the whole run"


def test_a_student_that_was_never_distilled_does_not_resume(
    workspace: Workspace, settings: Settings
) -> None:
    """It was allowed, and failed before; then another one was distilled in the same run."""
    workspace, run = changed(workspace, run_usd="1"), runs.fresh("demo")
    fewer = changed(workspace, steps=900)
    assert "estimated at" in admit(workspace, settings, run, ["distill"])
    assert "estimated at" in admit(fewer, settings, run, ["distill"])
    train(settings, run)
    with pytest.raises(BudgetRefused, match=r"estimated at .*budget\.run_usd"):
        admit(workspace, settings, run, ["distill"])
    assert admit(fewer, settings, run, ["distill"]).startswith("run ")


def test_training_does_not_resume_with_other_clips(
    workspace: Workspace, settings: Settings
) -> None:
    """Those that are made again of the same videos are the same ones."""
    workspace = changed(workspace, run_usd="1")
    run = begin(workspace, settings)
    assert "resumes" in admit(workspace, settings, run, ["clip"])
    clip = dataclasses.replace(workspace.params.clip, seed=9)
    others = dataclasses.replace(workspace, params=dataclasses.replace(workspace.params, clip=clip))
    with pytest.raises(BudgetRefused, match=r"estimated at .*budget\.run_usd"):
        admit(others, settings, run, ["clip"])


def test_the_reserve_that_is_left_pays_for_the_last_stages(
    workspace: Workspace, settings: Settings
) -> None:
    """A first run, whose evaluation is done and whose export failed: of the 300 seconds that were
    reserved 200 are left, and nobody knows yet that the rest needs more."""
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run="demo-0", customer="other", stage="gate"))
    run = runs.fresh("demo")
    left = Decimal("0.08") * 200 / 3600
    poor = changed(workspace, run_usd=str(left))
    estimate = admit(poor, settings, run, ["export"])
    assert estimate.startswith("estimated at $0.0066"), "likely all of it"


@pytest.mark.parametrize(
    ("stopped", "had", "spent", "run_usd", "limit", "goes_on"),
    [
        ("budget", "12", "10", "95", "12", True),  # an earlier month's
        ("budget", "12", "10", "12.5", "12", False),  # by now its own budget is the nearest
        ("budget", "30", "10", "95", "12", False),  # 22 in all are less
        ("budget", None, "10", "95", "12", False),  # its own budget stopped it
        ("finished", "12", "10", "95", "12", False),
    ],
)
def test_training_that_a_months_limit_stopped_resumes_once_more_is_left(
    workspace: Workspace,
    settings: Settings,
    stopped: str,
    had: str | None,
    spent: str,
    run_usd: str,
    limit: str,
    goes_on: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forty days after the run has spent `spent` of the `had` that its month had left."""
    path, usd = workspace.folder("distill") / "history.json", Decimal(spent)
    end = {"stopped": stopped, "limited_to_usd": had}
    path.write_text(json.dumps(json.loads(path.read_text()) | end))
    start = datetime.now(UTC) - timedelta(days=40)
    spend(
        settings, "demo-7", stage="distill", started_at=start, ended_at=start, amount_usd=usd,
        quantity=Decimal(1), unit_price_usd=usd,
    )  # fmt: skip
    last = runs.Run(run_id="demo-7", started=start.isoformat(), status="done")
    runs.write(workspace.work, last)
    budget = dataclasses.replace(
        workspace.params.budget, run_usd=Decimal(run_usd), customer_month_usd=Decimal(limit)
    )
    limited = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, budget=budget)
    )
    monkeypatch.setattr(to_do, "inconclusive_reason", lambda _: "")  # there is no verdict
    found = to_do.run_with_more_budget(limited, settings)
    assert found == (dataclasses.replace(last, status="open") if goes_on else None)
    todo = to_do.to_do(limited, settings, [])  # for a flow and for a machine of EC2
    assert (todo is not None and todo.forced == "distill") == goes_on
    assert not goes_on or (todo and todo.run == found and todo.stages[0] == "distill")
    other = to_do.to_do(limited, settings, ["clip"])
    assert other and other.run.run_id != last.run_id, "other clips are another run"
    runs.write(workspace.work, dataclasses.replace(last, run_id="demo-8"))
    assert to_do.run_with_more_budget(limited, settings) is None, "another run trained it"
