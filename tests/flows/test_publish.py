"""What a run leaves on the team's site, also where the site does not answer, and where two runs end
at once."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows import plans, publish, runs, states
from flows.effects import Outcome
from flows.publish import after_run, publish_all, read_fleet, rebuild
from tests import configs
from tests.gate.made_up import evidence, use_case
from tests.report.fleet.made_up import ELSEWHERE, NIGHTLY, charge
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.errors import BudgetRefused, Busy, Fault, Stopped
from turbo_vaed.gate import VERDICT_NAME, judge
from turbo_vaed.report.fleet import record
from turbo_vaed.report.fleet.facts import Scheduled
from turbo_vaed.report.fleet.record import Champion, LastRun, Skipped, decoded
from turbo_vaed.report.fleet.site import Folder, Site, site_at
from turbo_vaed.runtime.files import write_json, write_text
from turbo_vaed.settings import Settings

USD = Decimal("1.25")
FLOW_RUN = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A checkout with the customer `demo`, whose registry does not answer."""
    for name in ("TURBO_VAED_LEDGER_URL", "TURBO_VAED_SITE", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    configs.copy_to(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("TURBO_VAED_METRICS", str(tmp_path / "metrics/turbo_vaed.prom"))
    monkeypatch.setattr(publish, "prefect_run", SimpleNamespace(id=FLOW_RUN))
    return Settings.from_environment()


@pytest.fixture
def site(settings: Settings) -> Site:
    return site_at(settings.site_url)


@pytest.fixture
def begun(settings: Settings) -> None:
    """The flow has taken the customer."""
    with OpenRuns.open(settings.ledger_url) as open_runs:
        open_runs.acquire("demo", ELSEWHERE, flow_run=FLOW_RUN)


def ran(settings: Settings, result: str = "passes", run: str = "demo-1") -> Outcome:
    """The folder of a run that was judged, and what it came to."""
    work = settings.root / "work/demo"
    seen = {"passes": 28.0, "fails": 12.0}[result]
    verdict = judge(
        evidence(psnr_db=seen, teacher_psnr_db=seen + 0.2), customer="demo", use_case="education",
        thresholds=use_case(), min_parity_psnr=60.0, package_sha256="9" * 64,
        data_sha256="d" * 64, git_revision="8c1d", created=datetime.now(UTC).isoformat(),
    )  # fmt: skip
    assert verdict.result == result
    write_json(work / "gate" / VERDICT_NAME, verdict.to_json())
    page = write_text(work / "report" / "report.html", f"<p>the report of {run}")
    started = datetime.now(UTC).isoformat()
    runs.write(work, runs.Run(run_id=run, started=started, status="done", alias="champion"))
    with Ledger.open(settings.ledger_url) as ledger:
        charge(ledger, "demo", run, USD, at=datetime.now(UTC) + timedelta(hours=3))
    return Outcome(sentence=f"It {result}.", report=page, run_id=run, result=result)


def last_run(site: Site, customer: str = "demo") -> LastRun:
    name = record.name_of(LastRun, customer)
    found = decoded(name, site.read(name))
    assert isinstance(found, LastRun)
    return found


def is_published(site: Site, customer: str = "demo") -> bool:
    return record.name_of(LastRun, customer) in site.names(record.FOLDER)


def test_a_run_publishes_its_report_record_costs_and_the_fleet(
    settings: Settings, site: Site, begun: None
) -> None:
    after_run("demo", states.state_of(ran(settings)))
    last = last_run(site)
    assert (last.outcome, last.run, last.result) == ("Passed", "demo-1", "passes")
    assert last.began is not None and last.seconds is not None and last.usd == USD
    assert site.read(last.report) == b"<p>the report of demo-1"
    assert last.report == last.page == "customers/demo/runs/demo-1/report.html"
    assert site.read("customers/demo/runs/demo-1/run.json") == record.encoded(last)
    assert b"demo-1" in site.read("customers/demo/costs.html")
    index = site.read("index.html").decode()
    assert f'href="{last.report}"' in index and 'data-value="demo"' in index
    assert all(site.read(link) for link in re.findall(r'href="([^"]*)"', index)), "none is dead"
    assert settings.metrics_file is not None
    text = settings.metrics_file.read_text()
    found = {f.name: f for f in text_string_to_metric_families(text)}
    (sample,) = found["turbo_vaed_last_run_timestamp_seconds"].samples
    assert sample.value == pytest.approx(last.ended.timestamp())
    assert record.name_of(Champion, "demo") not in site.names(record.FOLDER), "it is not known"


@pytest.mark.slow
def test_the_champion_is_published_as_the_registry_says(
    settings: Settings, site: Site, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    after_run("demo", states.state_of(ran(settings)))
    name = record.name_of(Champion, "demo")
    champion = decoded(name, site.read(name))
    assert isinstance(champion, Champion) and champion.version is None
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_registered_model("turbo-vaed-demo")
    tags = {"verdict_result": "passes", "package_sha256": "9" * 64}
    client.create_model_version("turbo-vaed-demo", source="file:///x", tags=tags)
    client.set_registered_model_alias("turbo-vaed-demo", "champion", "1")
    fleet, _ = publish_all(Settings.from_environment())
    assert fleet.rows[0].status.champion is not None
    assert fleet.rows[0].status.champion.version == 1


def test_an_unchanged_run_keeps_what_the_verdict_says(
    settings: Settings, site: Site, begun: None
) -> None:
    outcome = ran(settings, "fails")
    after_run("demo", states.state_of(outcome))
    before = site.names("customers/")
    after_run("demo", states.state_of(replace(outcome, is_unchanged=True)))
    last = last_run(site)
    assert (last.outcome, last.result) == ("Unchanged", "fails")
    after = site.names("customers/")
    assert [name for name in after if after[name] != before.get(name)] == [
        "customers/demo/runs/demo-1/run.json"
    ]
    (row,) = read_fleet(settings).rows
    assert [alarm.name for alarm in row.alarms] == ["gate-failed"]


def test_an_unchanged_run_publishes_all_where_the_site_is_new(
    settings: Settings, site: Site
) -> None:
    after_run("demo", states.state_of(replace(ran(settings), is_unchanged=True)))
    last = last_run(site)
    assert last.run == "demo-1" and site.read(last.report)
    assert site.read("customers/demo/costs.html")


def test_a_refused_run_has_its_own_page_and_keeps_the_report(
    settings: Settings, site: Site, begun: None
) -> None:
    after_run("demo", states.state_of(ran(settings)))
    work = settings.root / "work/demo/report"
    os.utime(work / "report.html", (0, 0))
    write_text(work / "not-started.html", "<p>why")
    after_run("demo", states.state_of_failure(BudgetRefused("too dear")))
    last = last_run(site)
    assert (last.outcome, last.sentence) == ("Refused", "too dear")
    assert site.read(last.page) == b"<p>why" and last.page == "customers/demo/not-started.html"
    assert site.read(last.report) == b"<p>the report of demo-1"


def test_a_page_of_an_earlier_run_is_not_this_ones(
    settings: Settings, site: Site, begun: None
) -> None:
    old = write_text(settings.root / "work/demo/report/not-started.html", "<p>why, last night")
    os.utime(old, (0, 0))
    after_run("demo", states.state_of_failure(Fault("the report could not be written")))
    assert last_run(site).page == ""


def test_a_fault_before_the_run_has_the_customer_is_published(
    settings: Settings, site: Site
) -> None:
    after_run("demo", states.state_of_failure(Fault("the ledger is full")))
    last = last_run(site)
    assert (last.outcome, last.sentence) == ("Fault", "the ledger is full")
    assert not last.page and not last.run and last.began is None


@pytest.mark.parametrize("error", [Busy("a run goes on"), Stopped("another has taken its place")])
def test_a_run_that_has_not_the_customer_leaves_its_record(
    settings: Settings, site: Site, error: Exception
) -> None:
    with OpenRuns.open(settings.ledger_url) as open_runs:
        open_runs.acquire("demo", ELSEWHERE, flow_run="somebody else's")
    after_run("demo", states.state_of_failure(error))
    assert not is_published(site)


def test_a_skipped_run_leaves_the_last_one(settings: Settings, site: Site, begun: None) -> None:
    after_run("demo", states.state_of(ran(settings)))
    before = last_run(site)
    after_run("demo", states.skipped("demo", "it was due at 2"))
    assert last_run(site) == before
    skipped = decoded("records/demo.skipped.json", site.read("records/demo.skipped.json"))
    assert isinstance(skipped, Skipped) and "due at 2" in skipped.sentence
    (row,) = read_fleet(settings).rows
    assert row.status.seen_at == skipped.at


def test_a_site_that_does_not_answer_fails_no_run_and_gets_it_later(
    settings: Settings, begun: None, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = settings.root / "state/site"
    write_text(blocked, "a file, where the folder should be")
    after_run("demo", states.state_of(ran(settings)))
    assert "turbo-vaed fleet publish" in caplog.text
    blocked.unlink()
    fleet, site = publish_all(settings)
    last = last_run(site)
    assert (last.outcome, last.run) == ("Passed", "demo-1")
    assert site.read(last.report) and site.read("customers/demo/costs.html")
    assert site.read("costs.html") and f'href="{last.report}"' in site.read("index.html").decode()
    assert fleet.rows[0].status.last == last


def test_nothing_that_goes_wrong_reaches_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(publish, "publication", defect)
    after_run("demo", states.state_of_failure(Fault("x")))
    assert "ZeroDivisionError" in caplog.text


def test_runs_of_before_there_were_records_are_published(settings: Settings) -> None:
    ran(settings, "fails")
    fleet, site = publish_all(settings)
    last = last_run(site)
    assert (last.outcome, last.run) == ("GateFailed", "demo-1") and site.read(last.report)
    assert fleet.rows[0].status.outcome == "GateFailed"
    work = settings.root / "work/demo"
    runs.write(work, runs.Run(run_id="demo-2", started=last.ended.isoformat(), status="open"))
    site.remove(record.name_of(LastRun, "demo"))
    publish_all(settings)
    assert last_run(site).outcome == record.UNRECORDED


def test_an_older_checkout_does_not_replace_a_newer_record(
    settings: Settings, site: Site, begun: None
) -> None:
    after_run("demo", states.state_of(ran(settings)))
    newer = LastRun(customer="demo", outcome="Fault", ended=datetime.now(UTC) + timedelta(hours=1))
    site.write(record.name_of(LastRun, "demo"), record.encoded(newer))
    publish_all(settings)
    assert last_run(site) == newer


class Crowded(Folder):
    """A site to which another run's record comes while the page is made."""

    def __init__(self, path: Path, late: LastRun) -> None:
        super().__init__(path)
        self._late: LastRun | None = late
        self.pages = 0

    def write(self, name: str, content: bytes) -> bool:
        if name == publish.INDEX:
            self.pages += 1
            if self._late is not None:
                super().write(record.name_of(LastRun, "late"), record.encoded(self._late))
                self._late = None
        return super().write(name, content)


def test_a_record_that_comes_meanwhile_is_on_the_page(settings: Settings) -> None:
    late = LastRun(customer="late", outcome="Passed", ended=datetime.now(UTC))
    site = Crowded(Path(settings.site_url), late)
    rebuild(settings, site)
    assert 'data-value="late"' in site.read("index.html").decode()
    assert site.pages == 2


def test_runs_that_end_at_once_are_all_on_the_page(settings: Settings, site: Site) -> None:
    customers = [f"one-{i}" for i in range(4)]

    def end(customer: str) -> None:
        last = LastRun(customer=customer, outcome="Passed", ended=datetime.now(UTC))
        own = site_at(settings.site_url)
        own.write(record.name_of(LastRun, customer), record.encoded(last))
        rebuild(settings, own)

    threads = [threading.Thread(target=end, args=(customer,)) for customer in customers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = site.read("index.html").decode()
    assert [name for name in customers if f'data-value="{name}"' not in index] == []


class Slow(Folder):
    """A site on which another run ends while this one writes the page of all costs."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder)
        self._settings, self._is_over = settings, False

    def write(self, name: str, content: bytes) -> bool:
        if name == "costs.html" and not self._is_over:
            self._is_over = True
            with Ledger.open(self._settings.ledger_url) as ledger:
                charge(ledger, "late", "late-1", USD, at=datetime.now(UTC))
            last = LastRun(customer="late", outcome="Passed", ended=datetime.now(UTC))
            super().write(record.name_of(LastRun, "late"), record.encoded(last))
        return super().write(name, content)


def test_a_run_that_ends_meanwhile_is_on_the_page_of_all_costs(
    settings: Settings, begun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Slow(Path(settings.site_url), settings)
    monkeypatch.setattr(publish, "site_at", lambda _: site)
    after_run("demo", states.state_of(ran(settings)))
    page = site.read("costs.html")
    assert b"demo-1" in page and b"late-1" in page


def test_runs_publish_to_a_bucket(
    settings: Settings, begun: None, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBO_VAED_SITE", s3_url)
    after_run("demo", states.state_of(ran(settings)))
    site = site_at(s3_url)
    assert site.read(last_run(site).report) == b"<p>the report of demo-1"
    assert b'data-value="demo"' in site.read("index.html")


DUE = datetime(2026, 11, 30, 1, 30, tzinfo=UTC)  # 2:30 in Berlin


@pytest.mark.parametrize(
    ("seen", "since", "hours", "is_missed"),
    [
        (DUE - timedelta(hours=20), None, 13, True),
        (DUE - timedelta(hours=20), None, 11, False),  # it may still begin
        (DUE + timedelta(minutes=1), None, 13, False),  # it began
        (DUE - timedelta(days=9), DUE + timedelta(hours=1), 13, False),  # its schedule is new
        (None, None, 13, False),
    ],
)
def test_a_run_that_was_due_and_never_came_is_missed(
    monkeypatch: pytest.MonkeyPatch,
    seen: datetime | None,
    since: datetime | None,
    hours: int,
    is_missed: bool,
) -> None:
    monkeypatch.setattr(plans, "_stored", lambda: {"acme": (True, since), "idle": (False, since)})
    monkeypatch.setattr(plans, "PREFECT_API_URL", SimpleNamespace(value=lambda: "http://x/api"))
    customers = [
        Scheduled(customer=name, params=NIGHTLY, seen_at=seen) for name in ("acme", "idle", "new")
    ]
    found, notes = plans.find_plans(customers, DUE + timedelta(hours=hours))
    assert (found["acme"].missed_at is not None) == is_missed
    assert found["acme"].next_at == DUE + timedelta(days=1)
    assert found["idle"].is_paused and found["idle"].next_at is None
    assert "new" not in found and any("new" in note for note in notes)


def test_a_prefect_that_does_not_answer_leaves_the_plan_of_params(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        plans, "PREFECT_API_URL", SimpleNamespace(value=lambda: "http://127.0.0.1:1/api")
    )

    def refused() -> None:
        import httpx

        raise httpx.ConnectError("refused")

    monkeypatch.setattr(plans, "_stored", refused)
    given = Scheduled(customer="acme", params=NIGHTLY, seen_at=None)
    found, notes = plans.find_plans([given], DUE - timedelta(hours=1))
    assert found["acme"].next_at == DUE and "127.0.0.1:1" in notes[0]
