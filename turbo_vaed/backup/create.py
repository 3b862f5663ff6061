"""Take a backup, and look whether one is whole.

What refers comes before what it refers to: locks and records first, then the databases, then the
objects and artifacts, which are only ever added. So whatever a lock or a database of the backup
names was there when the objects were copied, also while runs go on. A restore goes the other way.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turbo_vaed.backup import databases
from turbo_vaed.backup.places import ARTIFACTS, MLFLOW, REMOTE, Places, cache, files_of
from turbo_vaed.backup.references import (
    Entries,
    customer_of,
    missing,
    objects_held,
    objects_of,
    parts_of,
    path_of,
    versions,
)
from turbo_vaed.backup.store import Content, Store, Tree, content_of
from turbo_vaed.errors import UserError

Report = Callable[[str], None]


def create(
    places: Places, store: Store, *, without: Collection[str] = (), report: Report = print
) -> tuple[str, list[str]]:
    """Take a backup; its name, and what it refers to and does not have.

    Args:
        without: names of trees that are kept in another way, such as a replicated bucket.

    Raises:
        UserError: no such tree, or a program that is missing.
        Unreachable: a database or a bucket does not answer.
    """
    if unknown := set(without) - set(places.trees):
        allowed = ", ".join(places.trees)
        raise UserError(f"--without {', '.join(sorted(unknown))}: expected some of {allowed}")
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    known, before = store.contents(), _last(store)
    had = len(known)
    files = _keep(store, known, Tree(str(places.root)), files_of(places.root), {})
    report(f"{len(files)} files of the checkout")
    dumps = {}
    for one, url in places.databases.items():
        if (dumped := _dump(store, known, one, url)) is not None:
            dumps[one] = dumped
            report(f"{one}: {dumped['size']} bytes of {dumped['kind']}")
    artifacts = places.trees[ARTIFACTS]
    has_mlflow = MLFLOW in dumps or MLFLOW not in places.databases
    registered = versions(places.tracking_uri, artifacts) if has_mlflow else []
    trees = {}
    for one, url in places.trees.items():
        kept: dict[str, Any] = {}
        if one not in without:
            kept = _keep_tree(store, known, Tree(url), before.get(one, {}))
            report(f"{one}: {len(kept)} files")
        trees[one] = {"url": url, "files": kept, "left_out": one in without}
    _add_what_was_not_pushed(store, known, places.root, files, trees)
    document = {
        "version": importlib.metadata.version("turbo-vaed"),
        "root": str(places.root),
        "files": files,
        "databases": dumps,
        "versions": registered,
        "trees": trees,
    }
    store.write(name, document)
    report(f"{len(known) - had} new contents of {len(known)}")
    return name, missing_of(store, document)


def verify(store: Store, name: str | None = None) -> tuple[str, list[str]]:
    """Read the whole of a backup, the newest by default, and what is wrong with it: contents that
    are missing or altered, dumps that cannot be restored, and what it refers to and does not have.

    Raises:
        UserError, CorruptFile: as `Store.read`.
    """
    name, document = store.read(name)
    problems = []
    for path, entry in _entries(document):
        try:
            with store.local(entry["sha256"]) as kept:
                found = content_of(kept)
                wrong = databases.check(entry["kind"], kept) if "kind" in entry else ""
        except FileNotFoundError:
            problems.append(f"{path} is missing")
            continue
        if (found.sha256, found.md5) != (entry["sha256"], entry["md5"]):
            problems.append(f"{path} was altered: it has the SHA-256 {found.sha256}")
        elif wrong:
            problems.append(f"{path} cannot be restored: {wrong}")
    return name, problems or missing_of(store, document)


def missing_of(store: Store, document: Mapping[str, Any]) -> list[str]:
    """As `references.missing`, without what was left out on purpose."""
    out = [name for name, tree in document["trees"].items() if tree["left_out"]]
    judged = dict(document)
    if ARTIFACTS in out:
        judged["versions"] = []
    if any(name.startswith(REMOTE) for name in out):
        files = document["files"].items()
        judged["files"] = {path: one for path, one in files if not path.endswith("/dvc.lock")}
    return missing(store, judged)


def _entries(document: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    yield from document["files"].items()
    yield from document["databases"].items()
    for name, tree in document["trees"].items():
        yield from ((f"{name}/{path}", entry) for path, entry in tree["files"].items())


def _last(store: Store) -> dict[str, Entries]:
    """The trees of the newest backup."""
    if not store.names():
        return {}
    _, document = store.read()
    return {name: tree["files"] for name, tree in document["trees"].items()}


def _keep(
    store: Store, known: dict[str, int], tree: Tree, paths: Iterable[str], stamps: Mapping[str, str]
) -> dict[str, Any]:
    """Keep these files of a tree; one that has gone meanwhile is left out."""
    found = {}
    for path in paths:
        try:
            with tree.local(path) as file:
                content = store.add(file, known)
        except FileNotFoundError:
            continue
        found[path] = _entry(content, stamps.get(path, ""))
    return found


def _keep_tree(store: Store, known: dict[str, int], tree: Tree, before: Entries) -> dict[str, Any]:
    """Keep all files of a tree; those whose stamp is that of the last backup are not read."""
    stamps = tree.paths()
    same = {
        path: dict(before[path])
        for path, stamp in stamps.items()
        if path in before
        and before[path]["stamp"] == stamp
        and known.get(before[path]["sha256"]) == before[path]["size"]
    }
    rest = [path for path in stamps if path not in same]
    return same | _keep(store, known, tree, rest, stamps)


def _entry(content: Content, stamp: str = "") -> dict[str, Any]:
    return {**asdict(content), "stamp": stamp}


def _dump(store: Store, known: dict[str, int], name: str, url: str) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        if not databases.dump(url, path):
            return None
        kind = databases.kind_of(url)
        databases.require_intact(kind, path, name)
        return {**_entry(store.add(path, known)), "kind": kind, "url": databases.shown(url)}


def _add_what_was_not_pushed(
    store: Store,
    known: dict[str, int],
    root: Path,
    files: Entries,
    trees: Mapping[str, Mapping[str, Any]],
) -> None:
    """Keep outputs that no run has pushed yet, from DVC's cache, as objects of the first remote."""
    remotes = [t for name, t in trees.items() if name.startswith(REMOTE) and not t["left_out"]]
    if not remotes:
        return
    local, held = Tree(cache(root)), objects_held(trees)
    for path, entry in files.items():
        if path.endswith("/dvc.lock"):
            with store.local(entry["sha256"]) as lock:
                wanted = set(objects_of(lock.read_text(encoding="utf-8")))
            top = f"{customer_of(path)}/"
            lists = sorted(path_of(one) for one in wanted if one.endswith(".dir"))
            added = _keep(store, known, local, (p for p in lists if top + p not in held), {})
            for one in lists:
                if found := held.get(top + one) or added.get(one):
                    with store.local(found["sha256"]) as listing:
                        wanted.update(parts_of(listing))
            lost = {path_of(one) for one in wanted if top + path_of(one) not in held}
            added |= _keep(store, known, local, sorted(lost - added.keys()), {})
            remotes[0]["files"].update({top + one: kept for one, kept in added.items()})
