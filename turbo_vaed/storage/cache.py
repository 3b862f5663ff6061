"""A machine's cache of what it has read from a bucket, bounded in bytes, the least recently read
out first.

All processes of a machine share it (diskcache: an index in SQLite and a file per object). What is
cached never changes at its URL, so nothing is ever asked for again. A cache that fails, by a full
disk for instance, is passed over: then the object is read from the bucket.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from turbo_vaed.errors import CorruptFile
from turbo_vaed.settings import ArrayCache, array_cache
from turbo_vaed.storage.urls import filesystem, is_remote, worker_errors

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LOCK_SECONDS = 60.0
_DAY_SECONDS = 86400.0
_CHECKED = "checked"


class LocalCache:
    """Bytes by name. `size_bytes`, or half of the disk's free space with what is kept already,
    bounds what is kept; what is being written comes on top."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        import diskcache

        self.folder, self._open_files = folder, folder / "open"
        self._open_files.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._objects = diskcache.Cache(
            str(folder / "objects"),
            size_limit=size_bytes,
            eviction_policy="least-recently-used",
            disk_min_file_size=0,  # a file each
            timeout=_LOCK_SECONDS,
        )
        room = (shutil.disk_usage(folder).free + self.bytes_kept()) // 2
        if room < size_bytes:
            self._objects.reset("size_limit", room)
        self._check()

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None where it is not cached."""
        file = self._opened(name)
        if file is None:
            return None
        with file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Keep an object, and drop others until all of them fit."""
        if len(content) < self._objects.size_limit:
            self._tried(lambda: (self._objects.set(name, content), self._objects.cull()))

    def forget(self, name: str) -> None:
        """Drop an object, which turned out to be damaged."""
        self._tried(lambda: self._objects.delete(name))

    def fetch(self, name: str, download: Callable[[Path], None], into: Path) -> None:
        """Write an object to the file `into`: from the cache, or by `download`, and keep it."""
        file = self._opened(name)
        if file is not None:
            with file:
                try:
                    os.link(file.name, into)  # on one disk, and weights are large
                except OSError:
                    with into.open("wb") as copy:
                        shutil.copyfileobj(file, copy, 2**22)
            return
        download(into)
        if into.stat().st_size < self._objects.size_limit:
            with into.open("rb") as whole:
                self._tried(
                    lambda: (self._objects.set(name, whole, read=True), self._objects.cull())
                )

    @contextmanager
    def folder_for_files(self) -> Iterator[Path]:
        """A temporary folder on the disk of the cache."""
        with tempfile.TemporaryDirectory(dir=self._open_files) as folder:
            yield Path(folder)

    def bytes_kept(self) -> int:
        """Of all objects together, and of their index."""
        return int(self._objects.volume())

    def _opened(self, name: str) -> Any:
        """The file of an object, which stays readable while it is dropped; None: not cached."""
        return self._tried(lambda: self._objects.get(name, read=True))

    def _check(self) -> None:
        """Once a day: remove what killed processes have left, which no bound counts."""
        if not self._tried(lambda: self._objects.add(_CHECKED, b"", expire=_DAY_SECONDS)):
            return
        self._tried(lambda: self._objects.check(fix=True))
        for left in self._open_files.iterdir():
            if time.time() - left.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _tried(self, call: Callable[[], T]) -> T | None:
        import diskcache

        try:
            return call()
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            _log.warning("the cache in %s is passed over: %s", self.folder, error)
            return None


def local_cache() -> LocalCache:
    """This machine's, by its settings."""
    return _opened(array_cache(), os.getpid())


@functools.lru_cache(maxsize=2)
def _opened(found: ArrayCache, process: int) -> LocalCache:
    """One for each process: SQLite's connections do not survive a fork."""
    found.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return LocalCache(found.folder, found.size_bytes)


@contextmanager
def local_copy(place: str | Path) -> Iterator[Path]:
    """A file or folder on this machine's disk: itself, or a copy of what is at an S3 URL, which is
    gone when the block ends.

    Raises:
        CorruptFile: there is nothing at the URL.
        UserError: the bucket is not there, or not for this machine.
        Fault: S3 does not answer.
    """
    if not is_remote(place):
        yield Path(place)
        return
    cache = local_cache()
    files, root = filesystem(str(place))
    with worker_errors(str(place)):
        found = files.find(root)
    if not found:
        raise CorruptFile(f"{place} is gone from its bucket; run the stage again")
    with cache.folder_for_files() as folder:
        for path in found:
            name = path[len(root) :].lstrip("/") or path.rpartition("/")[2]
            into = folder / name
            into.parent.mkdir(parents=True, exist_ok=True)
            with worker_errors(str(place)):
                cache.fetch(path, functools.partial(_download, files, path), into)
        yield folder / root.rpartition("/")[2] if found == [root] else folder


def _download(files: Any, path: str, into: Path) -> None:
    files.get_file(path, str(into))
