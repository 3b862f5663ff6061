"""The bytes of checkpoints: how a state is copied and serialised, and where its bytes lie.

That is a folder, or a prefix of an S3 bucket: an object is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from turbo_vaed.errors import UserError
from turbo_vaed.runtime.files import atomic_file
from turbo_vaed.storage.urls import s3_errors, s3_failures

_PLAIN = (int, float, str, bool, type(None))
_CLIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 2}}
"""The client gives up early: its caller knows how long it is worth trying, and reports it."""

Reader = io.BufferedReader | io.BytesIO
Serialise = Callable[[Any], None]
"""Writes the bytes of one object to what has a `write`."""


class Storage(Protocol):
    """Named objects. `FileNotFoundError`: there is no such object."""

    def names(self) -> list[str]:
        """All objects, in no order, foreign ones among them; none where nothing is yet."""

    def write(self, name: str, serialise: Serialise) -> None:
        """Add an object, or replace that of the same name."""

    def open(self, name: str) -> Reader:
        """An object, to be read and sought in."""

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""


def storage_at(url: str) -> Storage:
    """A folder, or `s3://BUCKET/PREFIX`.

    Raises:
        UserError: another scheme, or no bucket.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return Folder(Path(url))
    if scheme == "file":
        return Folder(Path(rest))
    if scheme == "s3" and rest.strip("/"):
        return Bucket(rest.strip("/"))
    raise UserError(f"checkpoints cannot lie at {url!r}: give a folder or s3://BUCKET/PREFIX")


class Folder:
    """Partial file, fsync, rename, fsync of the folder: what has its name survives a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []

    def write(self, name: str, serialise: Serialise) -> None:
        """As `Storage.write`; a full disk is an OSError, ENOSPC or EDQUOT."""
        for left in self.names():  # by a writer that died: there is one at a time
            if left.startswith(".") and left.endswith(".partial"):
                self.remove(left)
        with atomic_file(self._path / name) as temporary, temporary.open("xb") as file:
            serialise(file)
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def open(self, name: str) -> Reader:
        return open(self._path / name, "rb")

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class Bucket:
    """One put, or a multipart upload, which S3 shows when it is complete and not before.

    Endpoint, region and credentials are found as every AWS client finds them (AWS_ENDPOINT_URL …).
    """

    def __init__(self, path: str) -> None:
        import s3fs

        self._path = path
        # Listings are never cached: another process writes what this one reads.
        self._files = s3fs.S3FileSystem(
            use_listings_cache=False, skip_instance_cache=True, config_kwargs=_CLIENT
        )

    def names(self) -> list[str]:
        with s3_errors(self._path):
            try:
                found = self._files.ls(self._path, detail=False)
            except FileNotFoundError as error:
                if error.__cause__ is not None:  # NoSuchBucket; an empty prefix has no cause
                    raise
                return []
        return [path.rpartition("/")[2] for path in found]

    def write(self, name: str, serialise: Serialise) -> None:
        with s3_errors(self._path):
            # Without autocommit, a file that is closed by an error, or by the garbage collector,
            # is not taken for a complete one.
            file = self._files.open(f"{self._path}/{name}", "wb", autocommit=False)
            try:
                serialise(file)
                file.close()
                file.commit()
            except BaseException:
                file.closed = True
                with suppress(*s3_failures()):  # S3 keeps the parts, unseen, where this fails too
                    file.discard()
                raise

    def open(self, name: str) -> Reader:
        with s3_errors(self._path):
            return io.BytesIO(self._files.cat_file(f"{self._path}/{name}"))

    def remove(self, name: str) -> None:
        with s3_errors(self._path):
            self._files.rm_file(f"{self._path}/{name}")


class Digest:
    """A file that holds no bytes but their number and sha256."""

    def __init__(self) -> None:
        self.sha256, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Called by `torch.save`."""


def serialise(state: Mapping[str, Any], file: Any) -> None:
    """Write a state to a file, the same bytes at every call."""
    outer = sys.exception()
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # Torch's zip writer, unwound by an error of the file, puts a complaint of its own on top.
        beneath = error.__context__
        if beneath is None or beneath is outer:
            raise
        raise beneath from None


def copied(value: Any, into: Any, path: str) -> Any:
    """A copy on the CPU, in the memory of the tensors of `into` where they are alike.

    Raises:
        TypeError: `value` is not read back by `torch.load` as it was; `path` names it.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        if isinstance(into, Tensor) and (into.shape, into.dtype) == (value.shape, value.dtype):
            return into.copy_(value)
        # From a GPU several times as fast into pinned memory.
        return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)
    if isinstance(value, dict):
        known: Any = into if isinstance(into, dict) else {}
        return {
            key: item if type(item) in _PLAIN else copied(item, known.get(key), f"{path}[{key!r}]")
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        alike = isinstance(into, list | tuple) and len(into) == len(value)
        known = into if alike else [None] * len(value)
        return type(value)(
            item if type(item) in _PLAIN else copied(item, old, f"{path}[{number}]")
            for number, (item, old) in enumerate(zip(value, known, strict=True))
        )
    if type(value) in _PLAIN:
        return value
    raise TypeError(
        f"a checkpoint cannot hold {path}, a {type(value).__name__}: only tensors, numbers, texts, "
        "None, and dicts, lists and tuples of them are read back"
    )
