"""What is installed, what is reachable, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from turbo_vaed.cli import endpoints
from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.export.litert import converter_versions
from turbo_vaed.planning.environment import check_environment
from turbo_vaed.settings import Settings

LIBRARIES = (
    "torch", "ray", "prefect", "dvc", "mlflow", "great-expectations", "diffusers", "executorch",
    "ai-edge-litert", "av", "zarr", "sqlalchemy", "boto3",
)  # fmt: skip


def examine(settings: Settings) -> list[dict[str, Any]]:
    """A row per thing: what, state, found, what to do.

    The state is `ok`, `missing` (a run needs it), `warning` (it works, and should not stay so) or
    `optional`.
    """
    rows = []
    for name in LIBRARIES:
        try:
            rows.append(_row(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append(_row(name, "missing", "not installed", "make setup"))
    rows.append(_litert_row())
    rows.append(_checkout_row(settings))
    browser = next(
        (b for b in ("chromium", "chromium-browser", "google-chrome") if _which(b)), None
    )
    rows.append(
        _row("browser", "ok", browser)
        if browser
        else _row("browser", "optional", "none on PATH", "for tests and screenshots")
    )
    videos = settings.root / "data" / "demo"
    count = len(list(videos.glob("*.mp4")))
    rows.append(
        _row("demo videos", "ok", f"{count} in data/demo")
        if count
        else _row("demo videos", "missing", "none in data/demo", "make setup")
    )
    ledger, *others = endpoints.CHECKS
    ask = partial(_endpoint_row, settings=settings)
    rows.append(ask(ledger))  # before MLflow: each may make its tables, and Alembic has no threads
    with ThreadPoolExecutor() as pool:  # each waits for an answer
        rows += pool.map(ask, others)
    return rows


def _litert_row() -> dict[str, Any]:
    try:
        versions = converter_versions()
    except UserError:
        return _row("LiteRT converter", "optional", "none", "for litert targets: make litert")
    return _row("LiteRT converter", "ok", f"litert-torch {versions['litert-torch']}")


def _checkout_row(settings: Settings) -> dict[str, Any]:
    try:
        check_environment(settings.root, settings.root / "work")
    except TurboVaedError as error:
        return _row("checkout", "missing", "no run can start in it", str(error))
    return _row("checkout", "ok", "git, folders to write into, room on the disk")


def _which(program: str) -> bool:
    return shutil.which(program) is not None


def _row(what: str, state: str, found: str | None, todo: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "found": found, "to_do": todo}


def _endpoint_row(what: str, settings: Settings) -> dict[str, Any]:
    try:
        return _row(what, "ok", endpoints.CHECKS[what](settings))
    except endpoints.Warned as warned:
        return _row(what, "warning", "reachable", str(warned))
    except TurboVaedError as error:
        return _row(what, "missing", "not usable", str(error))
