"""Stage `validate`: the customer's folder -> manifest, expectations, Data Docs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.dataset.expectations import Expectation, ManifestLimits, check_manifest
from turbo_vaed.dataset.manifest import build_manifest, write_manifest
from turbo_vaed.errors import DataRefused
from turbo_vaed.runtime.files import write_json
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd


STAGE_VERSION = 1
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Write validate/manifest.parquet, validation.json and data_docs/.

    Where too little is left, the same files are kept in validate.rejected/ for a person to read,
    and no output appears.

    Raises:
        UserError: the customer's folder does not exist.
        DataRefused: it is empty, or too few of its files are good.
    """
    params = workspace.params.validate
    limits = ManifestLimits(
        min_seconds=params.min_seconds,
        min_side=params.min_side,
        max_black_share=params.max_black_share,
        max_frozen_share=params.max_frozen_share,
        min_good_videos=params.min_good_videos,
        min_good_share=params.min_good_share,
    )
    rejected = workspace.work / "validate.rejected"
    shutil.rmtree(rejected, ignore_errors=True)
    manifest = build_manifest(workspace.source, timeout_seconds=params.timeout_seconds)
    with workspace.writing("validate") as folder:
        manifest, expectations = check_manifest(manifest, limits, data_docs=folder / "data_docs")
        write_manifest(manifest, folder / "manifest.parquet")
        good = manifest[manifest["status"] == "ok"]
        enough = len(good) >= limits.min_good_videos and len(good) >= limits.min_good_share * len(
            manifest
        )
        _write_summary(folder / "validation.json", manifest, expectations, enough)
        if not enough:
            folder.rename(rejected)
            raise DataRefused(_refusal(workspace, manifest, limits, rejected))
    return {
        "files": len(manifest),
        "ok": len(good),
        "quarantined": len(manifest) - len(good),
        "seconds_of_video": round(float(good["seconds"].sum()), 2),
        "warnings": sum(not e.success and e.severity != "critical" for e in expectations),
    }


def _write_summary(
    path: Path, manifest: pd.DataFrame, expectations: list[Expectation], success: bool
) -> None:
    outcomes = [dataclasses.asdict(e) for e in expectations]
    for outcome in outcomes:
        outcome.pop("paths")
    summary = {
        "files": len(manifest),
        "ok": int((manifest["status"] == "ok").sum()),
        "quarantined": _quarantined(manifest),
        "expectations": outcomes,
        "success": success,
    }
    write_json(path, summary)


def _quarantined(manifest: pd.DataFrame) -> list[dict[str, str]]:
    bad = manifest[manifest["status"] != "ok"]
    return [{"path": p, "reason": r} for p, r in zip(bad["path"], bad["reason"], strict=True)]


def _refusal(
    workspace: Workspace, manifest: pd.DataFrame, limits: ManifestLimits, rejected: Path
) -> str:
    bad = _quarantined(manifest)
    good = len(manifest) - len(bad)
    lines = [f"  {b['path']}: {b['reason']}" for b in bad[:20]]
    if len(bad) > 20:
        lines.append(f"  … and {len(bad) - 20} more")
    return "\n".join(
        [
            f"too little good video: {good} of {len(manifest)} files in {workspace.source} are "
            "good; "
            f"at least {limits.min_good_videos} and {limits.min_good_share:.0%} are needed "
            "(validate.min_good_videos, validate.min_good_share). Quarantined:",
            *lines,
            f"Replace or remove these files, then run again. Manifest and Data Docs: {rejected}",
        ]
    )
