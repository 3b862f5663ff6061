"""What a run does beside computing: check the ground, register, promote, report."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from flows import dvc, runs
from turbo_vaed import mlflow_runs, registry
from turbo_vaed.costs import (
    Allowance,
    Ledger,
    allowance,
    due,
    format_usd,
    require_allowance,
    summarise,
)
from turbo_vaed.costs.estimate import Estimate
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.dataset.manifest import files_in
from turbo_vaed.dataset.ray_session import ray_session
from turbo_vaed.distill.job import which_student
from turbo_vaed.errors import BudgetRefused, TurboVaedError, UserError
from turbo_vaed.export import RUNTIMES
from turbo_vaed.gate import TIMED, VERDICT_NAME, read_verdict
from turbo_vaed.poc import STAGES, Poc
from turbo_vaed.report.collect import collect
from turbo_vaed.report.context import Failure, Registration
from turbo_vaed.report.page import write_report
from turbo_vaed.report.roi_facts import cost_of_poc
from turbo_vaed.report.words import headline
from turbo_vaed.settings import Settings
from turbo_vaed.stages import running, waiting
from turbo_vaed.stages.cluster import own_node
from turbo_vaed.stages.estimates import estimate_run, least_usd
from turbo_vaed.stages.export import further_shapes, wanted
from turbo_vaed.stages.fit import student_config
from turbo_vaed.stages.gate import check_device
from turbo_vaed.stages.prices import (
    limits_of,
    nodes_of,
    price_in_words,
    price_of,
)
from turbo_vaed.stages.quote import cheapest_elsewhere
from turbo_vaed.stages.running import share_of
from turbo_vaed.stages.storage import book_storage

log = logging.getLogger(__name__)

BEGUN = "begun.json"
"""In the customer's folder: the last run, and which student it was to distil from when on."""
_UP_TO_DISTILL = frozenset(STAGES[: STAGES.index("distill") + 1])
_MORE = Decimal("1.05")
"""Times what a month's limit had left: for less it is not worth to begin again."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version in the registry, and what became of it."""

    name: str
    version: int
    mlflow_run_id: str
    alias: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The page, and the sentence that it begins with."""

    path: Path
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    sentence: str
    report: Path
    run_id: str
    passed: bool
    """Whether every check of the gate passed; approval by a person is another matter."""


def outcome(poc: Poc, run: runs.Run, sentence: str) -> Outcome:
    """The end of a run whose verdict lies in the customer's folder."""
    verdict = _read(poc.folder("gate") / "verdict.json")
    if why := undecided(poc):
        sentence += (
            f"\nThat is no word against the student ({why}). Run the same command again when "
            "nothing else runs there: it measures once more, and nothing else is done again."
        )
    return Outcome(
        sentence=sentence,
        report=poc.report,
        run_id=run.run_id,
        passed=verdict["result"] == "passes",
    )


def undecided(poc: Poc) -> str:
    """Why the gate could not tell, where measuring again may: the machine was busy, say. Empty
    where it has decided, or its package's quality is in doubt, too, which no measurement ends."""
    verdict = read_verdict(poc.folder("gate") / VERDICT_NAME)
    if verdict.result != "cannot tell" or any(one.name not in TIMED for one in verdict.failed):
        return ""
    choice = _read(poc.folder("gate") / "choice.json")
    (chosen,) = (one for one in choice["candidates"] if one["name"] == choice["chosen"])
    return str(chosen.get("distrust", ""))


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """What a flow has before it."""

    run: runs.Run
    """Not written yet."""
    stale: list[str]
    """Stages that are to be run, and with the first one all that follow it."""
    forced: str = ""
    """The one that DVC runs whatever it knows."""
    why: str = ""
    """An old run goes on although nothing has changed."""

    @property
    def stages(self) -> tuple[str, ...]:
        """All that are run."""
        return STAGES[STAGES.index(self.stale[0]) :] if self.stale else ()


