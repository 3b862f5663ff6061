"""What there is to do for a customer: which run, and which of its stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from flows import customer_state, outputs, runs
from turbo_vaed.config.stages import STAGES, UP_TO_DISTILL
from turbo_vaed.costs import Ledger, spending_limit
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.dataset.manifest import files_in
from turbo_vaed.gate import VERDICT_NAME, read_verdict, reason_to_repeat
from turbo_vaed.planning.pricing import limits_of
from turbo_vaed.runtime.files import read_json, sha256_json, write_json
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

_MORE = Decimal("1.05")
"""Times what a month's limit left to a run: with less than this it is not resumed."""


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """What a flow has before it."""

    run: runs.Run
    """Not written yet."""
    stale: list[str]
    """Stages that must run; all that follow the first of them run, too."""
    forced: str = ""
    """The stage that DVC runs even though it finds nothing changed."""
    why: str = ""
    """Why an old run goes on although nothing has changed."""
    resumes: bool = False
    """Whether this run has trained this student before, and goes on from its checkpoint."""

    @property
    def stages(self) -> tuple[str, ...]:
        """All that run."""
        return STAGES[STAGES.index(self.stale[0]) :] if self.stale else ()


def to_do_now(workspace: Workspace, settings: Settings) -> ToDo | None:
    """As `to_do`, by the configuration as it is.

    Raises:
        Refused: a run of the customer is going on.
    """
    with (
        runs.customer_lock(workspace.work, workspace.customer),
        OpenRuns.open(settings.ledger_url) as open_runs,
    ):
        open_runs.require_free(workspace.customer)
        customer_state.fetch(workspace, open_runs)
        return to_do(workspace, settings, outputs.stale_stages(workspace))


def to_do(workspace: Workspace, settings: Settings, stale: list[str]) -> ToDo | None:
    """What the next run has to do, for a flow and for whoever starts a machine for one; None where
    the last run stands: nothing is stale, and its gate has decided.

    Args:
        stale: the stages that DVC finds stale.
    """
    if not set(stale) & set(UP_TO_DISTILL):
        run = run_with_more_budget(workspace, settings)
        if run is not None:
            why = "the monthly limit now leaves it more to spend"
            return with_stages(workspace, settings, run, ["distill"], forced="distill", why=why)
    run = run_to_do(workspace, stale)
    if run is None:
        return None
    if not run.measures_again:
        return with_stages(workspace, settings, run, stale)
    # DVC would take the inconclusive verdict from its cache.
    why = "" if stale else "the gate measures again"
    return with_stages(workspace, settings, run, stale or ["gate"], forced="gate", why=why)


def with_stages(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    stale: list[str],
    *,
    forced: str = "",
    why: str = "",
) -> ToDo:
    """The stages that a run has to do, and whether it resumes its training."""
    found = ToDo(run=run, stale=stale, forced=forced, why=why)
    if "distill" not in found.stages:
        return found
    with Ledger.open(settings.ledger_url) as ledger:
        return replace(found, resumes=has_begun(workspace, run, ledger))


def run_to_do(workspace: Workspace, stale: list[str]) -> runs.Run | None:
    """The run that goes on, or a fresh one; None where the last one stands. A run whose verdict is
    inconclusive measures again."""
    last = runs.read(workspace.work)
    if last is None or (last.status == "done" and stale):
        return runs.fresh(workspace.customer)
    if last.status == "open":
        return last
    if last.verdict_sha256 != runs.verdict_sha256(workspace.work):
        return runs.fresh(workspace.customer)  # stages were run by hand since
    if not inconclusive_reason(workspace):
        return None
    return replace(last, status="open", measures_again=True)


def run_with_more_budget(workspace: Workspace, settings: Settings) -> runs.Run | None:
    """The last run, where a month's limit stopped its training and leaves it more now: the month is
    over, or the limit was raised. It goes on from its checkpoint, within its own budget."""
    path, last = workspace.folder("distill") / "history.json", runs.read(workspace.work)
    if last is None or not path.is_file():
        return None
    history = read_json(path)
    if history["stopped"] != "budget" or history["limited_to_usd"] is None:
        return None
    with Ledger.open(settings.ledger_url) as ledger:
        limits, now = limits_of(workspace.params), datetime.now(UTC)
        found = spending_limit(ledger, limits, run=last.run_id, customer=workspace.customer, at=now)
        is_its = any(group.stage == "distill" for group in ledger.grouped(run=last.run_id))
    has_more = found.usd > Decimal(history["limited_to_usd"]) * _MORE
    return replace(last, status="open") if is_its and has_more else None


def inconclusive_reason(workspace: Workspace) -> str:
    """Why the verdict is inconclusive, where measuring again may settle it; else empty."""
    verdict = read_verdict(workspace.folder("gate") / VERDICT_NAME)
    choice = read_json(workspace.folder("gate") / "choice.json")
    names = [check.name for check in verdict.not_passed]
    return reason_to_repeat(verdict.result, names, choice)


def note_begun(workspace: Workspace, run: runs.Run) -> None:
    """Record that the run may distil this student of these videos from now on. A machine that is
    started for the run takes the record along, so that a run whose machine was lost resumes without
    another estimate."""
    allowed, key = _allowed(workspace, run), _student_key(workspace)
    if not allowed or allowed[-1][0] != key:
        allowed.append((key, datetime.now(UTC).isoformat()))
    write_json(workspace.work / runs.BEGUN_FILE, {"run": run.run_id, "allowed": allowed})


def has_begun(workspace: Workspace, run: runs.Run, ledger: Ledger) -> bool:
    """Whether the run was charged for distilling while it was to distil this student of these
    videos, and so has a checkpoint: clips and latents are the same when they are made again."""
    allowed, key = _allowed(workspace, run), _student_key(workspace)
    ends = [datetime.fromisoformat(since) for _, since in allowed[1:]] + [None]
    return any(
        group.stage == "distill" and group.unit == UNIT
        for (student, since), until in zip(allowed, ends, strict=False)
        if student == key
        for group in ledger.grouped(
            run=run.run_id, since=datetime.fromisoformat(since), until=until
        )
    )


def _allowed(workspace: Workspace, run: runs.Run) -> list[tuple[str, str]]:
    """Which student this run was to distil from when on, as recorded in `BEGUN_FILE`."""
    path = workspace.work / runs.BEGUN_FILE
    document = read_json(path) if path.is_file() else {}
    found = document.get("allowed", []) if document.get("run") == run.run_id else []
    return [(key, since) for key, since in found]


def _student_key(workspace: Workspace) -> str:
    """Identifies a student and what it is made from."""
    from turbo_vaed.distill.job import which_student  # it takes PyTorch, which most runs do not

    params = workspace.params
    return sha256_json(
        {
            "student": which_student(params.distill),
            "clip": asdict(params.clip),
            "encode": asdict(params.encode),
            "videos": [
                (str(path.relative_to(workspace.source)), path.stat().st_size)
                for path in files_in(workspace.source)
                if path.is_file()
            ],
        }
    )[:16]
