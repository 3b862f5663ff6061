"""What there is to back up: databases, folders and buckets, and the files of the checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from turbo_vaed.config import pipeline
from turbo_vaed.config.load import FILES
from turbo_vaed.config.schema import CUSTOMER_NAME
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

LEDGER, MLFLOW, ARTIFACTS = "ledger", "mlflow", "artifacts"
REMOTE = "remote "
"""How the name of a remote of DVC begins."""
CACHE = "cache"
_OF_A_CUSTOMER = ("params", "report", "outcome")
"""Folders of work/NAME that no stage's record has; its other files are records of runs."""
_OF_THE_CHECKOUT = (*FILES, "dvc.yaml", ".dvc/config")
OUTBOX = "state/due"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where everything is. Checkpoints, teachers and videos are no part of it."""

    root: Path
    databases: dict[str, str]
    """URLs by name; MLflow's is left out where it is the ledger's own."""
    trees: dict[str, str]
    """Folders and s3://BUCKET/PREFIX, by name: MLflow's artifacts, and each remote of DVC."""
    tracking_uri: str
    """Of MLflow, to ask it which versions there are."""


def places(
    settings: Settings, *, mlflow_database: str | None = None, mlflow_artifacts: str | None = None
) -> Places:
    """By the environment, and by DVC's configuration.

    Args:
        mlflow_database: of the MLflow server, where `MLFLOW_TRACKING_URI` is a server's.
        mlflow_artifacts: where that server keeps artifacts, a folder or s3://BUCKET/PREFIX.

    Raises:
        UserError: the server's own places are not known.
    """
    uri = settings.mlflow_tracking_uri
    if mlflow_database is None and uri.startswith("http"):
        raise UserError(
            "MLFLOW_TRACKING_URI is a server's, whose database is not known here: name it with "
            "--mlflow-database, and its artifacts with --mlflow-artifacts (what `mlflow server` "
            "was given as --backend-store-uri and --artifacts-destination)"
        )
    database = mlflow_database or uri
    if mlflow_artifacts is None:
        if not uri.startswith("sqlite"):
            raise UserError(
                "name the folder or s3://BUCKET/PREFIX of MLflow's artifacts: --mlflow-artifacts"
            )
        mlflow_artifacts = str(Path(sa.make_url(uri).database or "").parent / "mlartifacts")
    databases = {LEDGER: settings.ledger_url, MLFLOW: database}
    if database == settings.ledger_url:
        del databases[MLFLOW]
    remotes = {REMOTE + name: url for name, url in _remotes(settings.root).items()}
    return Places(
        root=settings.root,
        databases=databases,
        trees={ARTIFACTS: mlflow_artifacts, **remotes},
        tracking_uri=uri,
    )


def files_of(root: Path) -> list[str]:
    """The files that are kept of the checkout, relative to it: configuration, each customer's
    pipeline and lock, records of runs, reports, params, and charges that wait for the ledger."""
    found = [root / name for name in _OF_THE_CHECKOUT]
    found += (root / pipeline.FOLDER).glob("*/dvc.*")
    found += (root / OUTBOX).rglob("*")
    for work in (root / "work").glob("*"):
        if CUSTOMER_NAME.fullmatch(work.name):
            found += work.glob("[!.]*")
            found += (path for name in _OF_A_CUSTOMER for path in (work / name).rglob("*"))
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_file())


def cache(root: Path) -> str:
    """DVC's cache of the checkout."""
    return str(root / ".dvc" / CACHE)


def _remotes(root: Path) -> dict[str, str]:
    """Each remote that DVC is configured with: a folder or s3://BUCKET/PREFIX. Those of customers
    are prefixes of the default one, and so are in it."""
    from dvc.config import Config, ConfigError

    try:
        found = Config(dvc_dir=str(root / ".dvc"), validate=False)["remote"]
    except ConfigError as error:
        raise UserError(f"{root / '.dvc/config'} cannot be read: {error}") from None
    urls = {name: str(remote["url"]) for name, remote in found.items()}
    return {name: url for name, url in urls.items() if not url.startswith("remote://")}
