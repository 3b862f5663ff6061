"""What a result was made from: the customer's files and their split, hashes and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_vaed.report import formatting
from turbo_vaed.report.context import ReportContext

MOST_FILES = 200
"""Of a longer list the quarantined files come first, and the rest is counted."""

_NAMES = {
    "git_revision": "Git revision",
    "data_sha256": "Data",
    "package_sha256": "Package",
    "teacher_sha256": "Teacher weights",
    "dvc_lock_sha256": "dvc.lock",
}
"""Known keys, in the order of the page; others follow under their own names."""


def rows(context: ReportContext) -> list[tuple[str, str, bool]]:
    """(name, value, is code): registration, run, hashes, then the rest of the lineage."""
    found = _hashes(context) | {k: v for k, v in context.lineage.items() if v}
    listed = [*_registered(context), ("turbo-vaed run", context.run_id, True)]
    for key, name in _NAMES.items():
        if value := found.pop(key, ""):
            listed.append((name, f"sha256 {value}" if key.endswith("sha256") else value, True))
    listed += [(key.replace("_", " "), value, False) for key, value in found.items()]
    if context.package is not None:
        tools = ", ".join(f"{k} {v}" for k, v in sorted(context.package["tools"].items()))
        listed.append(("Package made with", tools, False))
    dates = (("Started", context.started), ("Finished", context.finished))
    return listed + [(name, f"{when:%Y-%m-%d %H:%M:%S %Z}".strip(), False) for name, when in dates]


def _hashes(context: ReportContext) -> dict[str, str]:
    verdict, found = context.verdict or {}, {}
    for key in ("git_revision", "data_sha256", "package_sha256"):
        found[key] = str(verdict.get(key, ""))
    if not found["package_sha256"] and context.package is not None:
        found["package_sha256"] = str(context.package["sha256"])
    if context.latents is not None:
        found["teacher_sha256"] = str(context.latents["teacher_sha256"])
    return found


def _registered(context: ReportContext) -> list[tuple[str, str, bool]]:
    known = context.registration
    if known is None:
        return [("Model version", "not registered", False)]
    alias = f", {known.alias}" if known.alias else ""
    listed = [("Model version", f"{known.name} version {known.version}{alias}", False)]
    if known.mlflow_run:
        where = f" at {known.mlflow_uri}" if known.mlflow_uri else ""
        listed.append(("MLflow run", f"{known.mlflow_run}{where}", True))
    return listed


def data(context: ReportContext) -> dict[str, Any] | None:
    """Files, split and expectations."""
    if context.validation is None:
        return None
    found = context.validation
    ordered = sorted(context.manifest, key=lambda row: (row["status"] == "ok", row["path"]))
    return {
        "count": found["files"],
        "used": found["ok"],
        "quarantined": len(found["quarantined"]),
        "files": [_file(row) for row in ordered[:MOST_FILES]],
        "files_left_out": max(0, len(ordered) - MOST_FILES),
        "split": None if context.clips is None else _split(context.clips),
        "expectations": [
            {
                "name": row["name"].replace("_", " "),
                "column": row["column"],
                "severity": row["severity"],
                "expected": _plain(row["expected"]),
                "observed": _plain(row["observed"]),
                "met": row["success"],
                "tone": "good" if row["success"]
                else "bad" if row["severity"] == "critical" else "warn",
            }
            for row in found["expectations"]
        ],
    }  # fmt: skip


def _file(row: Mapping[str, Any]) -> dict[str, Any]:
    ok = row["status"] == "ok"
    picture, rate = "", row.get("fps")
    if row.get("width") and row.get("height"):
        picture = f"{row['width']:.0f} {formatting.TIMES} {row['height']:.0f}"
        picture += f", {rate:.4g} fps" if rate else ""
        picture += f", {row['codec']}" if row.get("codec") else ""
    return {
        "path": row["path"],
        "ok": ok,
        "picture": picture,
        "frames": "" if row.get("frames") is None else f"{row['frames']:.0f}",
        "length": "" if row.get("seconds") is None else formatting.seconds(row["seconds"]),
        "size": formatting.size(row["bytes"]),
        "reason": row.get("reason") or "",
    }


def _split(clips: Mapping[str, Any]) -> dict[str, Any]:
    counts = clips["counts"]
    return {
        "parts": [{"name": name, "count": counts[name]} for name in ("train", "val", "test")],
        "by": clips["split_by"],
        "reason": clips["split_reason"],
        "frames": clips["frames"],
        "size": clips["size"],
    }


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