def to_do(poc: Poc, settings: Settings, stale: list[str]) -> ToDo | None:
    """The same for a flow and for whoever starts a machine for it; None where the last run stands:
    nothing is stale and its gate has decided.

    Args:
        stale: by DVC.
    """
    if not set(stale) & _UP_TO_DISTILL:
        run = run_with_more_room(poc, settings)
        if run is not None:
            why = "its month's limit leaves more room by now"
            return ToDo(run=run, stale=["distill"], forced="distill", why=why)
    run = run_to_do(poc, stale)
    if run is None:
        return None
    if not run.measures_again:
        return ToDo(run=run, stale=stale)
    # DVC would take what it could not tell out of its cache.
    why = "" if stale else "the gate measures again"
    return ToDo(run=run, stale=stale or ["gate"], forced="gate", why=why)


def to_do_now(poc: Poc, settings: Settings) -> ToDo | None:
    """As `to_do`, by params.yaml as it is.

    Raises:
        Refused: a run of the customer is going on.
    """
    with runs.alone(poc.work, poc.customer):
        return to_do(poc, settings, dvc.stale_after_params(settings.root, poc.customer, STAGES))


def run_to_do(poc: Poc, stale: list[str]) -> runs.Run | None:
    """The run that goes on, or a fresh one; None where the last one stands. One whose gate could
    not tell measures again."""
    last = runs.read(poc.work)
    if last is None or (last.status == "done" and (stale or not poc.report.is_file())):
        return runs.fresh(poc.customer)
    if last.status == "open":
        return last
    if last.verdict_sha256 != runs.verdict_sha256(poc.work):
        return runs.fresh(poc.customer)  # stages were run by hand since
    return replace(last, status="open", measures_again=True) if undecided(poc) else None


def run_with_more_room(poc: Poc, settings: Settings) -> runs.Run | None:
    """The last run, where a month's limit stopped its training and leaves it more by now: the month
    is over, or the limit larger. It goes on from its checkpoint, within its own budget."""
    path, last = poc.folder("distill") / "history.json", runs.read(poc.work)
    if last is None or not path.is_file():
        return None
    history = _read(path)
    if history["stopped"] != "budget" or history["limited_to_usd"] is None:
        return None
    with Ledger.open(settings.ledger_url) as ledger:
        limits, now = limits_of(poc.params), datetime.now(UTC)
        found = allowance(ledger, limits, run=last.run_id, customer=poc.customer, at=now)
        is_its = any(group.stage == "distill" for group in ledger.grouped(run=last.run_id))
    has_more = found.usd > Decimal(history["limited_to_usd"]) * _MORE
    return replace(last, status="open") if is_its and has_more else None


def unchanged(poc: Poc, run: runs.Run) -> Outcome:
    """The end of a run that had nothing to do: the last one stands."""
    return outcome(poc, run, f"Nothing changed since run {run.run_id}, which made a {run.alias}.")


def failure(stage: str, error: Exception, *, is_begun: bool) -> Failure:
    """What the report says of an error: its own words, or its kind where it has none."""
    said = str(error) or type(error).__name__
    by_budget = isinstance(error, BudgetRefused)
    return Failure(stage=stage, error=said, by_budget=by_budget, is_begun=is_begun)


def preflight(settings: Settings, customer: str) -> Poc:
    """What must hold before anything is computed or paid.

    Raises:
        UserError: params that are not valid, no folder of videos, an exporter not installed.
        BudgetRefused: this machine's price is unknown.
        Unreachable: the ledger or MLflow does not answer.
    """
    poc = Poc.load(settings.root, customer)
    if not poc.source.is_dir():
        raise UserError(
            f"customers.{customer}.source: no folder {poc.source}"
            + ("; make setup fetches the demo videos" if customer == "demo" else "")
        )
    further_shapes(poc, student_config(poc))
    for target in wanted(poc):
        RUNTIMES[target.runtime].check()
    check_device(poc)
    price_of(poc.params, settings, "gate")
    with Ledger.open(settings.ledger_url) as ledger:
        due.book(ledger, settings.due_folder)
    mlflow_runs.open_tracking(settings.mlflow_tracking_uri)
    return poc


