"""The HTML pages of costs: escaped, self-contained, and whole on A4."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report.costs import made_up
from tests.report.costs.golden import AUGUST
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.customer_costs import Statement
from turbo_vaed.errors import Unreachable
from turbo_vaed.report.costs import portfolio, wording
from turbo_vaed.report.costs.facts import Gathered, gather
from turbo_vaed.report.costs.page import MOST_BARS, costs_page
from turbo_vaed.runtime.files import write_text


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.checkout(tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="module")
def everyone(root: Path) -> Gathered:
    return made_up.gathered(root)


@pytest.fixture(scope="module")
def pages(everyone: Gathered, root: Path) -> dict[str, str]:
    acme = made_up.gathered(root, customer="acme", period=AUGUST)
    return {
        "all": costs_page(everyone.statement),
        "acme": costs_page(acme.statement),
        "portfolio": portfolio.portfolio_page(
            everyone, made_up.champions(everyone), made_up.returns(everyone)
        ),
    }


class Tags(HTMLParser):
    """Every tag with its attributes, and the text in between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ["all", "acme", "portfolio"])
def test_a_page_runs_and_loads_nothing(pages: dict[str, str], name: str) -> None:
    found = Tags(pages[name])
    assert not {"script", "img", "link", "iframe", "form"} & {tag for tag, _ in found.tags}
    policy = next(a["content"] for tag, a in found.tags if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert not any("src" in a or "href" in a for _, a in found.tags)
    assert "{{" not in pages[name] and "None" not in found.text


def test_names_are_escaped_wherever_they_stand(root: Path, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    bad = replace(next(made_up.charges()), run=evil, customer=f"{evil}c", stage=f"{evil}s")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(bad)
        found = gather(root, ledger, on_demand_usd_per_hour=made_up.PRICES.get)
        alone = gather(root, ledger, on_demand_usd_per_hour=made_up.PRICES.get, customer=f"{evil}c")
    champions: dict[str, int | str] = {one.name: evil for one in found.known}
    for page in (
        costs_page(found.statement),
        costs_page(alone.statement),
        portfolio.portfolio_page(found, champions, made_up.returns(found)),
    ):
        tags = Tags(page)
        assert "img" not in {tag for tag, _ in tags.tags}
        assert evil in tags.text


def test_the_page_shows_the_sentence_every_run_and_every_note(
    pages: dict[str, str], everyone: Gathered
) -> None:
    text = Tags(pages["all"]).text
    statement = everyone.statement
    assert text.index(wording.sentence(statement)) < text.index("By customer")
    for run in statement.runs:
        assert f"{run.customer}: {run.run}" in text
    for note in wording.notes(statement):
        assert note in text
    assert "$1,000,002.94" in text and "<$0.000001" in text


def test_an_empty_ledger_has_a_page_too(root: Path, tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/empty.db") as ledger:
        found = gather(root, ledger, on_demand_usd_per_hour=made_up.PRICES.get)
    text = Tags(costs_page(found.statement)).text
    assert wording.sentence(found.statement) in text
    assert "$" not in wording.sentence(found.statement)
    text = Tags(
        portfolio.portfolio_page(found, made_up.champions(found), made_up.returns(found))
    ).text
    assert "idle" in text and wording.sentence(found.statement) in text


def test_many_customers_share_the_last_bar(root: Path, tmp_path: Path) -> None:
    base = next(made_up.charges())
    with Ledger.open(f"sqlite:///{tmp_path}/many.db") as ledger:
        ledger.add_all(replace(base, customer=f"c{n:02d}", run=f"c{n:02d}-1") for n in range(30))
        found = gather(root, ledger, on_demand_usd_per_hour=made_up.PRICES.get)
    page = costs_page(found.statement)
    chart = page[page.index('aria-label="Spent by customer') :].partition("</svg>")[0]
    assert chart.count("<g>") == MOST_BARS
    assert f"{30 - MOST_BARS + 1} others: $0.228" in chart  # 19 of $0.012


def test_a_portfolio_has_the_outcome_of_each_customer(everyone: Gathered) -> None:
    *rows, total = portfolio.table_rows(
        everyone, made_up.champions(everyone), made_up.returns(everyone)
    )
    by_name = {row["name"]: row for row in rows}
    acme, tiny, gone = by_name["acme"], by_name["tiny"], by_name["gone"]
    assert (acme["verdict"], acme["champion"], acme["best"]) == ("passes", "version 3", "29.25 dB")
    assert (acme["retention"], acme["per_db"], acme["use_case"]) == (
        "98.4 %",
        "$0.137",
        "education",
    )
    assert (tiny["verdict"], tiny["champion"]) == ("fails", "none")
    assert acme["saves"].startswith("$") and acme["pays_back"].endswith(" months")
    assert (tiny["saves"], tiny["pays_back"]) == (wording.UNKNOWN, wording.UNKNOWN)
    assert (gone["use_case"], gone["spent"], gone["verdict"]) == (
        "removed",
        "$0.108",
        wording.UNKNOWN,
    )
    assert (total["verdict"], total["champion"], total["runs"]) == ("1 of 2 pass", "1", "7")
    notes = portfolio.portfolio_document(
        everyone, made_up.champions(everyone), made_up.returns(everyone)
    )["notes"]
    assert not any("tiny" in note and "champion" in note for note in notes), "it is known"
    (no_verdict,) = (note for note in notes if "gate/verdict.json" in note)
    assert all(name in no_verdict for name in ("beta", "idle", "whale", "gone", "champion"))


def test_a_portfolio_as_json_has_figures_and_no_runs(everyone: Gathered) -> None:
    found = portfolio.portfolio_document(
        everyone, made_up.champions(everyone), made_up.returns(everyone)
    )
    assert "runs" not in found
    by_name = {row["customer"]: row for row in found["summary"]}
    acme, gone = by_name["acme"], by_name["gone"]
    assert (acme["champion_version"], acme["verdict"], acme["in_params"]) == (3, "passes", True)
    assert set(acme["return"]) == {"monthly_saving_usd", "payback_months", "value_usd"}
    assert gone["return"] is None
    assert (gone["champion_version"], gone["verdict"], gone["in_params"]) == (None, None, False)


def test_champions_are_read_from_a_registry_that_answers(
    everyone: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers: list[str] = []

    def versions(uri: str, customer: str) -> tuple[Any, ...]:
        customers.append(customer)
        raise Unreachable("nothing answers")

    monkeypatch.setattr("turbo_vaed.registry.promotion.versions", versions)
    found = portfolio.find_champions("http://127.0.0.1:9", everyone)
    assert customers == ["acme"]  # once, and of no customer who cannot have one
    assert set(found) == {one.name for one in everyone.known}
    assert "nothing answers" in str(found["acme"])


def test_champions_are_read_from_a_real_registry(everyone: Gathered, store: str) -> None:
    found = portfolio.find_champions(store, everyone)
    assert found["acme"] is found["tiny"] is None
    assert "verdict" in str(found["beta"])


OVERFLOW = """[...document.querySelectorAll("td, th, h1, h2, li, .badge, svg text")]
  .filter((e) => { const box = e.getBoundingClientRect();
    return box.right > document.documentElement.clientWidth + 1 || box.left < -1; })
  .map((e) => e.textContent)"""


@pytest.fixture
def printed(browser: Any) -> Iterator[Any]:
    """The tab, as if its page were printed."""
    browser.call("Emulation.setEmulatedMedia", media="print")
    yield browser
    browser.call("Emulation.setEmulatedMedia", media="")


# A4 less its margins, in CSS pixels.
@pytest.mark.parametrize(("name", "width"), [("all", 703), ("acme", 703), ("portfolio", 1031)])
def test_nothing_is_cut_off_on_paper(
    pages: dict[str, str], tmp_path: Path, printed: Any, name: str, width: int
) -> None:
    path = write_text(tmp_path / f"{name}.html", pages[name])
    printed.open(path, width=width, height=900)
    assert printed.evaluate(OVERFLOW) == []
    assert printed.errors() == []
    assert printed.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert printed.evaluate("getComputedStyle(document.querySelector('thead')).display") == (
        "table-header-group"
    )
    assert printed.evaluate("getComputedStyle(document.querySelector('tr')).breakInside") == (
        "avoid"
    )


@pytest.mark.parametrize(("name", "portrait"), [("all", True), ("portfolio", False)])
def test_pages_print_on_a4(
    pages: dict[str, str], tmp_path: Path, browser: Any, name: str, portrait: bool
) -> None:
    browser.open(write_text(tmp_path / f"{name}.html", pages[name]))
    answer = browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    pdf = base64.b64decode(answer["data"])
    box = re.search(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)\s+([\d.]+)", pdf)
    assert box is not None
    sides = (float(box[1]), float(box[2]))
    a4 = (595, 842) if portrait else (842, 595)
    assert sides == pytest.approx(a4, abs=1)


def test_a_statement_of_one_customer_shows_stages(pages: dict[str, str], root: Path) -> None:
    statement: Statement = made_up.gathered(root, customer="acme", period=AUGUST).statement
    assert statement.customer == "acme"
    assert "Spent by stage, August 2026" in pages["acme"]
    assert "Spent by customer" not in pages["acme"]


def test_a_return_needs_the_measurements_of_the_last_run(everyone: Gathered, root: Path) -> None:
    with made_up.ledger(root) as ledger:
        found = portfolio.find_returns(root, ledger, everyone)
    assert "params.yaml" in str(found["gone"])
    assert "gate/measurement.json" in str(found["acme"])
    assert set(found) == {one.name for one in everyone.known}
