"""Quotes: what the same run costs on other machines."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.costs.listed import NOON, Listed
from tests.planning.customer import (
    book,
    charge,
    progress,
    with_distill,
)
from turbo_vaed.costs import Ledger, PriceBook
from turbo_vaed.costs.aws_prices import Ec2Quote
from turbo_vaed.planning.history import pace_key
from turbo_vaed.planning.quote import cheapest_elsewhere, quote
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


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
