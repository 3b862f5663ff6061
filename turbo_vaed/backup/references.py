"""What databases and locks refer to, and whether a backup has it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from turbo_vaed.backup.places import ARTIFACTS, REMOTE
from turbo_vaed.backup.store import Store
from turbo_vaed.export.package import load_package
from turbo_vaed.gate import VERDICT_NAME
from turbo_vaed.registry.client import open_tracking, translated_errors

Entries = Mapping[str, Mapping[str, Any]]
"""`sha256`, `md5`, `size` and `stamp` of files, by their paths."""
OBJECTS = "files/md5/"
"""Below a remote of DVC: an object is named by its MD5, a folder's list by that and `.dir`."""


def versions(tracking_uri: str, artifacts: str) -> list[dict[str, Any]]:
    """Every version in MLflow's registry that was not refused: where its package and its verdict
    are below `artifacts`, and their digests.

    Raises:
        Unreachable, Fault: MLflow does not answer.
    """
    client, found = open_tracking(tracking_uri), []
    with translated_errors(tracking_uri):
        for model in _pages(client.search_registered_models, "name LIKE 'turbo-vaed-%'"):
            for one in _pages(client.search_model_versions, f"name='{model.name}'"):
                if one.tags.get("promotion") == "refused":
                    continue
                package = client.get_model_version_download_uri(model.name, str(one.version))
                run = client.get_run(one.run_id).info.artifact_uri
                package = package.replace(f"runs:/{one.run_id}/", f"{run}/")
                found.append(
                    {
                        "model": model.name,
                        "version": int(one.version),
                        "package": below(package, artifacts),
                        "package_sha256": one.tags.get("package_sha256"),
                        "verdict": below(f"{run}/{VERDICT_NAME}", artifacts),
                        "verdict_sha256": one.tags.get("verdict_sha256"),
                    }
                )
    return found


def below(uri: str, artifacts: str) -> str | None:
    """The path of an artifact's URI below where artifacts are kept; None: it is not there."""
    parts = urlsplit(uri)
    if parts.scheme == "mlflow-artifacts":  # below whatever the server was given
        return parts.path.strip("/")
    where = unquote(parts.path) if parts.scheme == "file" else uri
    top = urlsplit(artifacts).path if artifacts.startswith("file:") else artifacts
    return where[len(top) :].strip("/") if where.startswith(f"{top.rstrip('/')}/") else None


def objects_of(lock: str) -> Iterator[str]:
    """The MD5 of every output in the text of a lock, with `.dir` for a folder's."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {})
    return (
        out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out
    )


def path_of(md5: str) -> str:
    """Where DVC keeps an object in its cache, and below a customer's prefix of the remote."""
    return f"{OBJECTS}{md5[:2]}/{md5[2:]}"


def customer_of(lock: str) -> str:
    """Whose lock is at such a path."""
    return lock.split("/")[-2]


def parts_of(listing: Path) -> list[str]:
    """The objects of a folder, by its list."""
    return [entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))]


def objects_held(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The objects of DVC in the remotes among these trees, by their paths there: each customer's
    lie below its name."""
    return {
        path: entry
        for name, tree in trees.items()
        if name.startswith(REMOTE)
        for path, entry in tree["files"].items()
        if OBJECTS in path
    }


def missing(store: Store, document: Mapping[str, Any]) -> list[str]:
    """What the backup refers to and does not have, or has with another digest."""
    held = objects_held(document["trees"])
    problems = [
        f"object {path} of DVC has the MD5 {entry['md5']}"
        for path, entry in held.items()
        if "".join(path.split("/")[-2:]).removesuffix(".dir") != entry["md5"]
    ]
    for path, entry in document["files"].items():
        if path.endswith("/dvc.lock"):
            problems += _missing_of_lock(store, path, entry["sha256"], held)
    artifacts = document["trees"][ARTIFACTS]["files"]
    for version in document["versions"]:
        problems += _missing_of_version(store, version, artifacts)
    return problems


def _missing_of_lock(store: Store, path: str, sha256: str, held: Entries) -> Iterator[str]:
    with store.local(sha256) as lock:
        wanted = list(objects_of(lock.read_text(encoding="utf-8")))
    top = customer_of(path)
    for md5 in wanted:
        found = held.get(f"{top}/{path_of(md5)}")
        if found is None:
            yield f"{path} names the object {md5}, which the customer's remote does not have"
        elif md5.endswith(".dir"):
            with store.local(found["sha256"]) as listing:
                parts = parts_of(listing)
            lost = [part for part in parts if f"{top}/{path_of(part)}" not in held]
            if lost:
                yield f"{path} names the folder {md5}, of which {len(lost)} files are missing"


def _missing_of_version(store: Store, version: Mapping[str, Any], held: Entries) -> Iterator[str]:
    name = f"{version['model']} version {version['version']}"
    verdict = held.get(version["verdict"] or "")
    if verdict is None or verdict["sha256"] != version["verdict_sha256"]:
        yield f"{name}: its verdict is missing, or is not the one that was registered"
    top = f"{version['package']}/"
    files = {path: entry for path, entry in held.items() if path.startswith(top)}
    with tempfile.TemporaryDirectory() as folder:
        for path, entry in files.items():
            copy = Path(folder, path[len(top) :])
            copy.parent.mkdir(parents=True, exist_ok=True)
            with store.local(entry["sha256"]) as kept:
                shutil.copyfile(kept, copy)
        try:
            found = load_package(Path(folder)).sha256
        except (ValueError, FileNotFoundError) as error:
            found = f"not whole ({error})".replace(f"{folder}/", "")
    if found != version["package_sha256"]:
        yield f"{name}: its package is {found}; {version['package_sha256']} was registered"


def _pages(search: Any, query: str) -> Iterator[Any]:
    token = None
    while True:
        page = search(filter_string=query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
