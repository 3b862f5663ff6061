"""Records, ledger and params -> the fleet, its page and its metrics."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.report.browser import Page
from tests.report.fleet import made_up
from tests.report.fleet.made_up import NOW
from turbo_vaed.errors import CorruptFile
from turbo_vaed.report.fleet import page, record
from turbo_vaed.report.fleet.facts import Fleet, gather
from turbo_vaed.report.fleet.metrics import OUTCOMES, exposition
from turbo_vaed.report.fleet.record import Champion, LastRun, Skipped, decoded, encoded, name_of
from turbo_vaed.report.fleet.site import read_all, site_at
from turbo_vaed.report.fleet.status import Plan

COUNT = 12
EVIL = '<img src=x onerror="alert(1)">'


def plans(scheduled: Any, now: Any) -> tuple[dict[str, Plan], list[str]]:
    """All are due tomorrow, and one is paused."""
    due = {one.customer: Plan(next_at=NOW + timedelta(hours=20)) for one in scheduled}
    return due | {"initech": Plan(next_at=None, is_paused=True)}, ["a note on schedules"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = made_up.checkout(tmp_path_factory.mktemp("fleet"), COUNT)
    made_up.fill_ledger(f"sqlite:///{root}/ledger.db", COUNT)
    made_up.publish_records(site_at(str(root / "site")), COUNT)
    return root


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, bytes]:
    site = site_at(str(root / "site"))
    return read_all(site, site.names(record.FOLDER))


@pytest.fixture(scope="module")
def fleet(root: Path, documents: dict[str, bytes]) -> Fleet:
    return gather(root, f"sqlite:///{root}/ledger.db", documents, find_plans=plans, now=NOW)


def samples(fleet: Fleet) -> dict[tuple[str, ...], float]:
    """(name, customer, what else it is labelled with) -> value, read by the library's parser."""
    found = {}
    for family in text_string_to_metric_families(exposition(fleet)):
        for one in family.samples:
            labels = dict(one.labels)
            first = [labels.pop("customer")] if "customer" in labels else []
            found[one.name, *first, *labels.values()] = one.value
    return found


@pytest.mark.parametrize(
    "document",
    [
        made_up.last_run("acme", 3),
        LastRun(customer="acme", outcome="Fault", ended=NOW),
        Skipped(customer="acme", at=NOW, sentence="late"),
        Champion(customer="acme", version=None, at=NOW),
    ],
)
def test_a_record_is_read_as_it_was_written(document: record.Document) -> None:
    assert decoded(name_of(type(document), "acme"), encoded(document)) == document


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "customer": "acme"}', b"\xff"]
)
def test_a_damaged_record_is_named(content: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"records/acme\.last\.json"):
        decoded(name_of(LastRun, "acme"), content)


def test_what_needs_attention_comes_first(fleet: Fleet) -> None:
    found = [row.status.customer for row in fleet.rows]
    assert found[:5] == ["cinemaker", "brightcast", "dashcam-europe", "edulight", "hooli-video"]
    assert found[5] == "fieldnotes", "its run goes on"
    assert len(found) == COUNT and found[6:] == sorted(found[6:])
    assert [row.status.customer for row in fleet.alarmed] == found[:5]
    assert {row.status.customer for row in fleet.running} == {"edulight", "fieldnotes"}


def test_a_customer_without_a_record_has_not_run(fleet: Fleet) -> None:
    (never,) = [row for row in fleet.rows if row.status.customer == "jumpcut"]
    assert never.status.outcome == "Never" and not never.alarms


def test_a_ledger_that_does_not_answer_leaves_the_rest(
    root: Path, documents: dict[str, bytes]
) -> None:
    url = "postgresql+psycopg://127.0.0.1:1/x?connect_timeout=1"
    found = gather(root, url, documents, find_plans=plans, now=NOW)
    assert found.month_usd is None and len(found.rows) == COUNT
    assert any("127.0.0.1:1" in note for note in found.notes)
    assert "cinemaker" in page.fleet_page(found) and "customer_month_usd{" not in exposition(found)


def test_damaged_and_foreign_records_are_notes(root: Path) -> None:
    given = {name_of(LastRun, "acme"): b"{", "records/../x.last.json": b"{}"}
    url = f"sqlite:///{root}/ledger.db"
    found = gather(root, url, given, find_plans=plans, now=NOW)
    assert sum("records/" in note for note in found.notes) == 2


def test_a_removed_customer_comes_last(root: Path, documents: dict[str, bytes]) -> None:
    gone = {name_of(LastRun, "gone"): encoded(made_up.last_run("gone", 1, outcome="Fault"))}
    url = f"sqlite:///{root}/ledger.db"
    found = gather(root, url, documents | gone, find_plans=plans, now=NOW)
    assert found.rows[-1].status.customer == "gone" and not found.rows[-1].alarms
    assert ("turbo_vaed_run_open", "gone") not in samples(found)


