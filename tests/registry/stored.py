"""How tests put versions into a registry, and what it holds of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from turbo_vaed.registry.promotion import RegisteredVersion, register, versions

Make = Callable[..., tuple[Path, Path]]


def put(uri: str, made: tuple[Path, Path], **changes: Any) -> RegisteredVersion:
    values: dict[str, Any] = {
        "tracking_uri": uri,
        "run_id": "demo-1",
        "customer": "demo",
        "package_folder": made[0],
        "verdict_path": made[1],
        "metrics": {"psnr": 30.0, "retention/psnr": 1.0},
        "params": {"distill.steps": 400, "clip.size": 128},
        "lineage": {"git_revision": "0123abc", "data_sha256": "d" * 64},
    }
    return register(**{**values, **changes})


def artifact(uri: str, version: RegisteredVersion, path: str) -> Path:
    """Where the store keeps it."""
    run = MlflowClient(tracking_uri=uri).get_run(version.mlflow_run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / path


def aliases(uri: str, customer: str = "demo") -> dict[str, int]:
    return {alias: row.version for row in versions(uri, customer) for alias in row.aliases}


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1) + "\n")
