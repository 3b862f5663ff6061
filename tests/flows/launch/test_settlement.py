"""The time of a machine outside its stages is charged, whoever ends it."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from typer.testing import CliRunner

from flows import runs
from flows.launch import launch, launch_config, settlement
from flows.launch.instance_selection import Selection, select_instance
from flows.to_do import ToDo
from tests.costs.charges import START, charge
from turbo_vaed.cli import app
from turbo_vaed.costs import Ledger, PriceBook, format_usd
from turbo_vaed.errors import UserError
from turbo_vaed.planning.ec2_costs import ENDS_ITSELF_MINUTES
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

BEGAN = START - timedelta(minutes=5)


@pytest.fixture
def selection(workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook) -> Selection:
    launch_config.folder(workspace).mkdir(parents=True)
    return select_instance(workspace, settings, todo, book=book)


def test_time_of_a_machine_outside_its_stages_is_charged_once(
    workspace: Workspace, settings: Settings, run: runs.Run, selection: Selection
) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run.run_id, resource="g5.xlarge", market="spot"))  # 15 s
        ledger.record_reservation(run.run_id, "demo", Decimal(9), at=START)
        settlement.note(workspace, run, selection, began=BEGAN)
        volume, up = settlement.settle(ledger, workspace, ended=BEGAN + timedelta(minutes=10))
        assert {volume.stage, up.stage} == {"machine"} and up.market == "spot"
        assert up.quantity == Decimal(585)
        assert up.amount_usd == pytest.approx(Decimal(585) * Decimal("0.25") / 3600)
        assert (volume.resource, volume.unit) == ("volume", "GB-month")
        assert volume.quantity == pytest.approx(120 * Decimal(10) / (30 * 24 * 60))  # all the time
        assert volume.amount_usd == pytest.approx(volume.quantity * Decimal("0.0952"))
        assert settlement.settle(ledger, workspace, ended=BEGAN + timedelta(minutes=20)) == ()
        assert ledger.reservations(at=START) == (), "its month is free for others"
        # Cut off between the ledger's word and the end of it.
        settlement.note(workspace, run, selection, began=BEGAN)
        settlement.settle(ledger, workspace, ended=BEGAN + timedelta(minutes=10))
        assert len(ledger.charges()) == 3


def test_a_machine_that_is_not_charged_yet_is_not_overwritten(
    workspace: Workspace, run: runs.Run, selection: Selection
) -> None:
    settlement.note(workspace, run, selection, began=BEGAN)
    with pytest.raises(UserError, match="turbo-vaed ec2 down demo"):
        settlement.note(workspace, run, selection, began=START)


def test_a_machine_ends_itself_soon_after_its_last_stage(
    workspace: Workspace, settings: Settings, run: runs.Run, selection: Selection
) -> None:
    """Days before somebody looks: 5 minutes before its stage of 15 s, and some after it."""
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run.run_id, resource="g5.xlarge", market="spot"))
        settlement.note(workspace, run, selection, began=BEGAN)
        volume, up = settlement.settle(ledger, workspace, ended=BEGAN + timedelta(days=5))
    assert up.quantity == 5 * 60 + ENDS_ITSELF_MINUTES * 60
    assert volume.ended_at - volume.started_at == timedelta(
        minutes=5 + ENDS_ITSELF_MINUTES, seconds=15
    )


def test_a_clock_set_back_takes_nothing_off_the_charge(
    workspace: Workspace, settings: Settings, run: runs.Run, selection: Selection
) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        settlement.note(workspace, run, selection, began=BEGAN)
        assert settlement.settle(ledger, workspace, ended=BEGAN - timedelta(hours=1)) == ()
        assert ledger.charges() == ()


def test_a_machine_that_outlived_its_process_is_charged_when_it_is_ended(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    selection: Selection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It got to no stage: for no longer than its minutes, after which it ended itself."""
    settlement.note(workspace, run, selection, began=BEGAN)
    config = launch_config.folder(workspace) / launch_config.MACHINE
    config.touch()
    ended: list[object] = []

    def end(path: object) -> None:
        ended.append(path)
        config.unlink()

    monkeypatch.setattr(launch, "end", end)
    monkeypatch.setenv("TURBO_VAED_ROOT", str(settings.root))
    result = CliRunner().invoke(app, ["ec2", "down", "demo"])
    assert result.exit_code == 0
    assert ended == [config]
    with Ledger.open(settings.ledger_url) as ledger:
        up, volume = sorted(ledger.charges(), key=lambda charge: charge.resource)
    assert format_usd(up.amount_usd + volume.amount_usd) in result.stdout
    assert {up.run, volume.run} == {run.run_id}
    assert up.quantity == selection.minutes * 60
    again = CliRunner().invoke(app, ["ec2", "down", "demo"])
    assert isinstance(again.exception, UserError) and "demo" in str(again.exception)


def test_downloads_from_aws_are_charged(
    workspace: Workspace, settings: Settings, run: runs.Run
) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        place = settings.outbox_folder
        found = settlement.fetched(ledger, workspace, run, 5 * 10**8, at=START, outbox_folder=place)
        assert ledger.charges() == (found,)
    assert (found.quantity, found.unit, found.amount_usd) == (
        Decimal("0.5"), "GB", Decimal("0.045")
    )  # fmt: skip
