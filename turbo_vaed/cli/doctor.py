"""What is installed, what is reachable, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from typing import Any

from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.export.litert import converter_versions
from turbo_vaed.planning.environment import check_environment
from turbo_vaed.settings import Settings

LIBRARIES = (
    "torch", "ray", "prefect", "dvc", "mlflow", "great-expectations", "diffusers", "executorch",
    "ai-edge-litert", "av", "zarr", "sqlalchemy", "boto3",
)  # fmt: skip


def examine(settings: Settings) -> list[dict[str, Any]]:
    """A row per thing: what, state (`ok`, `missing`, `optional`), found, what to do."""
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
    rows.append(_reach("ledger", lambda: _open_ledger(settings)))
    rows.append(_reach("MLflow's store", lambda: _open_mlflow(settings)))
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


def _reach(what: str, call: Callable[[], None]) -> dict[str, Any]:
    try:
        call()
    except TurboVaedError as error:
        return _row(what, "missing", "not reachable", str(error))
    return _row(what, "ok", "reachable")


def _open_ledger(settings: Settings) -> None:
    from turbo_vaed.costs import Ledger

    Ledger.open(settings.ledger_url).close()


def _open_mlflow(settings: Settings) -> None:
    from turbo_vaed.registry.client import open_tracking

    open_tracking(settings.mlflow_tracking_uri)
