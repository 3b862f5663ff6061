"""Which machine, by price and budget; and what it costs while it runs."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows import admission, runs
from flows.launch.instance_selection import Selection, select_instance
from flows.to_do import ToDo, note_begun, with_stages
from tests.costs.charges import charge
from tests.costs.listed import Listed
from turbo_vaed.cluster import nodes
from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET, REGION, ZONE
from turbo_vaed.costs import Ledger, PriceBook
from turbo_vaed.costs.aws_prices import Ec2Quote
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


def test_the_machine_is_the_cheapest_of_ec2_and_ends_itself_when_the_budget_does(
    workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook
) -> None:
    selection = select_instance(workspace, settings, todo, book=book)
    machine = selection.choice.machine
    assert (machine.instance_type, machine.market, machine.zone) == (
        "g5.xlarge", "spot", "eu-central-1b"
    )  # fmt: skip
    volume = 120 * Decimal("0.0952") / 720  # USD an hour
    hours = 95 / (1 + volume)
    assert selection.minutes == int(hours * 60), "at the 1.00 USD per hour that spot can cost"
    assert selection.machine_overhead_usd == pytest.approx(Decimal("0.25") / 2 + volume * hours)
    assert "$0.25 per hour" in selection.sentence and "5610 minutes" in selection.sentence
    slower = select_instance(
        workspace, settings, todo, book=book, instance_type="g6.xlarge", market="on-demand"
    )
    assert (slower.choice.machine.instance_type, slower.choice.machine.market) == (
        "g6.xlarge", "on-demand"
    )  # fmt: skip


def test_the_machine_with_the_cheapest_whole_run_is_chosen_and_not_the_cheapest_steps(
    workspace: Workspace, settings: Settings, todo: ToDo, tmp_path: Path
) -> None:
    """A few minutes of steps, and on either machine half an hour of start and end."""

    class ByType(Listed):
        def quote(self, instance_type: str, market: str, *where: Any) -> Ec2Quote | str:
            usd = {"g4dn.xlarge": "0.66", "c7i.2xlarge": "0.41"}.get(instance_type)
            if usd is None or market != "on-demand":
                return "AWS gives no price"
            found = super().quote(instance_type, market, *where)
            assert isinstance(found, Ec2Quote)
            return dataclasses.replace(found, usd_per_hour=Decimal(usd))

    book = PriceBook(
        local_usd_per_hour=Decimal("0.08"),
        ec2=ByType(folder=tmp_path / "prices", max_age=timedelta(hours=1)),
    )
    few = dataclasses.replace(workspace.params.distill, steps=30)
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=few)
    )
    selection = select_instance(workspace, settings, todo, book=book)
    assert selection.choice.machine.instance_type == "c7i.2xlarge"
    there = select_instance(
        workspace, settings, todo, book=book, instance_type="g4dn.xlarge"
    ).choice
    assert there.steps_usd and selection.choice.steps_usd and there.usd and selection.choice.usd
    assert there.steps_usd < selection.choice.steps_usd and there.usd > selection.choice.usd
    assert f"${selection.choice.usd:.3f}, $" in selection.sentence


def test_a_run_without_budget_left_starts_no_machine(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run.run_id, quantity=Decimal(1), unit_price_usd=Decimal(95)))
    with pytest.raises(BudgetRefused, match=r"has spent \$95\.00"):
        select_instance(workspace, settings, todo, book=book)


def test_a_run_that_lost_its_machine_resumes_with_less_than_a_whole_run_costs(
    workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook
) -> None:
    """Half of what all steps cost is left: they did not all go with the machine, whose clips and
    latents did. Another student's, and those of other videos, would be begun anew."""

    def select(workspace: Workspace) -> Selection:
        now = with_stages(workspace, settings, todo.run, todo.stale)
        return select_instance(workspace, settings, now, book=book)

    whole = select(workspace).choice
    assert whole.usd and whole.steps_usd
    spent = 95 - quantise_usd(whole.usd - whole.steps_usd / 2)
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=todo.run.run_id, quantity=Decimal(1), unit_price_usd=spent))
    note_begun(workspace, todo.run)  # and lost before its first step
    with pytest.raises(BudgetRefused, match=r"the cheapest, .* left of"):
        select(workspace)
    with Ledger.open(settings.ledger_url) as ledger:
        now = datetime.now(UTC)
        ledger.add(charge(run=todo.run.run_id, stage="distill", started_at=now, ended_at=now))
    selection = select(workspace)
    assert selection.resumes and "resumes" in selection.sentence
    resumed = with_stages(workspace, settings, todo.run, todo.stale)
    assert "resumes" in admission.estimate(workspace, settings, resumed)
    other = dataclasses.replace(
        workspace.params, distill=dataclasses.replace(workspace.params.distill, seed=9)
    )
    with pytest.raises(BudgetRefused, match=r"the cheapest, .* left of"):
        select(dataclasses.replace(workspace, params=other))
    (workspace.source / "b.mp4").touch()
    with pytest.raises(BudgetRefused, match=r"the cheapest, .* left of"):
        select(workspace)


