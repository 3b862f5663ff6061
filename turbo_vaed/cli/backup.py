"""`turbo-vaed backup …`: take, list, verify and restore backups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from turbo_vaed.cli.tables import Format, show
from turbo_vaed.errors import CorruptFile
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from turbo_vaed.backup.places import Places

app = typer.Typer(
    no_args_is_help=True,
    help="Backups of ledger, MLflow, run records, stage outputs and artifacts.",
)
Target = Annotated[str, typer.Argument(help="where backups are kept: a folder or s3://…")]
Name = Annotated[str | None, typer.Argument(help="of a backup  [default: the newest]")]
MlflowDatabase = Annotated[
    str | None,
    typer.Option(help="of the MLflow server, postgresql://… or sqlite:///…", show_default=False),
]
MlflowArtifacts = Annotated[
    str | None,
    typer.Option(help="of the MLflow server, a folder or s3://…", show_default=False),
]


@app.command("create")
def create_backup(
    target: Target,
    without: Annotated[
        list[str] | None,
        typer.Option(help="'artifacts' or 'remote NAME': kept in another way", show_default=False),
    ] = None,
    mlflow_database: MlflowDatabase = None,
    mlflow_artifacts: MlflowArtifacts = None,
) -> None:
    """Back up the ledger's and MLflow's databases, MLflow's artifacts, DVC's remotes, and the
    configuration, locks and run records of this checkout. Runs may go on meanwhile.

    What an earlier backup at the same place has is not copied again. Checkpoints, teachers and the
    customers' videos are no part of it.
    """
    from turbo_vaed.backup.create import create
    from turbo_vaed.backup.store import Store

    found = _places(mlflow_database, mlflow_artifacts)
    name, problems = create(found, Store(target), without=without or (), report=_print)
    _require_whole(name, problems)
    print(f"backup {name} is whole")


@app.command("list")
def list_backups(target: Target, form: Format = "table") -> None:
    """The backups at a place, the oldest first."""
    from turbo_vaed.backup.store import Store

    rows = []
    store = Store(target)
    for name in store.names():
        _, document = store.read(name)
        trees = document["trees"]
        rows.append(
            {
                "backup": name,
                "version": document["version"],
                "checkout": document["root"],
                "databases": sorted(document["databases"]),
                "files": len(document["files"]) + sum(len(one["files"]) for one in trees.values()),
                "left out": [one for one, tree in trees.items() if tree["left_out"]],
            }
        )
    show(rows, form, "backups")


@app.command("verify")
def verify_backup(target: Target, name: Name = None) -> None:
    """Read a whole backup: every content has its digest, the dumps can be restored, and everything
    that locks and registered versions refer to is there."""
    from turbo_vaed.backup.create import verify
    from turbo_vaed.backup.store import Store

    name, problems = verify(Store(target), name)
    _require_whole(name, problems)
    print(f"backup {name} is whole")


@app.command("restore")
def restore_backup(
    target: Target,
    name: Name = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="databases and files that are there and differ")
    ] = False,
    mlflow_database: MlflowDatabase = None,
    mlflow_artifacts: MlflowArtifacts = None,
) -> None:
    """Verify a backup and put it back: objects and artifacts, the files of the checkout, databases,
    then the outputs of all stages. No run may go on meanwhile.

    A PostgreSQL database must exist; it may be empty.
    """
    from turbo_vaed.backup.restore import restore
    from turbo_vaed.backup.store import Store

    found = _places(mlflow_database, mlflow_artifacts)
    store = Store(target)
    name = restore(found, store, name, fetch=_fetch, replace=replace, report=_print)
    print(f"backup {name} is restored")


def _fetch() -> int:
    """Bring the outputs of every customer that has run."""
    from flows import outputs
    from turbo_vaed.config import load
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    every = (Workspace.load(settings.root, name) for name in load.read(settings.root).customers)
    return len([outputs.fetch(one, settings) for one in every if one.dvc_lock.is_file()])


def _places(database: str | None, artifacts: str | None) -> Places:
    from turbo_vaed.backup.places import places

    return places(Settings.from_environment(), mlflow_database=database, mlflow_artifacts=artifacts)


def _print(line: str) -> None:
    print(line, flush=True)


def _require_whole(name: str, problems: list[str]) -> None:
    if problems:
        raise CorruptFile("\n  ".join((f"backup {name} is not whole:", *problems)))
