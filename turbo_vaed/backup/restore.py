"""Put back what a backup has: objects and artifacts first, then the files of the checkout, then the
databases that refer to them, and last the outputs of the stages, by DVC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from turbo_vaed.backup import databases
from turbo_vaed.backup.create import Report, verify
from turbo_vaed.backup.places import ARTIFACTS, Places
from turbo_vaed.backup.store import Store, Tree, content_of
from turbo_vaed.errors import CorruptFile, Refused, UserError


def restore(
    places: Places,
    store: Store,
    name: str | None = None,
    *,
    fetch: Callable[[], int],
    replace: bool = False,
    report: Report = print,
) -> str:
    """Verify a backup, the newest by default, and put it back; its name.

    Args:
        fetch: brings all customers' outputs, by DVC; of how many customers.
        replace: databases and files that are there and differ.

    Raises:
        CorruptFile: the backup is not whole; nothing was touched.
        Refused: something is there that would be replaced; nothing was touched.
        UserError: it belongs to another place.
        Fault: DVC could not bring the outputs back; the same command may be tried again.
    """
    name, problems = verify(store, name)
    if problems:
        raise CorruptFile(f"backup {name} is not whole: {'; '.join(problems)}")
    _, document = store.read(name)
    _check_place(document, places)
    if not replace:
        _check_nothing_is_replaced(document, places)
    for one, tree in document["trees"].items():
        if not tree["left_out"]:
            _put_back(store, Tree(places.trees[one]), tree["files"])
            report(f"{one}: {len(tree['files'])} files")
    _put_back(store, Tree(str(places.root)), document["files"])
    report(f"{len(document['files'])} files of the checkout")
    for one, dumped in document["databases"].items():
        with store.local(dumped["sha256"]) as path:
            databases.restore(dumped["kind"], path, places.databases[one])
        report(f"{one}: {dumped['kind']}")
    report(f"{fetch()} customers have their outputs")
    return name


def _check_place(document: Mapping[str, Any], places: Places) -> None:
    """Check that all of a backup has a place here. Without a server, MLflow's store keeps absolute
    paths of artifacts."""
    then, now = document["trees"][ARTIFACTS]["url"], places.trees[ARTIFACTS]
    if (
        then != now
        and document["versions"]
        and document["databases"].get("mlflow", {}).get("kind") == "sqlite"
    ):
        raise UserError(
            f"MLflow's store names its artifacts by their place, {then}, and here it is {now}: "
            f"restore in a checkout at {document['root']}, or give --mlflow-artifacts"
        )
    for one, dumped in document["databases"].items():
        if one not in places.databases:
            raise UserError(
                f"the backup has a database of its own for {one}, and here it has none: set "
                "TURBO_VAED_LEDGER_URL and MLFLOW_TRACKING_URI (or --mlflow-database) as they were "
                "when it was made"
            )
        databases.require_kind(dumped["kind"], places.databases[one])
    if absent := set(document["trees"]) - set(places.trees):
        raise UserError(
            f"the backup has {', '.join(sorted(absent))}, which is not configured here: take "
            ".dvc/config from Git, or add it with: dvc remote add"
        )


def _check_nothing_is_replaced(document: Mapping[str, Any], places: Places) -> None:
    there = [
        databases.shown(url)
        for one, url in places.databases.items()
        if one in document["databases"] and not databases.is_empty(url)
    ]
    for path, entry in document["files"].items():
        file = places.root / path
        if file.is_file() and content_of(file).sha256 != entry["sha256"]:
            there.append(path)
    if there:
        raise Refused(
            f"{', '.join(there)}: there already, and not as in the backup; --replace puts the "
            "backup's in their place"
        )


def _put_back(store: Store, tree: Tree, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Add those files that are not there with the same content."""
    sizes = {path: int(stamp.split()[0]) for path, stamp in tree.paths().items()} if files else {}
    for path, entry in files.items():
        if sizes.get(path) == entry["size"]:
            with tree.local(path) as there:
                if content_of(there).sha256 == entry["sha256"]:
                    continue
        with store.local(entry["sha256"]) as kept:
            tree.put(kept, path)
