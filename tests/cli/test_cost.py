"""`turbo-vaed cost report` and `cost portfolio`: what they print, write and refuse."""

from __future__ import annotations

import csv
import io
import json

import pytest

from tests import configs
from tests.cli import test_cli
from tests.report.costs import made_up
from turbo_vaed.costs import Ledger

checkout, call = test_cli.checkout, test_cli.call


@pytest.fixture
def made(checkout):
    """The checkout with the made-up customers, their work folders and their ledger."""
    made_up.checkout(checkout)
    made_up.ledger(checkout).close()
    return checkout


@pytest.mark.parametrize("form", ["table", "csv", "json", "html"])
def test_an_empty_ledger_is_no_mistake(call, form):
    code, out, err = call("cost", "report", "--format", form)
    assert code == 0, err
    assert out


def test_a_report_in_every_form(call, made):
    code, out, _ = call("cost", "report", "--customer", "acme", "--month", "2026-08")
    assert code == 0
    assert out.startswith("$1.31 ") and "August 2026" in out.partition("\n")[0]
    _, out, _ = call("cost", "report", "--format", "csv")
    assert {row["customer"] for row in csv.DictReader(io.StringIO(out))} == {
        "acme", "beta", "tiny", "whale", "gone"
    }  # fmt: skip
    _, out, _ = call("cost", "report", "--month", "2026-07", "--format", "json")
    assert [run["run"] for run in json.loads(out)["runs"]] == ["acme-1"]
    assert json.loads(out)["period"] == "2026-07"


def test_on_demand_prices_come_from_the_cache_of_aws_prices(call, made):
    arguments = ("cost", "report", "--customer", "acme", "--format", "json")
    _, out, _ = call(*arguments)
    total = json.loads(out)["total"]
    assert total["spot_saving_usd"] is None
    assert "g5.xlarge" in total["unknown"]["spot_saving_usd"]
    folder = made / "state" / "prices"
    folder.mkdir()
    when = "2026-08-01T00:00:00+00:00"
    (folder / "on-demand_eu-central-1_g5.xlarge.json").write_text(
        json.dumps({"quoted_at": when, "points": [[when, "1.08"]]})
    )
    _, out, _ = call(*arguments)
    assert json.loads(out)["total"]["spot_saving_usd"] == "4.32"


def test_a_page_is_written_to_state_or_to_the_path_given(call, made, tmp_path):
    code, out, _ = call("cost", "report", "--format", "html", "--month", "2026-08")
    path = made / "state/reports/costs-all-2026-08.html"
    assert (code, out.strip()) == (0, str(path))
    assert "August 2026" in path.read_text()
    own = tmp_path / "deep" / "page.html"
    code, out, _ = call(
        "cost", "report", "--customer", "acme", "--format", "html", "--out", str(own)
    )
    assert (code, out.strip()) == (0, str(own))
    assert "Customer acme" in own.read_text()


def test_a_customer_name_with_slashes_makes_a_safe_file_name(call, made):
    with Ledger.open(f"sqlite:///{made}/state/ledger.db") as ledger:
        charge = next(made_up.charges())
        ledger.add(type(charge)(**{**vars(charge), "customer": "../../up"}))
    code, out, _ = call("cost", "report", "--customer", "../../up", "--format", "html")
    assert code == 0
    assert out.strip() == str(made / "state/reports/costs-______up-all-time.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--customer", "nobody"], "'nobody'"),
        (["report", "--month", "2026-13"], "expected YYYY-MM"),
        (["report", "--month", "August"], "expected YYYY-MM"),
        (["portfolio", "--month", "2026"], "expected YYYY-MM"),
        (["report", "--out", "x.html"], "--format html"),
        (["portfolio", "--format", "json", "--out", "x.html"], "--format html"),
        (["report", "--format", "pdf"], "pdf"),
        (["report", "demo"], "demo"),
    ],
)
def test_a_users_mistake_is_refused_by_its_argument(call, arguments, message):
    code, _, err = call("cost", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["report", "portfolio"])
def test_a_page_that_cannot_be_written_is_refused(call, made, tmp_path, verb):
    (tmp_path / "file").write_text("")
    code, _, err = call("cost", verb, "--format", "html", "--out", str(tmp_path / "file" / "x"))
    assert code == 2
    assert str(tmp_path / "file") in err


def test_help_lists_the_keys_of_the_json_report(call):
    _, out, _ = call("cost", "report", "--help")
    words = " ".join(out.replace("│", " ").split())
    for name in (
        "sentence", "period", "customer", "summary", "total", "runs", "months", "notes", "null"
    ):  # fmt: skip
        assert name in words


@pytest.mark.slow
def test_a_portfolio_in_every_form(call, made):
    document = configs.read(made)
    del document["customers"]["beta"]
    configs.write(made, document)
    code, out, _ = call("cost", "portfolio", "--month", "2026-08")
    sentence, path = out.strip().splitlines()
    assert code == 0
    assert "in August 2026" in sentence
    assert path == str(made / "state/reports/portfolio-all-2026-08.html")
    _, out, _ = call("cost", "portfolio", "--format", "json")
    rows = {row["customer"]: row for row in json.loads(out)["summary"]}
    assert rows["beta"]["in_params"] is False and rows["beta"]["spent_usd"] == "0.432"
    assert rows["acme"]["verdict"] == "passes" and rows["acme"]["champion_version"] is None
    code, out, _ = call("cost", "portfolio", "--format", "table")
    assert code == 0 and "acme" in out