def test_a_page_loads_nothing_and_escapes_everything(
    root: Path, documents: dict[str, bytes]
) -> None:
    last = made_up.last_run("acme", 0, outcome="Fault", sentence=EVIL)
    given = documents | {name_of(LastRun, "acme"): encoded(last)}
    url = f"sqlite:///{root}/ledger.db"
    text = page.fleet_page(gather(root, url, given, find_plans=plans, now=NOW))
    assert EVIL not in text and "&lt;img" in text
    assert not re.search(r"<[^>]*\ssrc=", text) and "url(" not in text
    links = re.findall(r'href="([^"]*)"', text)
    assert links and not [link for link in links if ":" in link or link.startswith("/")]
    assert f'"{last.report}"' in text and '"customers/acme/costs.html"' in text


def test_the_metrics_are_what_the_fleet_is(fleet: Fleet) -> None:
    found = samples(fleet)
    last = made_up.last_run("acme", 0)
    assert found["turbo_vaed_last_run_timestamp_seconds", "acme"] == last.ended.timestamp()
    assert found["turbo_vaed_last_run_duration_seconds", "acme"] == last.seconds
    assert found["turbo_vaed_last_run_usd", "acme"] == 1.25
    assert found["turbo_vaed_run_budget_usd", "acme"] == 95
    assert found["turbo_vaed_customer_month_usd", "hooli-video"] == 91.7
    assert found["turbo_vaed_customer_month_budget_usd", "hooli-video"] == 95
    assert found["turbo_vaed_run_open", "fieldnotes"] == 1
    assert found["turbo_vaed_run_open", "acme"] == 0
    assert ("turbo_vaed_run_heartbeat_timestamp_seconds", "fieldnotes") in found
    assert ("turbo_vaed_run_heartbeat_timestamp_seconds", "acme") not in found
    assert found["turbo_vaed_gate_measured", "acme", "psnr", "dB"] == 28.4
    assert ("turbo_vaed_gate_measured", "acme", "fps", "") not in found, "not measured"
    assert found["turbo_vaed_gate_limit", "acme", "fps", ""] == 24
    assert found["turbo_vaed_alarm", "brightcast", "gate-failed"] == 1
    assert found["turbo_vaed_alarm", "acme", "gate-failed"] == 0
    assert found["turbo_vaed_champion_info", "acme", "1"] == 1
    assert ("turbo_vaed_next_run_timestamp_seconds", "initech") not in found, "it is paused"
    one_hot = {outcome: found["turbo_vaed_outcome", "edulight", outcome] for outcome in OUTCOMES}
    assert [outcome for outcome, value in one_hot.items() if value] == ["Inconclusive"]
    for row in fleet.rows:
        assert row.status.outcome in OUTCOMES


def test_every_metric_says_what_it_is(fleet: Fleet) -> None:
    for family in text_string_to_metric_families(exposition(fleet)):
        assert family.documentation and family.type == "gauge", family.name


def test_programs_get_what_people_read(fleet: Fleet) -> None:
    rows = json.loads(json.dumps(page.document(fleet)))
    first = rows[0]
    assert first["customer"] == "cinemaker" and first["alarms"][0]["alarm"] == "fault"
    assert first["drift"] is None and first["champion_version"] is None
    assert len(page.terminal_rows(fleet)) == len(rows)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "No alarm is held for 12 customers"), (1, "1 of 12 customers needs")],
)
def test_the_headline_counts(fleet: Fleet, count: int, words: str) -> None:
    rows = tuple(row if i < count else replace(row, alarms=()) for i, row in enumerate(fleet.rows))
    assert page.sentence(replace(fleet, rows=rows)).startswith(words)


def test_a_page_is_filtered_and_sorted(fleet: Fleet, tmp_path: Path, browser: Page) -> None:
    path = tmp_path / "index.html"
    path.write_text(page.fleet_page(fleet))
    browser.open(path)
    assert browser.errors() == []
    assert len(browser.requests()) == 1, "the page itself"
    shown = (
        "[...document.querySelectorAll('table.fleet tbody tr:not([hidden]) td.name')]"
        ".map(td => td.dataset.value)"
    )
    assert browser.evaluate(shown) == [row.status.customer for row in fleet.rows]

    def enter(words: str) -> None:
        browser.evaluate(f"document.getElementById('find').value = {words!r}")
        browser.evaluate("document.getElementById('find').dispatchEvent(new Event('input'))")

    enter("Customer-01")
    assert browser.evaluate(shown) == ["customer-010", "customer-011"]
    enter("")
    browser.evaluate("document.querySelector('button[data-alarm=refused]').click()")
    assert browser.evaluate(shown) == ["dashcam-europe"]
    browser.evaluate("document.querySelector('button[data-alarm=refused]').click()")
    browser.evaluate("document.querySelectorAll('table.fleet thead th button')[0].click()")
    assert browser.evaluate(shown) == sorted(row.status.customer for row in fleet.rows)
    browser.evaluate("document.querySelectorAll('table.fleet thead th button')[4].click()")
    browser.evaluate("document.querySelectorAll('table.fleet thead th button')[4].click()")
    assert browser.evaluate(shown)[0] == "hooli-video", "the largest share of its limit"
    browser.resize(390, 800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
