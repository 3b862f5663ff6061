"""A run's pages and record on the team's site, and the fleet's page made again from all records.

A run's own objects are written before the record that links them, and the fleet's page last. No two
runs write the same record, and the page is made again until no record has come meanwhile: of runs
that end at once, whoever is last has all of them on the page.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as prefect_run

from flows import runs
from flows.plans import find_plans
from flows.states import Ended
from turbo_vaed.config import load
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.aws_prices import cached_on_demand
from turbo_vaed.costs.open_runs import OpenRun, OpenRuns
from turbo_vaed.errors import Busy, CorruptFile, TurboVaedError, UserError
from turbo_vaed.gate import VERDICT_NAME, Verdict, read_verdict
from turbo_vaed.report.fleet import record
from turbo_vaed.report.fleet.facts import Fleet, gather
from turbo_vaed.report.fleet.metrics import exposition
from turbo_vaed.report.fleet.page import fleet_page
from turbo_vaed.report.fleet.record import Champion, GateValue, LastRun, Skipped
from turbo_vaed.report.fleet.site import Site, read_all, site_at
from turbo_vaed.runtime import files
from turbo_vaed.settings import Settings

log = logging.getLogger(__name__)
INDEX = "index.html"
_MOST_ROUNDS = 20
"""Of making the page again for records that came meanwhile; whoever wrote those makes it, too."""
_OUTCOMES = {"passes": "Passed", "fails": "GateFailed", "inconclusive": "Inconclusive"}
_CLOCK_SECONDS = 2.0
"""How far the clocks of a file system and of this process may be apart."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What there is to publish of a run."""

    last: LastRun
    pages: Mapping[str, Path] = field(default_factory=dict)
    """Name on the site -> file."""


def after_run(customer: str, state: State[Any]) -> None:
    """Publish what a flow came to. It raises nothing: the run is over and paid for."""
    try:
        settings = Settings.from_environment()
        site = site_at(settings.site_url)
        if state.name == "Skipped":
            sentence = str(state.message)
            skipped = Skipped(customer=customer, at=datetime.now(UTC), sentence=sentence)
            site.write(record.name_of(Skipped, customer), record.encoded(skipped))
            rebuild(settings, site)
        elif (found := publication(settings, customer, state)) is not None:
            publish(settings, site, found)
    except Exception as error:
        log.warning(
            "the run of %s is over, and not published (%s); turbo-vaed fleet publish does that",
            customer,
            error,
            exc_info=not isinstance(error, TurboVaedError),
        )


def publication(settings: Settings, customer: str, state: State[Any]) -> Publication | None:
    """What there is to publish of a flow that ended in a state; None where another run has the
    customer: that one is published.

    Raises:
        TurboVaedError: the customer's record cannot be read.
    """
    came_to = state.data
    mine = _own_row(settings, customer)
    if isinstance(came_to, Busy) or (state.is_cancelled() and mine is None):
        return None
    work, last_run = settings.root / "work" / customer, runs.read(settings.root / "work" / customer)
    if isinstance(came_to, Ended):
        sentence, run = came_to.outcome.sentence, came_to.outcome.run_id
        report = came_to.outcome.report
        written = [] if report is None else [report]
    else:
        sentence, run = str(came_to or state.message), "" if mine is None else mine.run
        written = _written_since(work, mine)
    page = next((path for path in written if path.is_file()), None)
    is_report = page is not None and page.name == "report.html"
    if is_report and not run and last_run is not None:
        run = last_run.run_id
    name = "" if page is None else _page_name(customer, run, page)
    last = LastRun(
        customer=customer,
        outcome=str(state.name),
        ended=datetime.now(UTC),
        began=None if mine is None else mine.began_at,
        run=run,
        sentence=sentence,
        page=name,
        report=name if is_report else "",
        **_judged(work),
        **_money(settings, customer, run),
    )
    return Publication(last=last, pages={} if page is None else {name: page})


def publish(settings: Settings, site: Site, found: Publication) -> Fleet:
    """Write a run's pages, its record and the customer's costs, then the fleet's page.

    Raises:
        UserError, Unreachable: of the site.
    """
    customer, before = found.last.customer, _record_on(site, found.last.customer)
    last = found.last
    if not last.report and before is not None:
        last = replace(last, report=before.report)
    files.write_text(_kept(settings, customer), record.encoded(last).decode())
    is_known = before is not None and before.report == last.report
    is_new = last.outcome != "Unchanged" or not is_known
    if is_new:
        for name, path in found.pages.items():
            site.write(name, path.read_bytes())
        publish_costs(settings, site, customer)
        publish_champion(settings, site, customer)
    if last.run:
        site.write(f"{_folder(customer, last.run)}/run.json", record.encoded(last))
    site.write(record.name_of(LastRun, customer), record.encoded(last))
    return rebuild(settings, site, with_costs=is_new)


