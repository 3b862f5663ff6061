"""A machine's cache of a bucket: bounded, shared by processes, never trusted over the bucket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.settings import Settings, array_cache
from turbo_vaed.storage import cache
from turbo_vaed.storage.cache import LocalCache, local_cache, local_copy
from turbo_vaed.storage.published import publish
from turbo_vaed.storage.urls import filesystem

KB = 1000


def size_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("objects/*/*/*.val"))


def test_the_least_recently_read_goes_first_and_the_bound_holds(tmp_path: Path) -> None:
    """diskcache drops ten at a time."""
    kept = LocalCache(tmp_path, 5000 * KB)
    for number in range(120):
        kept.write(str(number), bytes([number]) * 100 * KB)
        assert kept.read("0") == bytes(100 * KB), "read all the time"
        assert size_on_disk(tmp_path) <= 5000 * KB
    assert kept.read("1") is None and kept.read("119") == bytes([119]) * 100 * KB
    assert size_on_disk(tmp_path) >= 3500 * KB


def test_an_object_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    kept = LocalCache(tmp_path / "cache", 500 * KB)
    kept.write("small", b"small")
    kept.write("large", bytes(600 * KB))
    assert kept.read("large") is None and kept.read("small") == b"small"
    into = tmp_path / "into"
    kept.fetch("huge", lambda path: path.write_bytes(bytes(600 * KB)), into)  # type: ignore[arg-type, return-value]
    assert into.stat().st_size == 600 * KB and kept.read("huge") is None


READER = """
import contextlib, os, random, sys
from pathlib import Path
from turbo_vaed.storage.cache import LocalCache

def size():
    total = 0
    for folder, _, names in os.walk(Path(sys.argv[1]) / "objects"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(f"{folder}/{name}") * name.endswith(".val")
    return total

kept = LocalCache(Path(sys.argv[1]), 2_000_000)
dice = random.Random(int(sys.argv[2]))
for _ in range(150):
    number = dice.randrange(80)
    found = kept.read(str(number))
    assert found is None or found == bytes([number]) * 50_000, number
    if found is None:
        kept.write(str(number), bytes([number]) * 50_000)
    # A walk also counts what goes and comes while it lasts: one of several has to be within.
    assert any(size() <= 2_000_000 + 3 * 50_000 for _ in range(10))
"""


@pytest.mark.slow
def test_processes_share_one_cache_and_its_bound(tmp_path: Path) -> None:
    """Three of them read twice as much as it holds; what each writes just now comes on top."""
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(tmp_path), str(seed)])
        for seed in range(3)
    ]
    assert [reader.wait(timeout=300) for reader in readers] == [0, 0, 0]
    assert 1500 * KB <= size_on_disk(tmp_path) <= 2000 * KB


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    LocalCache(tmp_path, 500 * KB).write("kept", b"whole")
    left = tmp_path / "objects" / "ab" / "cd" / "left.val"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(100 * KB))
    again = LocalCache(tmp_path, 500 * KB)
    assert left.exists(), "looked for once a day"
    again.forget(cache._CHECKED)
    assert LocalCache(tmp_path, 500 * KB).read("kept") == b"whole"
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = LocalCache(tmp_path, 500 * KB)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept._objects.disk, "store", full)
    kept.write("a", b"a")
    assert kept.read("a") is None


@pytest.mark.parametrize("size", ["0", "-1", "much", "inf", "nan"])
def test_a_bound_that_is_none_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBO_VAED_ARRAY_CACHE_GB", size)
    with pytest.raises(UserError, match="TURBO_VAED_ARRAY_CACHE_GB"):
        array_cache()


@pytest.mark.parametrize("place", ["s3://", "gs://bucket/x", "relative/folder"])
def test_a_place_for_arrays_that_is_none_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBO_VAED_ARRAYS", place)
    with pytest.raises(UserError, match="TURBO_VAED_ARRAYS"):
        Settings.from_environment(tmp_path)
    monkeypatch.setenv("TURBO_VAED_ARRAYS", f"file://{tmp_path}/")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = Settings.from_environment(tmp_path)
    assert found.shared_prefix("demo") == f"{tmp_path}/demo"
    monkeypatch.delenv("RAY_ADDRESS")
    assert Settings.from_environment(tmp_path).shared_prefix("demo") is None, "its own disk"


@pytest.fixture
def bucket(s3_url: str, tmp_path: Path) -> str:
    """A Zarr group in a bucket: `a` uint8 (4, 8, 8), the last clip missing."""
    group = zarr.open_group(f"{tmp_path}/made", mode="w", zarr_format=3)
    array = create_clip_array(group, "a", clips=4, shape=(8, 8), dtype="uint8", is_compressed=True)
    array[:3] = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    return publish(tmp_path / "made", s3_url, "clip")


def open_array(store: str) -> ClipArray:
    return ClipArray(store, "a", remedy="make it again")


def test_chunks_come_from_the_cache_once_they_were_read(bucket: str, tmp_path: Path) -> None:
    here = open_array(f"{tmp_path}/made")
    array = open_array(bucket)
    first = [array[i] for i in range(3)]
    files, root = filesystem(bucket)
    again = open_array(bucket)
    files.rm(f"{root}/a/c", recursive=True)
    for i in range(3):
        np.testing.assert_array_equal(first[i], here[i])
        np.testing.assert_array_equal(again[i], here[i])
    with pytest.raises(CorruptFile, match="clip 3 is missing"):
        again[3]


def test_a_damaged_cached_chunk_is_read_from_the_bucket_again(bucket: str, tmp_path: Path) -> None:
    open_array(bucket)[0]
    (file,) = [f for f in local_cache().folder.glob("objects/*/*/*.val") if f.stat().st_size]
    file.write_bytes(b"x" * file.stat().st_size)
    np.testing.assert_array_equal(open_array(bucket)[0], open_array(f"{tmp_path}/made")[0])
    files, root = filesystem(bucket)
    chunk = f"{root}/a/c/1/0/0"
    files.pipe_file(chunk, b"x" * files.size(chunk))
    with pytest.raises(CorruptFile, match="clip 1 cannot be decoded"):
        open_array(bucket)[1]


def test_an_array_that_was_made_anew_has_no_old_chunks(bucket: str, tmp_path: Path) -> None:
    open_array(bucket)[0]
    group = zarr.open_group(bucket, mode="w", zarr_format=3)
    array = create_clip_array(group, "a", clips=4, shape=(8, 8), dtype="uint16", is_compressed=True)
    array[0] = np.full((8, 8), 300, dtype=np.uint16)
    assert (open_array(bucket)[0] == 300).all()


def test_a_folder_in_a_bucket_is_copied_for_the_time_of_its_use(
    s3_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "more" / "weights").write_bytes(bytes(100 * KB))
    url = publish(folder, s3_url, "teacher")
    with local_copy(url) as copy:
        assert (copy / "config.json").read_text() == "{}"
    files, root = filesystem(url)
    files.rm(f"{root}/more/weights")
    files.pipe_file(f"{root}/more/weights", b"changed, which is never so")
    with local_copy(url) as copy:
        assert (copy / "more" / "weights").read_bytes() == bytes(100 * KB), "from the cache"
    assert not copy.exists()
    single = publish(folder / "config.json", s3_url, "perceptual")
    with local_copy(single) as path:
        assert path.read_text() == "{}"
    with local_copy(folder) as itself:
        assert itself == folder
    with pytest.raises(CorruptFile, match="gone from its bucket"), local_copy(f"{s3_url}/none"):
        pass
