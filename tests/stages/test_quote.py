"""Quotes and estimates, from what a customer's last run took."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.costs.listed import NOON, Listed
from turbo_vaed.costs import Charge, Ledger, PriceBook, per_second
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.estimates import ESTIMATE, estimate_run, keep_pace, measured_pace, pace_key
from turbo_vaed.stages.quote import quote

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def poc(tmp_path: Path) -> Poc:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").touch()
    poc = Poc.load(tmp_path, "demo")
    poc.folder("distill").mkdir(parents=True)
    trained = NOON.timestamp() + 20_130  # within the charges of demo-2
    rows = [{"step": i + 1, "at": trained + 36 * i} for i in range(101)]
    longer = dataclasses.replace(poc.params.distill, steps=1000)
    poc = dataclasses.replace(poc, params=dataclasses.replace(poc.params, distill=longer))
    key = pace_key(poc.params.distill, local(poc.root))
    history = {"steps": rows, "pace_key": key}
    (poc.folder("distill") / "history.json").write_text(json.dumps(history))
    return poc


def local(root: Path) -> Settings:
    return dataclasses.replace(Settings.from_environment(root), ray_address=None)


@pytest.fixture
def settings(poc: Poc) -> Settings:
    return local(poc.root)


def book(tmp_path: Path, local: str | None = "0.08") -> PriceBook:
    ec2 = Listed(folder=tmp_path, max_age=timedelta(hours=1))
    return PriceBook(local_usd_per_hour=None if local is None else Decimal(local), ec2=ec2)


def test_machines_by_what_it_costs_to_finish_there(poc: Poc, settings: Settings) -> None:
    """Ten hours here; interruptions and restarts make a machine 60 times as fast take longer than
    a sixtieth."""
    found = quote(poc, settings, book(poc.root))
    rows: list[dict[str, Any]] = found.rows(Decimal("0.5"))
    first = rows[0]
    assert (first["machine"], first["market"], first["zone"]) == (
        "g5.xlarge", "spot", "eu-central-1b"
    )  # fmt: skip
    assert found.sentence.startswith("1000 steps are cheapest on g5.xlarge spot in eu-central-1b: ")
    assert found.sentence.endswith("interruptions included; 4 prices are not known.")
    (here,) = [row for row in rows if row["machine"] == "this machine"]
    assert (here["time"], here["usd"], here["speed"]) == ("10:00:46", "$0.801", "measured")
    assert (here["fits"], first["fits"]) == (False, True)
    unknown = [row for row in rows if row["usd"] is None]
    assert rows[-4:] == unknown
    assert all(row["zone"].endswith("c") and row["why_unknown"] for row in unknown)
    costs = [choice.usd for choice in found.choices if choice.usd is not None]
    assert costs == sorted(costs)
    assert "36 s a step on this machine, measured" in found.basis
    assert "45 s a restart, assumed" in found.basis


def test_what_was_measured_takes_the_place_of_what_is_assumed(poc: Poc, settings: Settings) -> None:
    machine = {"device": "cpu", "precision": "bf16", "compiled": False}
    events: list[dict[str, Any]] = [
        {"event": "open", "at": 0.0, "job": "a", "steps": 9, "usd_per_hour": "0.1"},
        {"event": "start", "at": 1.0, "world": 1, "resumed_from": None, **machine},
        {"event": "step", "at": 2.0, "step": 1, "spent_usd": "0"},
        {"event": "checkpoint", "at": 3.0, "step": 1, "seconds": 7.0},
        {"event": "start", "at": 92.0, "world": 1, "resumed_from": 1, **machine},
    ]
    poc.progress_file.parent.mkdir(parents=True)
    poc.progress_file.write_text("".join(json.dumps(event) + "\n" for event in events))
    found = quote(poc, settings, book(poc.root))
    assert (found.save_seconds, found.restart_seconds) == (7.0, 90.0)
    assert "7 s a checkpoint, measured, and 90 s a restart, measured" in found.basis


def test_no_price_at_all(poc: Poc, settings: Settings) -> None:
    found = quote(poc, settings, PriceBook(local_usd_per_hour=None))
    assert "No price is known" in found.sentence and "is null" in found.sentence


def test_nothing_measured(poc: Poc, settings: Settings) -> None:
    shutil.rmtree(poc.folder("distill"))
    with pytest.raises(UserError, match="nothing is measured of demo"):
        quote(poc, settings, book(poc.root))


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
                charge("encode", "demo-2", 20_000, 40_000, unit="GB-month"),  # no stage's time
            ]
        )
        yield ledger


def test_an_estimate_is_the_last_runs_pace_and_its_other_stages(
    poc: Poc, settings: Settings, ledger: Ledger
) -> None:
    found = estimate_run(poc, settings, ledger, may_spend_usd=Decimal(95))
    assert found is not None
    assert found.seconds == pytest.approx(1000 * 36)
    assert float(found.likely_usd) == pytest.approx((36_000 + 60 + 100 + 40) * 0.08 / 3600)
    assert "at 36 s a step and $0.00444 for the rest" in found.basis
    kept = json.loads((poc.work / ESTIMATE).read_text())
    assert Decimal(kept["likely_usd"]) == found.likely_usd and kept["steps"] == 1000
    few = estimate_run(poc, settings, ledger, stages=["distill"], may_spend_usd=Decimal(95))
    assert few is not None
    assert float(few.likely_usd) == pytest.approx((36_000 + 60) * 0.08 / 3600)
    assert estimate_run(poc, settings, ledger, stages=["gate"], may_spend_usd=Decimal(1)) is None
    assert not (poc.work / ESTIMATE).exists(), "of an earlier run nothing is left"


def test_a_pace_of_something_else_is_no_pace(poc: Poc, settings: Settings, ledger: Ledger) -> None:
    wider = dataclasses.replace(poc.params.distill, batch_size=99)
    other = dataclasses.replace(poc, params=dataclasses.replace(poc.params, distill=wider))
    assert estimate_run(other, settings, ledger, may_spend_usd=Decimal(95)) is None
    with pytest.raises(UserError, match="with these params on this machine"):
        quote(other, settings, book(poc.root))
    elsewhere = dataclasses.replace(settings, ray_address="10.0.0.1:6379")
    with pytest.raises(UserError, match="unset RAY_ADDRESS"):
        quote(poc, elsewhere, book(poc.root))


def test_a_run_that_cannot_fit_is_refused_with_what_would(
    poc: Poc, settings: Settings, ledger: Ledger
) -> None:
    """Half of the 36200 s fit, 300 kept back of which the gate takes 40: 490 steps."""
    half = Decimal("0.08") * 18100 / 3600
    with pytest.raises(BudgetRefused, match=r"with distill\.steps of 490 it would.*run_usd of \$"):
        estimate_run(poc, settings, ledger, may_spend_usd=half)
    fits = dataclasses.replace(poc.params.distill, steps=490)
    less = dataclasses.replace(poc, params=dataclasses.replace(poc.params, distill=fits))
    assert estimate_run(less, settings, ledger, may_spend_usd=half) is not None, "as it was told"
    with pytest.raises(BudgetRefused, match="no number of steps would"):
        estimate_run(poc, settings, ledger, may_spend_usd=Decimal("0.001"))


def test_a_run_without_steps_leaves_the_pace_of_the_one_before(poc: Poc) -> None:
    path, settings = poc.folder("distill") / "history.json", local(poc.root)
    history = json.loads(path.read_text())
    keep_pace(poc, history)
    measured = measured_pace(poc, settings)
    for steps in ([], history["steps"][:3]):
        stopped = history | {"steps": steps}
        path.write_text(json.dumps(stopped))
        keep_pace(poc, stopped)
        assert measured is not None and measured_pace(poc, settings) == measured
    slower = [{"step": i, "at": 72.0 * i} for i in range(20)]
    path.write_text(json.dumps(history | {"steps": slower}))
    newest = measured_pace(poc, settings)
    assert newest is not None and newest.mean == 72
    path.write_text(json.dumps(history | {"steps": []}))
    (poc.work / "pace.json").write_text(json.dumps(history | {"pace_key": "of another student"}))
    assert measured_pace(poc, settings) is None
