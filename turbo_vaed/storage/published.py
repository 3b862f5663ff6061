"""Copies of files where the workers of a cluster read them: uploaded once, by content.

Below a customer's prefix, WHAT/KEY/… holds the files of a folder and WHAT/KEY.json, written last,
says that they are all there, and where: no half of an upload is ever read. KEY is a digest of the
files' names and bytes, so that unchanged content uploads nothing, and what is at a URL stays as it
is. Nothing of another customer lies below a prefix: what is erased or expires there is one
customer's.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import sha256_file, sha256_json
from turbo_vaed.runtime.progress import progress
from turbo_vaed.storage.urls import errors_of, filesystem

_HASHERS = 8
_AT_A_TIME = 64
"""Files that are carried together, and then counted."""
EXPIRES_DAYS = 30
"""After which a bucket's lifecycle rule should remove what lies below the prefix."""
_FRESH_SECONDS = 20 * 86400.0
"""Older copies are uploaded again: a rule of `EXPIRES_DAYS` leaves them ten days more."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file below a prefix; `changed_at` in Unix seconds."""

    path: str
    size_bytes: int
    changed_at: float


def content_key(names: Mapping[str, Path]) -> str:
    """A digest of the names and bytes of files."""
    with ThreadPoolExecutor(_HASHERS) as hashers:
        digests = hashers.map(sha256_file, names.values())
        return sha256_json(dict(zip(names, digests, strict=True)))


def publish(place: Path, prefix: str, what: str, *, parts: Sequence[str] = ("",)) -> str:
    """The URL of a whole copy of a file or folder, uploaded unless it is there already. An upload
    that broke off goes on with the files that are missing, and what would expire during a long run
    is uploaded again.

    Args:
        prefix: the customer's, a folder or URL without a slash at its end.
        what: the kind of the files, a part of the URL.
        parts: files and folders of the folder; all of it by default.

    Raises:
        UserError: the bucket is not there, or not for this machine.
        Unreachable: S3 does not answer.
    """
    names = _names(place, parts)
    key = content_key(names)
    url = published_at(prefix, what, key) or f"{prefix}/{what}/{key}"
    missing = _missing(names, url)
    if missing:
        _carry_up(names, missing, url, what)
        if _missing(names, url):
            raise CorruptFile(f"{place} changed while it was uploaded to {url}; run it again")
    if missing or published_at(prefix, what, key) is None:
        _mark(prefix, what, key, url, names)
    return url if place.is_dir() else f"{url}/{place.name}"


def published_at(prefix: str, what: str, key: str) -> str | None:
    """The URL of the whole copy with this key; None where there is none, or a part of one."""
    files, root = filesystem(f"{prefix}/{what}/{key}.json")
    with errors_of(prefix):
        try:
            found = json.loads(files.cat_file(root))
        except (FileNotFoundError, ValueError):  # the latter of a disk: half a marker
            return None
    return f"{prefix}/{found['at']}"


def new_prefix(prefix: str, what: str) -> str:
    """The URL of an empty place for what workers are about to write."""
    return f"{prefix}/{what}/{uuid4().hex}"


def adopt(place: Path, url: str, prefix: str, what: str, *, parts: Sequence[str] = ("",)) -> None:
    """Record that what workers wrote to `url`, and `fetch` brought into the folder `place`, is its
    content: then publishing it uploads only what the workers did not write.

    Args, Raises: as `publish`.
    """
    names = _names(place, parts)
    _carry_up(names, _missing(names, url), url, what)
    _mark(prefix, what, content_key(names), url, names)


def fetch(url: str, place: Path, label: str) -> int:
    """Bring all files below a URL into a folder; returns their bytes.

    Raises:
        CorruptFile: a file did not come whole.
        UserError, Unreachable: as `publish`.
    """
    files, root = filesystem(url)
    stored = stored_files(url)
    targets = [place / one.path[len(root) + 1 :] for one in stored]
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    with progress(label, len(stored)) as update:
        for start in range(0, len(stored), _AT_A_TIME):
            part = slice(start, start + _AT_A_TIME)
            with errors_of(url):
                files.get([one.path for one in stored[part]], [str(to) for to in targets[part]])
            update(start + len(stored[part]), "files")
    for one, target in zip(stored, targets, strict=True):
        if not target.is_file() or target.stat().st_size != one.size_bytes:
            raise CorruptFile(f"{one.path} did not come whole to {target}; run the stage again")
    return sum(one.size_bytes for one in stored)


