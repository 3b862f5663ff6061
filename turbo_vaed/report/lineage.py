"""What a result was made from, as (name, value, is code) rows."""

from __future__ import annotations

from turbo_vaed.report.context import ReportContext

_NAMES = {
    "git_revision": "Git revision",
    "data_sha256": "Data",
    "package_sha256": "Package",
    "teacher_sha256": "Teacher weights",
    "dvc_lock_sha256": "dvc.lock",
}
"""Known keys, in the order of the page; others follow in their own words."""


def rows(context: ReportContext) -> list[tuple[str, str, bool]]:
    """Registration, run, hashes, then everything else that the run knows of itself."""
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
    listed = [("Model version", f"{known.name} version {known.version}, {known.alias}", False)]
    if known.mlflow_run:
        where = f" at {known.mlflow_uri}" if known.mlflow_uri else ""
        listed.append(("MLflow run", f"{known.mlflow_run}{where}", True))
    return listed
