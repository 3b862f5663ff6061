"""Zarr arrays with a chunk per clip, in which a chunk that is not there was lost or never made.

Zarr reads a missing chunk as zeros, and leaves chunks of zeros out when it writes. Here they are
written, and reading what is missing is an error. A chunk is one file, or one object of a bucket,
that appears whole: Zarr writes next to it and renames. Places are folders or fsspec URLs (s3://…).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from zarr.storage import WrapperStore

from turbo_vaed.errors import CorruptFile

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

    def __init__(self, store: str, name: str, *, remedy: str) -> None:
        """Open the array `name` of the Zarr group at `store`.

        Args:
            remedy: what to do about a loss, for the errors' last words.

        Raises:
            CorruptFile: there is no such array, or its description is damaged.
        """
        import zarr
        from zarr.errors import BaseZarrError

        self._store, self._name, self._remedy = store, name, remedy
        try:
            group = zarr.open_group(store, mode="r")
            path = str(PurePosixPath(group.path, name))
            self._array = zarr.open_array(_Strict(group.store), path=path, mode="r")
        except (OSError, KeyError, ValueError, BaseZarrError) as error:
            raise CorruptFile(f"{store}: no array {name!r} ({error}); {remedy}") from error
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
            found = f"cannot be decoded ({error})"
        raise CorruptFile(f"{self} of clip {clip} {found}; {self._remedy}")


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
    from fsspec.core import url_to_fs

    try:
        array = zarr.open_array(store, path=name, mode="r")
    except FileNotFoundError:
        return set()
    length = math.prod(array.chunks) * array.dtype.itemsize
    files, root = url_to_fs(store)
    chunks = f"{root.rstrip('/')}/{name}/c"
    found = files.find(chunks, detail=True).items()
    # c/CLIP/0/…/0; a write that was killed leaves a file of another name next to it.
    return {
        int(PurePosixPath(path).relative_to(chunks).parts[0])
        for path, facts in found
        if path.endswith("/0") and facts["size"] == length
    }


class _MissingChunk(Exception):
    """Not a KeyError or an OSError, which Zarr takes for an empty chunk."""


class _Strict(WrapperStore[Any]):
    """A store that does not pass over a missing chunk."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if found is None and "/c/" in f"/{key}":
            raise _MissingChunk(key)
        return found
