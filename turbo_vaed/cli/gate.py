"""`turbo-vaed gate …`: what the gate found, and what to change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbo_vaed.cli import completion
from turbo_vaed.cli.tables import Format, show
from turbo_vaed.errors import GateRefused, UserError
from turbo_vaed.runtime.files import read_json
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from turbo_vaed.gate import AdviceFacts, Verdict
    from turbo_vaed.workspace import Workspace

app = typer.Typer(no_args_is_help=True, help="The gate: verdicts, and what to change to pass.")


@app.callback()
def _gate() -> None:
    """A group of its own, however few its commands are."""


@app.command("explain")
def explain(
    run: Annotated[
        str,
        typer.Argument(
            metavar="CUSTOMER",
            help="or the id of its last run",
            autocompletion=completion.customers,
        ),
    ],
    form: Format = "table",
) -> None:
    """Every check of the last verdict, and what to change where one does not pass.

    Exits with 0 if all pass, else with 1. For example: turbo-vaed gate explain demo
    """
    from turbo_vaed.gate import advise, read_verdict

    workspace = _workspace_of(Settings.from_environment().root, run)
    path = workspace.folder("gate") / "verdict.json"
    if not path.is_file():
        raise UserError(
            f"no verdict yet for {workspace.customer}; run: turbo-vaed poc {workspace.customer}"
        )
    verdict = read_verdict(path)
    advice, outdated = advise(verdict, _facts(workspace)), _outdated(workspace, verdict)
    if form == "json":
        print(json.dumps(verdict.to_json() | {"advice": advice, "outdated": outdated}))
    else:
        interval = f"{verdict.confidence:.0%} interval"
        rows = [
            {
                "check": check.name,
                "result": check.result,
                "measured": "—" if check.measured is None else f"{check.measured:.4g}",
                interval: "" if check.low is None else f"{check.low:.4g} to {check.high:.4g}",
                "required": f"{'>=' if check.direction == 'min' else '<='} {check.limit:g}",
                "unit": check.unit,
                "margin": "—" if check.margin is None else f"{check.margin:+.3g}",
                "rationale": check.rationale,
            }
            for check in verdict.checks
        ]
        result = "is inconclusive" if verdict.result == "inconclusive" else verdict.result
        title = f"{workspace.customer}: {verdict.target} {result} for {verdict.use_case}"
        if outdated:
            print(f"This verdict is outdated: {outdated}. "
                  f"turbo-vaed poc {workspace.customer} makes a new one.")  # fmt: skip
        show(rows, form, title)
        for line in _explained(verdict, advice):
            print(line)
        for one in _others(workspace):
            print(one)
        if verdict.needs_approval:
            print(f"A person must approve every promotion for {verdict.use_case}: "
                  f"turbo-vaed registry promote {workspace.customer} VERSION --approved-by NAME "
                  "--reason WHY")  # fmt: skip
    if verdict.result != "passes":
        count = len(verdict.not_passed)
        raise GateRefused(f"{count} of {len(verdict.checks)} checks did not pass")


def _explained(verdict: Verdict, advice: Mapping[str, str]) -> Iterator[str]:
    """Each check that did not pass; why it is unreliable and what to change once for all of whom
    that is true."""
    for remedy in dict.fromkeys(advice.values()):
        causes: dict[str, None] = {}
        for check in verdict.not_passed:
            if advice[check.name] == remedy:
                found, unreliable, cause = check.reason.partition(", unreliable: ")
                yield found + (", unreliable" if unreliable else "")
                causes |= dict.fromkeys([cause] if cause else [])
        yield from (f"  Why: {cause}" for cause in causes)
        yield f"  What to change: {remedy}"


def _workspace_of(root: Path, run: str) -> Workspace:
    """The customer of that name, or whose last run has that id.

    Raises:
        UserError: there is neither.
    """
    from turbo_vaed.config import load
    from turbo_vaed.workspace import Workspace

    if run in load.read(root).customers:
        return Workspace.load(root, run)
    for path in sorted((root / "work").glob("*/run.json")):
        if read_json(path).get("run_id") == run:
            return Workspace.load(root, path.parent.name)
    raise UserError(
        f"{run!r} is neither a customer in params.yaml nor the id of a customer's last run; "
        "turbo-vaed customer list has the customers"
    )


def _outdated(workspace: Workspace, verdict: Verdict) -> str:
    """Why a verdict is about an earlier state; empty where it is up to date."""
    from turbo_vaed.gate import limits_of

    run = _read(workspace.work / "run.json")
    if run.get("status") == "open" and verdict.created < run["started"]:
        return f"run {run['run_id']} began at {run['started']} and has not reached the gate"
    made = _read(workspace.folder("export") / "figures.json")
    if made and verdict.package_sha256 not in made.values():
        return "the packages have been exported again since"
    if verdict.use_case != workspace.params.use_case:
        return f"the use case of {workspace.customer} is {workspace.params.use_case} now"
    if verdict.device != workspace.params.device.name:
        device = workspace.params.device.name
        return f"gate.device is {device} now, not {verdict.device}"
    parity = getattr(workspace.params.export.min_parity_db, verdict.target.partition("/")[2])
    limits = limits_of(workspace.params.thresholds, parity)
    others = [f"{c.name} {limits[c.name]:g}" for c in verdict.checks if limits[c.name] != c.limit]
    return f"other limits are in force now: {', '.join(others)}" if others else ""


def _others(workspace: Workspace) -> Iterator[str]:
    """A line for each package that was not chosen, and one for each of its checks that did not
    pass."""
    from turbo_vaed.gate import VERDICT_NAME, read_verdict

    choice = _read(workspace.folder("gate") / "choice.json")
    for one in choice.get("candidates", []):
        if one["name"] == choice["chosen"]:
            continue
        why = f" ({', '.join(one['not_passed'])})" if one["not_passed"] else ""
        unreliable_reason = f": {one['unreliable_reason']}" if one.get("unreliable_reason") else ""
        yield f"also judged: {one['name']} {one['result']}{why}{unreliable_reason}"
        place = (
            workspace.folder("gate") / "candidates" / one["name"].replace("/", "-") / VERDICT_NAME
        )
        if place.is_file():
            yield from (f"  {check.reason}" for check in read_verdict(place).not_passed)


def _facts(workspace: Workspace) -> AdviceFacts:
    from turbo_vaed.devices.opened import open_device
    from turbo_vaed.gate import AdviceFacts

    history = _read(workspace.folder("distill") / "history.json")
    evaluation = _read(workspace.folder("evaluate") / "evaluation.json")
    return AdviceFacts(
        steps=history.get("steps_done"),
        db_per_doubling=_second_half([s for s in history.get("steps", []) if "val_psnr" in s]),
        student=workspace.params.distill.student,
        test_clips=len(evaluation["clips"]) if evaluation else None,
        targets=workspace.params.export.targets,
        runtimes=open_device(workspace.params.device, workspace.root).runtimes,
    )


def _second_half(validations: list[dict[str, Any]]) -> float | None:
    """dB between the validation in the middle and the best one."""
    if len(validations) < 3:
        return None
    last = validations[-1]["step"]
    half = min(validations, key=lambda v: abs(v["step"] - last / 2))
    return float(max(v["val_psnr"] for v in validations) - half["val_psnr"])


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
