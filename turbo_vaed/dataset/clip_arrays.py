"""Zarr arrays with a chunk per clip, in which a chunk that is not there was lost or never made.

Zarr reads a missing chunk as zeros, and leaves chunks of zeros out when it writes. Here they are
written, and reading what is missing is an error. A chunk is one file, or one object of a bucket,
that appears whole: Zarr writes next to it and renames. Places are folders or fsspec URLs (s3://…);
chunks of a bucket are read through this machine's cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zarr.storage import WrapperStore

from turbo_vaed.errors import CorruptFile
from turbo_vaed.storage.cache import LocalCache, local_cache
from turbo_vaed.storage.urls import filesystem, is_remote, worker_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

_READERS = 32
_WRITES_ZEROS: Any = {"write_empty_chunks": True}


def create_clip_array(
    group: Any, name: str, *, clips: int, shape: Sequence[int], dtype: str, is_compressed: bool
) -> Any:
    """An array (clips, *shape) in a Zarr group, a chunk per clip."""
    return group.create_array(
        name,
        shape=(clips, *shape),
        chunks=(1, *shape),
        dtype=dtype,
        compressors="auto" if is_compressed else None,
        config=_WRITES_ZEROS,
    )


def open_for_writing(store: str, name: str) -> Any:
    """An array of `create_clip_array`, in another process."""
    import zarr

    # `open_array` takes a `config` too, and forgets it where the array exists.
    return zarr.open_array(store, path=name, mode="r+").with_config(_WRITES_ZEROS)


class ClipArray:
    """A read-only array with a chunk per clip; a chunk is read whole, even for a part of it."""

    def __init__(self, store: str, name: str, *, remedy: str, is_cached: bool = True) -> None:
        """Open the array `name` of the Zarr group at `store`.

        Args:
            remedy: what to do about a loss, for the errors' last words.
            is_cached: whether chunks of a bucket are kept on this machine: what is read must not
                change any more.

        Raises:
            CorruptFile: there is no such array, or its description is damaged.
            UserError: its bucket is not there, or not for this machine.
            Fault: S3 does not answer.
        """
        import zarr
        from zarr.errors import BaseZarrError

        self._store, self._name, self._remedy = store, name, remedy
        try:
            with worker_errors(store):
                group = zarr.open_group(store, mode="r")
                path = str(PurePosixPath(group.path, name))
                self._chunks = _Strict(group.store)
                self._array = zarr.open_array(self._chunks, path=path, mode="r")
        except (OSError, KeyError, ValueError, BaseZarrError) as error:
            remedy = f"{_there(store)}{remedy}"
            raise CorruptFile(f"{store}: no array {name!r} ({error}); {remedy}") from error
        if is_cached and is_remote(store):
            facts = json.dumps(self._array.metadata.to_dict(), sort_keys=True, default=str)
            # Where an array was made anew, with another dtype say, its old chunks are not its own.
            made = hashlib.sha256(facts.encode()).hexdigest()[:16]
            self._chunks.cache_as(local_cache(), f"{store}#{made}")
        self.shape: tuple[int, ...] = self._array.shape
        self.ndim = len(self.shape)

    def __str__(self) -> str:
        return f"{self._store}: {self._name!r}"

    def __getitem__(self, where: int | tuple[Any, ...]) -> NDArray[Any]:
        """As of a NumPy array; the first index is a clip's, and a number.

        Raises:
            CorruptFile: the clip's chunk is missing or cannot be decoded.
        """
        import numpy as np

        clip = where[0] if isinstance(where, tuple) else where
        try:
            return np.asarray(self._array[where])
        except _MissingChunk:
            found = "is missing"
        except (ValueError, RuntimeError) as error:  # what a codec says of damaged bytes
            if self._chunks.forget(f"{self._name}/{self._chunk(clip)}"):
                return self[where]
            found = f"cannot be decoded ({error})"
        raise CorruptFile(f"{self} of clip {clip} {found}; {self._remedy}")

    def _chunk(self, clip: int) -> str:
        return str(self._array.metadata.encode_chunk_key((clip, *[0] * (self.ndim - 1))))


def read_together(wanted: Sequence[tuple[ClipArray, tuple[Any, ...]]]) -> list[NDArray[Any]]:
    """Each array[where], all at once: a bucket takes tens of milliseconds to begin an answer.

    Raises:
        CorruptFile: as `ClipArray`.
    """
    with ThreadPoolExecutor(min(len(wanted), _READERS) or 1) as readers:
        return list(readers.map(lambda one: one[0][one[1]], wanted))


def whole_chunks(store: str, name: str) -> set[int]:
    """The clips whose chunk is there in full length, by one listing; none of an unknown array.

    Args:
        name: of an array that is not compressed, whose chunks are all of one length.
    """
    import zarr

    try:
        array = zarr.open_array(store, path=name, mode="r")
    except FileNotFoundError:
        return set()
    length = math.prod(array.chunks) * array.dtype.itemsize
    files, root = filesystem(store)
    chunks = f"{root}/{name}/c"
    found = files.find(chunks, detail=True).items()
    # c/CLIP/0/…/0; a write that was killed leaves a file of another name next to it.
    return {
        int(PurePosixPath(path).relative_to(chunks).parts[0])
        for path, facts in found
        if path.endswith("/0") and facts["size"] == length
    }


class _MissingChunk(Exception):
    """Not a KeyError or an OSError, which Zarr takes for an empty chunk."""


def _there(store: str) -> str:
    """For a folder that this machine does not have at all: what workers elsewhere need."""
    if is_remote(store) or Path(store).exists():
        return ""
    return (
        f"{socket.gethostname()} has no such folder: a cluster whose machines share no disk needs "
        "TURBO_VAED_ARRAYS=s3://BUCKET/PREFIX; or "
    )


class _Strict(WrapperStore[Any]):
    """A store that does not pass over a missing chunk, and may read chunks through a cache."""

    _cache: LocalCache | None = None
    _cached_as = ""

    def cache_as(self, cache: LocalCache, name: str) -> None:
        """From now on keep chunks in `cache`, under names that begin with `name`."""
        self._cache, self._cached_as = cache, name
        self._from_cache: set[str] = set()

    def forget(self, key: str) -> bool:
        """Drop a chunk from the cache; whether it came from there."""
        if self._cache is None or key not in self._from_cache:
            return False
        self._from_cache.discard(key)
        self._cache.forget(f"{self._cached_as}/{key}")
        return True

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        is_chunk = "/c/" in f"/{key}"
        cache = self._cache if is_chunk and byte_range is None else None
        name = f"{self._cached_as}/{key}"
        if cache and (kept := await asyncio.to_thread(cache.read, name)) is not None:
            self._from_cache.add(key)
            return prototype.buffer.from_bytes(kept)
        found = await super().get(key, prototype, byte_range)
        if found is None and is_chunk:
            raise _MissingChunk(key)
        if cache and found is not None:
            self._from_cache.discard(key)
            await asyncio.to_thread(cache.write, name, found.to_bytes())
        return found