def publish_all(
    settings: Settings, report_done: Callable[[int], None] = lambda done: None
) -> tuple[Fleet, Site]:
    """Publish what is missing of every customer, and make the fleet's page again.

    Args:
        report_done: called with how many customers are done.

    Raises:
        UserError, Unreachable: of params.yaml or the site.
    """
    site = site_at(settings.site_url)
    names = [name for name in load.read(settings.root).customers if isinstance(name, str)]
    for done, customer in enumerate(names, 1):
        _publish_missing(settings, site, customer)
        report_done(done)
    _publish_champions(settings, site, names)
    return rebuild(settings, site, with_costs=True), site


def rebuild(settings: Settings, site: Site, *, with_costs: bool = False) -> Fleet:
    """Make the fleet's page and the metrics again, from all records.

    Args:
        with_costs: also the page of all customers' costs.

    Raises:
        UserError, Unreachable: of params.yaml, the site or the file of the metrics.
    """
    shown: dict[str, str] | None = None
    contents: dict[str, bytes] = {}
    for _ in range(_MOST_ROUNDS):
        names = site.names(record.FOLDER)
        if names == shown:
            break
        known = shown or {}
        contents = {n: contents[n] for n in contents if names.get(n) == known.get(n)}
        contents |= read_all(site, names.keys() - contents.keys())
        fleet = _gathered(settings, contents)
        if with_costs:
            publish_costs(settings, site, None)
        site.write(INDEX, fleet_page(fleet).encode())
        if settings.metrics_file is not None:
            _write_metrics(settings.metrics_file, fleet)
        shown = names
    return fleet


def read_fleet(settings: Settings) -> Fleet:
    """How every customer stands, by the records on the site and by what is known beside them.

    Raises:
        UserError, Unreachable: of params.yaml or the site.
    """
    site = site_at(settings.site_url)
    return _gathered(settings, read_all(site, site.names(record.FOLDER)))


def publish_costs(settings: Settings, site: Site, customer: str | None) -> None:
    """The page of a customer's costs, or of all of them; where the ledger does not answer, the last
    one stays."""
    from turbo_vaed.report.costs.facts import gather as gather_costs
    from turbo_vaed.report.costs.page import costs_page

    name = "costs.html" if customer is None else f"customers/{customer}/costs.html"
    try:
        with Ledger.open(settings.ledger_url) as ledger:
            found = gather_costs(
                settings.root,
                ledger,
                on_demand_usd_per_hour=partial(
                    cached_on_demand, settings.root / "state" / "prices"
                ),
                customer=customer,
            )
    except TurboVaedError as error:
        log.warning("%s is not published: %s", name, error)
        return
    site.write(name, costs_page(found.statement).encode())


def publish_champion(settings: Settings, site: Site, customer: str) -> bool:
    """What the registry says of a customer; False where it does not answer, and the last answer
    stays."""
    from turbo_vaed.registry.promotion import CHAMPION, versions

    try:
        rows = versions(settings.mlflow_tracking_uri, customer)
    except TurboVaedError as error:
        log.warning("the champion of %s is not published: %s", customer, error)
        return False
    version = next((row.version for row in rows if CHAMPION in row.aliases), None)
    found = Champion(customer=customer, version=version, at=datetime.now(UTC))
    site.write(record.name_of(Champion, customer), record.encoded(found))
    return True


def _publish_champions(settings: Settings, site: Site, names: list[str]) -> None:
    on_site = site.names(record.FOLDER)
    for customer in names:
        has_run = record.name_of(LastRun, customer) in on_site
        if has_run and not publish_champion(settings, site, customer):
            return  # nor would it answer for the others


def _publish_missing(settings: Settings, site: Site, customer: str) -> None:
    """A record that could not be published when it was made, or that is older than the site; and
    the customer's costs."""
    before, kept = _record_on(site, customer), _kept(settings, customer)
    found = _read_kept(kept)
    if found is None and before is None:
        found = _derived(settings, customer)
    if found is not None and (before is None or found.ended > before.ended):
        work = settings.root / "work" / customer
        for path in (work / "report" / "report.html", work / "report" / "not-started.html"):
            if path.is_file() and _page_name(customer, found.run, path) in (
                found.page,
                found.report,
            ):
                site.write(_page_name(customer, found.run, path), path.read_bytes())
        if found.run:
            site.write(f"{_folder(customer, found.run)}/run.json", record.encoded(found))
        site.write(record.name_of(LastRun, customer), record.encoded(found))
    publish_costs(settings, site, customer)