def preview(settings: Settings, customer: str) -> str:
    """What `turbo-vaed poc CUSTOMER` would do now and what that would cost, in words. Nothing is
    run but stage `params`, which costs nothing.

    Raises: as `preflight` and `estimate`.
    """
    poc = preflight(settings, customer)
    todo = to_do_now(poc, settings)
    if todo is None:
        return "Nothing changed since the last run: nothing would be run."
    what = f"Of {customer} {', '.join(todo.stages) or 'no stage'} would be run"
    if todo.why:
        what += f", for {todo.why}"
    if not todo.stale:
        return f"{what}; the last run is registered and reported."
    return f"{what}; {estimate(poc, settings, todo.run, todo.stale, is_begun=False)}."


def estimate(
    poc: Poc, settings: Settings, run: runs.Run, stale: list[str], *, is_begun: bool = True
) -> str:
    """What is known before a run of what it will cost, in words.

    What follows a stale stage counts with it, for it is made from it. What the run has to keep back
    of a month that others share is in the ledger from here on, until `release`; that of one that is
    refused never was.

    Args:
        is_begun: false for one that is only asked about: nothing is kept of it.

    Raises:
        BudgetRefused: a price is unknown; or what is to be done cannot fit what the run may still
            spend. Training that this run has begun goes on, and stops by itself.
        Unreachable: the cluster on which a stage would run.
    """
    stages = STAGES[STAGES.index(stale[0]) :]
    for stage in stages:
        price_of(poc.params, settings, stage)
    with Ledger.open(settings.ledger_url) as ledger:
        spent_usd = ledger.total(run=run.run_id)
        share = share_of(ledger, limits_of(poc.params), run=run.run_id, customer=poc.customer)
        goes_on = "distill" in stages and has_begun(poc, run, ledger)

        def require_fit(may_spend: Allowance) -> Estimate | None:
            require_allowance(may_spend, spent_usd=spent_usd)
            if goes_on:
                return None
            return estimate_run(
                poc,
                settings,
                ledger,
                stages=stages,
                may_spend_usd=may_spend.usd,
                of=may_spend.by,
                spent_usd=spent_usd,
                cheaper=partial(cheapest_elsewhere, poc, settings),
                is_kept=is_begun,
            )

        may_spend = share.ask()
        found = require_fit(may_spend)  # one that is refused tells nobody
        if is_begun:
            most = spent_usd + least_usd(poc, settings, ledger, stages)
            least = most if found is None else min(most, spent_usd + found.low_usd)
            then = share.claim(most, least_usd=least)
            if then.usd < may_spend.usd:  # another one came in between
                may_spend, found = then, require_fit(then)
    if goes_on:
        return f"run {run.run_id} goes on from what its training has saved"
    if "distill" in stages and is_begun:
        note_begun(poc, run)
    left = f"{format_usd(may_spend.usd - spent_usd)} are left of {may_spend.by}"
    if found is None:
        return f"no estimate, for no worker could be timed; {left}"
    return f"estimated at {found}; {left}"


def release(settings: Settings, run: runs.Run) -> None:
    """The run is over, or ended for now: it keeps nothing back of a month any more. Who has started
    its machine does this when all of that is charged."""
    if settings.held_usd:
        return
    try:
        with Ledger.open(settings.ledger_url) as ledger:
            running.release(ledger, run.run_id)
    except TurboVaedError as error:
        log.warning("%s", error)


def note_begun(poc: Poc, run: runs.Run) -> None:
    """Keep that the run may distil this student of these videos from now on. A machine that is
    started for it takes this with it, so that what is lost with the machine need not be estimated
    anew."""
    allowed, key = _allowed(poc, run), _student_key(poc)
    if not allowed or allowed[-1][0] != key:
        allowed.append((key, datetime.now(UTC).isoformat()))
    text = json.dumps({"run": run.run_id, "allowed": allowed}, indent=1)
    (poc.work / BEGUN).write_text(text + "\n")


