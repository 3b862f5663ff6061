"""`cost reconcile` as a person calls it: a real ledger, Cost Explorer's answers given."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.costs.bills import Explorer, charge, group, page
from turbo_vaed import cli
from turbo_vaed.costs import Charge, Ledger

Call = Callable[..., tuple[int, str, str]]
MARCH = {"Start": "2024-03-01", "End": "2024-04-01"}
"""A month that is over, whatever the clock says."""
NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)


def hour(usd: str, **changes: Any) -> Charge:
    return charge(usd, started_at=NOON, ended_at=NOON + timedelta(hours=1), **changes)


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Explorer]:
    explorer = Explorer(TimePeriod=MARCH)

    def client(service: str, *, region_name: str, config: Any) -> Any:
        return explorer.client(service, region_name)

    monkeypatch.setattr(boto3, "client", client)
    yield explorer
    explorer.stub.assert_no_pending_responses()


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.add(hour("50"))
        ledger.add(hour("8", customer="zeta", run="zeta-1"))
        ledger.add(hour("0.08", run="acme-7", market="local"))
        ledger.add(charge("77", run="of-another-month"))
    return path


@pytest.fixture
def call(
    ledger_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.setenv("TURBO_VAED_LEDGER_URL", f"sqlite:///{ledger_file}")
    monkeypatch.setenv("TURBO_VAED_ROOT", str(ledger_file.parent))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["turbo-vaed", "cost", "reconcile", *arguments])
        code = cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def march(*groups: Any) -> dict[str, Any]:
    return page(groups, TimePeriod=MARCH)


def test_a_month_that_agrees(call: Call, explorer: Explorer) -> None:
    explorer.answers(march(group("50.30"), group("8", "zeta", "zeta-1")))
    code, out, err = call("--month", "2024-03")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "The ledger and the bill of 2024-03 agree within 1 % / 0.50 USD in 2 of 2 runs.",
        "Not billed by AWS: 0.08 USD of market local in 1 run.",
    ]


def test_a_month_that_differs(call: Call, explorer: Explorer, ledger_file: Path) -> None:
    before = rows_of(ledger_file)
    # Square brackets are no markup here, and a tag may have them in EC2.
    groups = group("50.30"), group("11.10", "zeta", "zeta-1"), group("2", "acme", "[/odd]")
    explorer.answers(march(*groups, group("1", "", "")))
    code, out, _ = call("--month", "2024-03")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == (
        "The ledger and the bill of 2024-03 agree within 1 % / 0.50 USD in 1 of 3 runs; "
        "2 differ by 5.10 USD; 1.00 USD of the bill is untagged."
    )
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in lines if "│" in line]
    assert cells == [
        ["zeta", "zeta-1", "$8.00", "$11.10", "-$3.10", "-27.93", "differs"],
        ["acme", "[/odd]", "$0.00", "$2.00", "-$2.00", "-100", "bill only"],
        ["untagged", "untagged", "$0.00", "$1.00", "-$1.00", "-100", "bill only"],
        ["all", "4", "$58.00", "$64.40", "-$6.40", "", ""],
    ]
    assert "was not changed" in out
    assert rows_of(ledger_file) == before


def test_every_row_is_printed_on_request(call: Call, explorer: Explorer) -> None:
    explorer.answers(march(group("50.30"), group("8", "zeta", "zeta-1")))
    code, out, _ = call("--month", "2024-03", "--all")
    assert code == 0
    assert [row for row in ("acme-1", "zeta-1", "acme-7") if row not in out] == []
    assert out.count("agrees") == 2 and "of-another-month" not in out


def test_a_narrow_terminal_cuts_no_name_short(
    call: Call, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    explorer.answers(march(group("9", "a" * 48, "q" * 61)))
    _, out, _ = call("--month", "2024-03")
    assert out.count("q") == 61


def test_a_reconciliation_as_json(call: Call, explorer: Explorer) -> None:
    explorer.answers(march(group("50"), group("11.10", "zeta", "zeta-1")))
    code, out, _ = call("--month", "2024-03", "--format", "json")
    found = json.loads(out)
    assert code == 1
    assert found["sentence"].endswith("in 1 of 2 runs; 1 differs by 3.10 USD")
    assert found["totals"]["difference_usd"] == "-3.1"
    assert [row["run"] for row in found["rows"]] == ["zeta-1"]
    assert found["rows"][0]["correction"]["amount_usd"] == "3.1"
    assert found["not_billed"] == [{"customer": "acme", "run": "acme-7", "ledger_usd": "0.08"}]
    explorer.answers(march(group("50"), group("11.10", "zeta", "zeta-1")))
    _, out, _ = call("--month", "2024-03", "--format", "json", "--all")
    assert [row["run"] for row in json.loads(out)["rows"]] == ["zeta-1", "acme-1"]


@pytest.mark.parametrize("month", ["2024-13", "march", "2099-01"])
def test_an_invalid_month_is_refused_without_asking_aws(
    call: Call, explorer: Explorer, month: str
) -> None:
    code, out, err = call("--month", month)
    assert (code, out) == (2, "")
    assert month in err


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [("ExpiredTokenException", 2), ("AccessDeniedException", 2), ("LimitExceededException", 3)],
)
def test_a_refusal_of_aws_is_printed_with_its_exit_code(
    call: Call, explorer: Explorer, refusal: str, expected: int
) -> None:
    explorer.fails(refusal)
    code, out, err = call("--month", "2024-03")
    assert (code, out) == (expected, "")
    assert refusal in err


def test_help_has_the_price_of_a_call(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert "0.01 USD" in out


def rows_of(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM charges ORDER BY key").fetchall()
