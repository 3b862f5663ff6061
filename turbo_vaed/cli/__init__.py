"""`turbo-vaed …`: arguments in, exit code out.

0 done, 1 refused (gate, budget, data), 2 a user's mistake, 3 a fault.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from turbo_vaed.cli import completion, config, cost, customer, devices, ec2, gate
from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import CorruptFile, TurboVaedError, UserError
from turbo_vaed.settings import ENVIRONMENT, Settings

Family = Annotated[str, typer.Option("--family", help="ltx-video, hunyuan-video, cogvideox, …")]

app = typer.Typer(
    name="turbo-vaed",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Distil the decoder of a video VAE into one that a phone runs, one PoC per customer.",
)
registry = typer.Typer(no_args_is_help=True, help="Versions of a customer's student.")
reports = typer.Typer(no_args_is_help=True, help="The HTML page of a run.")
teachers = typer.Typer(no_args_is_help=True, help="The heavy video VAEs that students learn from.")
distillations = typer.Typer(no_args_is_help=True, help="The training of a student.")
nodes = typer.Typer(no_args_is_help=True, help="This machine as a node of a Ray cluster.")
app.add_typer(customer.app, name="customer")
app.add_typer(config.app, name="config")
app.add_typer(distillations, name="distill")
app.add_typer(nodes, name="node")
app.add_typer(cost.app, name="cost")
app.add_typer(ec2.app, name="ec2")
app.add_typer(registry, name="registry")
app.add_typer(gate.app, name="gate")
app.add_typer(devices.app, name="devices")
app.add_typer(reports, name="report")
app.add_typer(teachers, name="teacher")


def main() -> int:
    """Entry point: run a verb and return its exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        # Typer returns the code of an `Exit` that a command raises.
        returned = app(prog_name="turbo-vaed", standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except TurboVaedError as error:
        print(f"{_kind(error)}: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        usage = getattr(error, "exit_code", None)
        if usage is None:
            traceback.print_exc()
            return 3
        getattr(error, "show", lambda: None)()
        return int(usage)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _kind(error: TurboVaedError) -> str:
    if isinstance(error, CorruptFile):
        return "corrupt"
    return {1: "refused", 2: "error"}.get(error.exit_code, "fault")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"turbo-vaed {importlib.metadata.version('turbo-vaed')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `turbo-vaed` itself; its help is the app's."""


@app.command("poc")
def run_poc(customer: Customer) -> None:
    """Run the PoC of a customer: validate, distil, package, measure, judge, register, report."""
    from flows.poc import start

    outcome = start(Settings.from_environment(), customer)
    print(outcome.sentence)
    print(f"report: {outcome.report}")
    if not outcome.passed:
        raise typer.Exit(1)


@app.command("stage")
def run_stage(
    name: Annotated[
        str,
        typer.Argument(
            help="params, validate, clip, encode, distill, …", autocompletion=completion.stages
        ),
    ],
    customer: Customer,
) -> None:
    """Run one stage and meter it; this is what dvc.yaml calls."""
    from turbo_vaed.metering.outcome import recorded
    from turbo_vaed.metering.run_stage import run_metered

    with recorded() as figures:
        figures |= run_metered(Settings.from_environment(), name, customer)


@registry.command("list")
def list_versions(customer: Customer, form: Format = "table") -> None:
    """Versions of a customer's student: alias, verdict, package."""
    from turbo_vaed.config import load
    from turbo_vaed.registry.promotion import versions

    settings = Settings.from_environment()
    load.load(settings.root, customer)
    rows = [
        {
            "version": row.version,
            "aliases": ", ".join(row.aliases),
            "verdict": row.verdict_result,
            "package": row.package_sha256[:12],
            "created": row.created_at.isoformat(timespec="seconds"),
            "reasons": row.reasons.splitlines() if form == "json" else _first(row.reasons),
        }
        for row in versions(settings.mlflow_tracking_uri, customer)
    ]
    show(rows, form, f"versions of {customer}")


def _first(reasons: str) -> str:
    """The first of several reasons, and how many more there are."""
    first, *others = reasons.splitlines() or [""]
    more = f"; and {len(others)} more (--format json)" if others else ""
    return first + more


@registry.command("promote")
def promote_version(
    customer: Customer,
    version: Annotated[int, typer.Argument(help="of the customer's model")],
    approved_by: Annotated[
        str, typer.Option(help="who answers for it, where the use case asks")
    ] = "",
    reason: Annotated[str, typer.Option(help="why they approve")] = "",
) -> None:
    """Make a version champion, if a passing verdict stands over exactly its bytes.

    A use case that needs a person's approval also needs --approved-by and --reason; both are
    recorded with the version, and hold for exactly these bytes.
    """
    from turbo_vaed.errors import GateRefused
    from turbo_vaed.registry.approval import Approval
    from turbo_vaed.registry.promotion import promote

    if bool(approved_by.strip()) != bool(reason.strip()):
        raise UserError("--approved-by and --reason belong together: who approves, and why")
    approval = Approval(by=approved_by.strip(), reason=reason.strip()) if approved_by else None
    uri = Settings.from_environment().mlflow_tracking_uri
    outcome = promote(tracking_uri=uri, customer=customer, version=version, approval=approval)
    print(f"{outcome.name} version {outcome.version} is {outcome.alias}")
    if outcome.reasons:
        raise GateRefused("not champion: " + "; ".join(outcome.reasons))


@registry.command("audit")
def audit_versions(customer: Customer, form: Format = "table") -> None:
    """Examine every version that holds an alias again: its bytes, its verdict, its approval.

    Ends with 1 where a champion should not be one.
    """
    from turbo_vaed.errors import GateRefused
    from turbo_vaed.registry.promotion import audit

    found = audit(Settings.from_environment().mlflow_tracking_uri, customer)
    rows = [
        {
            "alias": row.alias,
            "version": row.version,
            "approved by": row.approved_by or "—",
            "rationale": row.approval_rationale or "—",
            "at": row.approved_at or "—",
            "wrong": "; ".join(row.wrong) or "nothing",
        }
        for row in found
    ]
    show(rows, form, f"aliases of {customer}")
    if wrong := [row for row in found if row.wrong]:
        raise GateRefused(f"{len(wrong)} of {len(found)} aliases should not be held as they are")


@reports.command("open")
def open_report(customer: Customer) -> None:
    """Open the report of a customer's last run in the browser, and print where it is.

    Where no run has begun yet, it is the page of the one that was not started; where one was not
    started since, that page is named too.
    """
    import webbrowser

    from turbo_vaed.workspace import Workspace

    workspace = Workspace.load(Settings.from_environment().root, customer)
    refused = workspace.not_started.is_file()
    path = workspace.report if workspace.report.is_file() or not refused else workspace.not_started
    if not path.is_file():
        raise UserError(f"no report yet for {customer}; run: turbo-vaed poc {customer}")
    if refused and path != workspace.not_started:
        print(f"a later run was not started: {workspace.not_started}", file=sys.stderr)
    print(path)
    webbrowser.open(path.as_uri())


@teachers.command("show")
def show_teacher(
    weights: Annotated[
        str, typer.Argument(help="a folder, ORG/NAME@COMMIT or ORG/NAME/SUBFOLDER@COMMIT")
    ],
    family: Family,
    fraction: Annotated[float, typer.Option(help="student's share of the parameters")] = 0.175,
    form: Format = "table",
) -> None:
    """A teacher's latents, the clips that it takes, and the student that `auto` derives."""
    from turbo_vaed.cli.teacher import describe

    facts = describe(weights, family, fraction)
    if form == "json":
        print(json.dumps(facts))
        return
    rows = [
        {"what": f"{key} {leaf}".replace("_", " "), "value": value}
        for key, part in facts.items()
        for leaf, value in (part.items() if isinstance(part, dict) else [("", part)])
        if leaf not in ("mean", "std", "config")
    ]
    show(rows, form, weights)


@teachers.command("fetch")
def fetch_teacher(
    hub_id: Annotated[
        str, typer.Argument(help="ORG/NAME@COMMIT or ORG/NAME/SUBFOLDER@COMMIT, all 40 digits")
    ],
    family: Family,
    name: Annotated[str, typer.Option(help="of the new folder in assets/teachers")],
) -> None:
    """Download a teacher from the hub into assets/teachers, and say what to put in params.yaml."""
    from turbo_vaed.cli.teacher import fetch

    print(fetch(Settings.from_environment().root, hub_id, family, name))


@teachers.command("encode")
def encode_with_teacher(
    weights: Annotated[str, typer.Argument(help="as of `teacher show`")],
    video: Annotated[Path, typer.Argument(help="what to encode")],
    out: Annotated[Path, typer.Argument(help="a .npy for the latents, float32 (C, t, h, w)")],
    family: Family,
    frames: Annotated[int, typer.Option(help="the first so many; `teacher show` says how many")],
    size: Annotated[int, typer.Option(help="pixels, a square out of the middle")],
) -> None:
    """Latents of a video, in the teacher's own scale: what a package decodes on a phone."""
    import numpy as np

    from turbo_vaed.cli.teacher import encode_video

    latents = encode_video(weights, family, video, frames=frames, size=size)
    np.save(out.with_suffix(".npy"), latents)
    print(f"{out.with_suffix('.npy')}: {latents.dtype} {latents.shape}")


@distillations.command("status")
def show_distillation(customer: Customer, form: Format = "table") -> None:
    """How a customer's distillation stands: one in flight, or the last."""
    import time

    from turbo_vaed.distill.progress import read_status, status_rows
    from turbo_vaed.workspace import Workspace

    workspace = Workspace.load(Settings.from_environment().root, customer)
    status = read_status(workspace.progress_file, customer=customer, now=time.time())
    if form == "json":
        print(json.dumps(status))
        return
    show(status_rows(status), form, f"distillation of {customer}")


@nodes.command("labels")
def label_node() -> None:
    """This EC2 machine's type, market and zone, by which its price is found.

    For the start of a node: ray start --labels "$(turbo-vaed node labels)" …
    """
    from turbo_vaed.cluster.drain import labels

    print(labels())


@nodes.command("watch")
def watch_node(
    poll_seconds: Annotated[float, typer.Option(min=1, help="between two looks")] = 5.0,
    rebalance_seconds: Annotated[
        float, typer.Option(min=0, help="what a rebalance recommendation leaves to finish")
    ] = 600.0,
    node_id: Annotated[
        str | None, typer.Option(help="Ray's hex id of the node; else the one on this machine")
    ] = None,
) -> None:
    """Drain this machine's Ray node when EC2 says that the machine will be taken away."""
    from turbo_vaed.cluster.drain import watch

    watch(poll_seconds=poll_seconds, rebalance_seconds=rebalance_seconds, node_id=node_id)


@app.command("doctor")
def doctor(form: Format = "table") -> None:
    """What is installed, what is reachable, what is missing and how to get it."""
    from turbo_vaed.cli.doctor import examine

    rows = examine(Settings.from_environment())
    show(rows, form, "doctor")
    if any(row["state"] == "missing" for row in rows):
        raise typer.Exit(3)