def has_begun(poc: Poc, run: runs.Run, ledger: Ledger) -> bool:
    """Whether the run was charged for distilling while it was to distil this student of these
    videos, and so goes on from what it saved: its clips and latents are the same when they are made
    again."""
    allowed, key = _allowed(poc, run), _student_key(poc)
    ends = [datetime.fromisoformat(since) for _, since in allowed[1:]] + [None]
    return any(
        group.stage == "distill" and group.unit == UNIT
        for (student, since), until in zip(allowed, ends, strict=False)
        if student == key
        for group in ledger.grouped(
            run=run.run_id, since=datetime.fromisoformat(since), until=until
        )
    )


def _allowed(poc: Poc, run: runs.Run) -> list[tuple[str, str]]:
    """Which student this run was to distil from when on, as `BEGUN` holds it."""
    path = poc.work / BEGUN
    kept = _read(path) if path.is_file() else {}
    found = kept.get("allowed", []) if kept.get("run") == run.run_id else []
    return [(key, since) for key, since in found]


def _student_key(poc: Poc) -> str:
    """Of a student and what it is made from."""
    told = {
        "student": which_student(poc.params.distill),
        "clip": asdict(poc.params.clip),
        "encode": asdict(poc.params.encode),
        "videos": [
            (str(path.relative_to(poc.source)), path.stat().st_size)
            for path in files_in(poc.source)
            if path.is_file()
        ],
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def register(poc: Poc, settings: Settings, run: runs.Run) -> Registered:
    """Log the run and its package with MLflow, once for the same package and verdict."""
    evaluation = _read(poc.folder("evaluate") / "evaluation.json")
    history = _read(poc.folder("distill") / "history.json")
    metrics = {
        f"{who}_{name}_{part}": float(value)
        for who in ("teacher", "student")
        for name, parts in evaluation[who].items()
        for part, value in parts.items()
    }
    metrics |= {f"retention_{k}": float(v) for k, v in evaluation["retention"].items()}
    metrics["student_parameters"] = float(history["student_parameters"])
    with Ledger.open(settings.ledger_url) as ledger:
        metrics["spent_usd"] = float(ledger.total(run=run.run_id))
    params = {
        f"{section}.{key}": value
        for section in ("clip", "encode", "distill", "gate")
        for key, value in vars(getattr(poc.params, section)).items()
        if not key.startswith("_")
    }
    verdict = _read(poc.folder("gate") / "verdict.json")
    found = registry.register(
        tracking_uri=settings.mlflow_tracking_uri,
        run_id=run.run_id,
        customer=poc.customer,
        package_folder=poc.folder("gate") / "package",
        verdict_path=poc.folder("gate") / "verdict.json",
        metrics=metrics,
        params=params,
        lineage=lineage(poc) | {key: str(verdict[key]) for key in ("git_revision", "data_sha256")},
        artifacts=[
            write_lock(poc),
            poc.folder("evaluate") / "evaluation.json",
            poc.folder("distill") / "history.json",
            poc.folder("gate") / "measurement.json",
        ],
    )
    return Registered(name=found.name, version=found.version, mlflow_run_id=found.mlflow_run_id)


def promote(poc: Poc, settings: Settings, registered: Registered) -> Registered:
    """Ask the registry to make the version champion; it says what the version becomes."""
    outcome = registry.promote(
        tracking_uri=settings.mlflow_tracking_uri,
        customer=poc.customer,
        version=registered.version,
    )
    return Registered(
        name=registered.name,
        version=registered.version,
        mlflow_run_id=registered.mlflow_run_id,
        alias=outcome.alias,
        reasons=outcome.reasons,
    )


def report(
    poc: Poc,
    settings: Settings,
    run: runs.Run,
    registered: Registered | None,
    failure: Failure | None,
) -> Reported:
    """Write the page of what was reached, into work/CUSTOMER/report.

    A run that has not begun leaves the last one's page as it is: it has one beside it.
    """
    params = poc.params
    with Ledger.open(settings.ledger_url) as ledger:
        now = datetime.now(UTC)
        book_storage(poc, ledger, settings, run=run.run_id, began=run.started_at, ended=now)
        _book_waiting(poc, settings, ledger, run)
        costs = summarise(ledger, run.run_id, params.budget.run_usd)
        cost = cost_of_poc(ledger, poc.customer)
    context = collect(
        poc.work,
        run_id=run.run_id,
        started=run.started_at,
        finished=datetime.now(UTC),
        costs=costs,
        price=price_in_words(params, settings),
        lineage=lineage(poc),
        registration=None
        if registered is None
        else Registration(
            name=registered.name,
            version=registered.version,
            alias=registered.alias,
            reasons=registered.reasons,
            mlflow_run=registered.mlflow_run_id,
            mlflow_uri=settings.mlflow_tracking_uri
            if "@" not in settings.mlflow_tracking_uri
            else "",
        ),
        failure=failure,
        customer=poc.customer,
        use_case=params.use_case,
        assumptions=params.roi,
        cost_of_poc=cost,
    )
    is_begun = failure is None or failure.is_begun
    path = write_report(context, poc.report if is_begun else poc.not_started)
    if is_begun:
        poc.not_started.unlink(missing_ok=True)
    return Reported(path=path, sentence=headline(context))


def begin_waiting(poc: Poc, settings: Settings, run: runs.Run) -> None:
    """From here on a cluster's nodes wait for the run's stages. Where they have since a driver that
    was lost, that is charged as wasted.

    Raises:
        BudgetRefused: a node's price is not known.
        Unreachable: the cluster does not answer.
    """
    if not settings.on_a_cluster:
        return
    nodes, seen = nodes_of(poc.params, settings, "distill"), poc.work / waiting.FILE
    with ray_session(settings.ray_address), Ledger.open(settings.ledger_url) as ledger:
        own = own_node(settings.ray_address or "")
        waiting.begin(ledger, nodes, seen, run=run.run_id, customer=poc.customer, own_node=own)


def _book_waiting(poc: Poc, settings: Settings, ledger: Ledger, run: runs.Run) -> None:
    """Charge a cluster's nodes to the end of the run; one that has gone by then is not charged."""
    seen = poc.work / waiting.FILE
    if not settings.on_a_cluster or not seen.is_file():
        return
    nodes = nodes_of(poc.params, settings, "distill")
    try:
        with ray_session(settings.ray_address):
            own = own_node(settings.ray_address or "")
            waiting.book_waiting(
                ledger, nodes, seen, run=run.run_id, customer=poc.customer, own_node=own
            )
    except Exception:  # the report is worth more than this charge, whatever Ray says
        log.warning("the cluster's nodes are charged to its last stage only", exc_info=True)
    finally:
        seen.unlink(missing_ok=True)  # until a next try they are nobody's


def lineage(poc: Poc) -> dict[str, str]:
    """What the run was made with, beside what verdict and package say themselves."""
    lock = write_lock(poc)
    return {
        "python": platform.python_version(),
        "use_case": poc.params.use_case,
        "teacher": poc.params.encode.teacher_weights,
        "dvc_lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest(),
    }


def write_lock(poc: Poc) -> Path:
    """The customer's own part of dvc.lock, as work/CUSTOMER/dvc.lock; nobody else's is in it."""
    path = poc.root / "dvc.lock"
    whole = yaml.safe_load(path.read_text()) if path.is_file() else {}
    own = {k: v for k, v in whole.get("stages", {}).items() if k.endswith(f"@{poc.customer}")}
    out = poc.work / "dvc.lock"
    out.write_text(yaml.safe_dump({"schema": whole.get("schema"), "stages": own}))
    return out


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document