def stored_files(url: str) -> list[StoredFile]:
    """All files below a folder or URL, in order of their paths; none where nothing is yet.

    Raises: as `publish`.
    """
    files, root = filesystem(url)
    with errors_of(url):
        try:
            found = files.find(root, detail=True)
        except FileNotFoundError as error:
            if error.__cause__ is not None:  # NoSuchBucket
                raise
            return []
    return [
        StoredFile(path=path, size_bytes=facts["size"], changed_at=_changed_at(facts))
        for path, facts in sorted(found.items())
    ]


def remove(prefix: str, *, keep: Collection[str] = ()) -> int:
    """Remove what a customer has below its prefix, but for the copies at the URLs in `keep`.
    Markers go first: what is half removed is not read. Returns the bytes removed.

    Raises: as `publish`.
    """
    files, root = filesystem(prefix)
    kept = {_below(prefix, url) for url in keep}
    stored = stored_files(prefix)
    markers, contents = [], []
    for one in stored:
        name = one.path[len(root) + 1 :]
        what, _, rest = name.partition("/")
        if rest.endswith(".json") and "/" not in rest:
            at = _marked(files, one.path)
            if at not in kept:
                markers.append(one)
        elif f"{what}/{rest.partition('/')[0]}" not in kept:
            contents.append(one)
    for some in (markers, contents):
        for part in _batches([one.path for one in some], 1000):
            with errors_of(prefix):
                files.rm(part)
    return sum(one.size_bytes for one in (*markers, *contents))


def _names(place: Path, parts: Sequence[str]) -> dict[str, Path]:
    """The files by their names below the place, in order."""
    if place.is_file():
        return {place.name: place}
    tops = [place / part for part in parts]
    found = [top for top in tops if top.is_file()]
    found += [path for top in tops for path in top.rglob("*") if path.is_file()]
    return {path.relative_to(place).as_posix(): path for path in sorted(found)}


def _missing(names: Mapping[str, Path], url: str) -> list[str]:
    """Those that are not at the URL in their full length, or will soon have expired."""
    _, root = filesystem(url)
    oldest = time.time() - _FRESH_SECONDS
    there = {
        one.path[len(root) + 1 :]: one.size_bytes
        for one in stored_files(url)
        if one.changed_at > oldest
    }
    return [name for name, path in names.items() if there.get(name) != path.stat().st_size]


def _carry_up(names: Mapping[str, Path], missing: Sequence[str], url: str, what: str) -> None:
    files, root = filesystem(url)
    with progress(f"uploading {what}", len(missing)) as update:
        for part in _batches(missing, _AT_A_TIME):
            with errors_of(url):
                files.put([str(names[name]) for name in part], [f"{root}/{name}" for name in part])
            update(missing.index(part[-1]) + 1, "files")


def _mark(prefix: str, what: str, key: str, url: str, names: Mapping[str, Path]) -> None:
    files, root = filesystem(f"{prefix}/{what}/{key}.json")
    facts = {
        "at": _below(prefix, url),
        "files": len(names),
        "bytes": sum(path.stat().st_size for path in names.values()),
        "made_at": time.time(),
    }
    with errors_of(prefix):
        files.pipe_file(root, json.dumps(facts).encode())


def _marked(files: Any, path: str) -> str:
    """What a marker is for; "" for what is no marker."""
    try:
        return str(json.loads(files.cat_file(path))["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _below(prefix: str, url: str) -> str:
    """WHAT/NAME of a URL below the prefix, without a file's name."""
    return "/".join(url.removeprefix(f"{prefix}/").split("/")[:2])


def _changed_at(facts: dict[str, Any]) -> float:
    if "LastModified" in facts:  # of an object
        return float(facts["LastModified"].timestamp())
    return float(facts["mtime"])


def _batches(items: Sequence[str], size: int) -> Iterator[list[str]]:
    remaining = iter(items)
    while part := list(itertools.islice(remaining, size)):
        yield part