def _derived(settings: Settings, customer: str) -> LastRun | None:
    """The record of a run that ended before records were kept, as far as its folder says."""
    work = settings.root / "work" / customer
    run = runs.read(work)
    if run is None:
        return None
    judged = _judged(work)
    is_done = run.status == "done" and bool(judged)
    page = work / "report" / "report.html"
    name = _page_name(customer, run.run_id, page) if page.is_file() else ""
    return LastRun(
        customer=customer,
        outcome=_OUTCOMES[judged["result"]] if is_done else record.UNRECORDED,
        ended=datetime.fromisoformat(judged["judged"]) if is_done else run.started_at,
        began=run.started_at if is_done else None,
        run=run.run_id,
        page=name,
        report=name,
        **judged,
        **_money(settings, customer, run.run_id),
    )


def _gathered(settings: Settings, contents: Mapping[str, bytes]) -> Fleet:
    return gather(settings.root, settings.ledger_url, contents, find_plans=find_plans)


def _own_row(settings: Settings, customer: str) -> OpenRun | None:
    """The row of this flow's run; None where it took no customer, or the ledger does not answer."""
    try:
        with OpenRuns.open(settings.ledger_url) as open_runs:
            row = open_runs.of(customer)
    except TurboVaedError as error:
        log.warning("when the run began is not known: %s", error)
        return None
    flow_run = str(prefect_run.id or "")
    return row if row is not None and flow_run and row.flow_run == flow_run else None


def _written_since(work: Path, mine: OpenRun | None) -> list[Path]:
    """The page that a run wrote; none where it wrote none."""
    if mine is None:
        return []
    began = time.time() - (mine.now - mine.began_at).total_seconds() - _CLOCK_SECONDS
    paths = [work / "report" / name for name in ("not-started.html", "report.html")]
    return [path for path in paths if path.is_file() and path.stat().st_mtime >= began]


def _folder(customer: str, run: str) -> str:
    return f"customers/{customer}/runs/{run}"


def _page_name(customer: str, run: str, page: Path) -> str:
    """Where a page lies on the site; a run that was not started has no folder of its own."""
    if page.name == "report.html" and run:
        return f"{_folder(customer, run)}/{page.name}"
    return f"customers/{customer}/{page.name}"


def _kept(settings: Settings, customer: str) -> Path:
    """The customer's record on this machine, for when the site does not answer."""
    return settings.root / "work" / customer / "last-run.json"


def _read_kept(path: Path) -> LastRun | None:
    if not path.is_file():
        return None
    try:
        return LastRun.from_json(files.read_json(path))
    except (CorruptFile, ValueError, KeyError, TypeError) as error:
        log.warning("%s is no record of a run and is left out: %s", path, error)
        return None


def _record_on(site: Site, customer: str) -> LastRun | None:
    name = record.name_of(LastRun, customer)
    try:
        found = record.decoded(name, site.read(name))
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        log.warning("%s", error)
        return None
    assert isinstance(found, LastRun), "by its name"
    return found


def _judged(work: Path) -> dict[str, Any]:
    """What the verdict in the customer's folder says; empty where there is none."""
    try:
        verdict: Verdict = read_verdict(work / "gate" / VERDICT_NAME)
    except (FileNotFoundError, CorruptFile):
        return {}
    checks = tuple(
        GateValue(
            name=check.name,
            measured=check.measured,
            limit=check.limit,
            unit=check.unit,
            result=check.result,
        )
        for check in verdict.checks
    )
    return {"result": verdict.result, "judged": verdict.created, "checks": checks}


def _money(settings: Settings, customer: str, run: str) -> dict[str, Any]:
    """What a run has cost and may cost, as far as that is known."""
    found: dict[str, Any] = {}
    try:
        found["budget_usd"] = load.load(settings.root, customer).budget.run_usd
        if run:
            with Ledger.open(settings.ledger_url) as ledger:
                found["usd"] = ledger.total(run=run)
    except TurboVaedError as error:
        log.warning("what the run has cost is not known: %s", error)
    return found


def _write_metrics(path: Path, fleet: Fleet) -> None:
    try:
        files.write_text(path, exposition(fleet))
        path.chmod(0o644)  # whoever collects it is another user
    except OSError as error:
        raise UserError(f"TURBO_VAED_METRICS {path} cannot be written: {error}") from error
