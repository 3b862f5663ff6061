"""Arrays with a chunk per clip: missing and damaged chunks are errors, on a disk and elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from turbo_vaed.dataset.clip_arrays import (
    ClipArray,
    create_clip_array,
    open_for_writing,
    whole_chunks,
)
from turbo_vaed.errors import CorruptFile

LOOK = "look for it"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A Zarr group with an array of four clips, of which 1 (black) and 2 are written."""
    url = str(tmp_path / "a.zarr") if request.param == "folder" else f"memory://{tmp_path}/a.zarr"
    group = zarr.open_group(url, mode="w", zarr_format=3)
    shape = (3, 2)
    create_clip_array(group, "in/side", clips=4, shape=shape, dtype="uint8", is_compressed=False)
    array = open_for_writing(url, "in/side")
    array[1] = 0
    array[2] = np.arange(6).reshape(shape)
    return url


def test_written_zeros_are_read_and_unwritten_clips_are_errors(store: str) -> None:
    array = ClipArray(store, "in/side", remedy=LOOK)
    assert array.shape == (4, 3, 2)
    assert not array[1].any()
    np.testing.assert_array_equal(array[2, 1:, 1], [3, 5])
    for missing in (0, 3):
        with pytest.raises(CorruptFile, match=f"'in/side' of clip {missing} is missing; {LOOK}"):
            array[missing, :2]
    assert whole_chunks(store, "in/side") == {1, 2}
    assert whole_chunks(store, "other") == set()


def test_a_missing_array_is_named(store: str) -> None:
    for url, name in ((store, "other"), (f"{store}.gone", "in/side")):
        with pytest.raises(CorruptFile, match=f"no array '{name}'.*{LOOK}"):
            ClipArray(url, name, remedy=LOOK)


@pytest.mark.parametrize("is_compressed", [True, False])
def test_a_truncated_chunk_is_an_error_and_not_counted_as_written(
    tmp_path: Path, is_compressed: bool
) -> None:
    group = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    array = create_clip_array(
        group, "a", clips=2, shape=(64, 64), dtype="uint8", is_compressed=is_compressed
    )
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape)
    chunk = tmp_path / "a" / "c" / "1" / "0" / "0"
    os.truncate(chunk, chunk.stat().st_size // 2)
    (chunk.parent / "0.1f.partial").write_bytes(bytes(64 * 64))  # of a write that was killed
    with pytest.raises(CorruptFile, match=f"'a' of clip 1 .*decoded.*{LOOK}"):
        ClipArray(str(tmp_path), "a", remedy=LOOK)[1]
    if not is_compressed:
        assert whole_chunks(str(tmp_path), "a") == {0}