def test_a_gate_alone_is_priced_without_training_steps(
    workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook
) -> None:
    gate = select_instance(
        workspace, settings, dataclasses.replace(todo, stale=["gate"]), book=book
    ).choice
    whole = select_instance(workspace, settings, todo, book=book).choice
    assert gate.usd and whole.usd and whole.steps_usd
    assert (gate.seconds, gate.steps_usd) == (0, 0)
    assert gate.usd < whole.usd - whole.steps_usd


def test_earlier_spend_shortens_the_machines_minutes(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run.run_id, quantity=Decimal(1), unit_price_usd=Decimal(90)))
    assert select_instance(workspace, settings, todo, book=book).minutes == 295


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"instance_type": "p9.huge"}, UserError, "p9.huge .* g6.xlarge, g5.xlarge"),
        (
            {"book": PriceBook(local_usd_per_hour=Decimal(1))},
            BudgetRefused,
            "no price",
        ),
    ],
)
def test_an_unknown_type_or_price_starts_no_machine(
    workspace: Workspace,
    settings: Settings,
    todo: ToDo,
    book: PriceBook,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        select_instance(workspace, settings, todo, **({"book": book} | change))


def test_a_run_that_does_not_fit_its_budget_starts_no_machine(
    workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook
) -> None:
    budget = dataclasses.replace(workspace.params.budget, run_usd=Decimal("0.01"))
    poor = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, budget=budget)
    )
    with pytest.raises(BudgetRefused, match=r"\$0\.01 .*budget\.run_usd"):
        select_instance(poor, settings, todo, book=book)


def test_without_a_price_on_demand_nothing_is_started(
    workspace: Workspace, settings: Settings, todo: ToDo, tmp_path: Path
) -> None:
    class OnlySpot(Listed):
        def quote(self, instance_type: str, market: str, *where: Any) -> Ec2Quote | str:
            if market == "on-demand":
                return "no permission"
            return super().quote(instance_type, market, *where)

    book = PriceBook(
        local_usd_per_hour=Decimal("0.08"),
        ec2=OnlySpot(folder=tmp_path / "prices", max_age=timedelta(hours=1)),
    )
    with pytest.raises(BudgetRefused, match=r"g5\.xlarge spot .* unknown"):
        select_instance(workspace, settings, todo, book=book)


def test_a_machine_that_would_end_before_its_run_is_marked(
    workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook
) -> None:
    """Cheap on spot, but what it can come to pays for less time than is needed."""
    budget = dataclasses.replace(workspace.params.budget, run_usd=Decimal("0.27"))
    tight = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, budget=budget)
    )
    selection = select_instance(tight, settings, todo, book=book)
    assert selection.choice.usd < Decimal("0.27")
    assert 15 * 60 + selection.choice.seconds > selection.minutes * 60  # its set-up, too
    assert ", BEFORE the " in selection.sentence


def test_a_machine_of_ec2_is_charged_at_its_price_in_every_stage(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, book: PriceBook
) -> None:
    labels = {
        INSTANCE_TYPE: "g5.xlarge",
        MARKET: "spot",
        REGION: "eu-central-1",
        ZONE: "eu-central-1b",
    }
    text = ",".join(f"{name}={value}" for name, value in labels.items())
    monkeypatch.setenv("TURBO_VAED_MACHINE", text)
    monkeypatch.setattr(nodes, "price_book", lambda *_: book)
    settings = Settings.from_environment(workspace.root)
    (rate,) = nodes.nodes_of(workspace.params, settings, "validate")().values()
    assert (rate.resource, rate.market) == ("g5.xlarge", "spot")
    assert rate.usd_per_hour == Decimal("0.25")
    assert nodes.most_usd_per_hour(workspace.params, settings, "distill") == Decimal("1.00")
    monkeypatch.setenv("TURBO_VAED_MACHINE", "g5.xlarge")
    with pytest.raises(UserError, match=r"TURBO_VAED_MACHINE .*'g5\.xlarge'"):
        Settings.from_environment(workspace.root)
