from __future__ import annotations

import threading
from pathlib import Path

import pytest

from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import (
    atomic_file,
    atomic_folder,
    read_json,
    sha256_file,
    write_json,
    write_text,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "one.txt", "old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_threads_that_write_one_path_leave_one_of_their_contents(tmp_path: Path) -> None:
    path, contents = tmp_path / "one.txt", [str(i) * 10_000 for i in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as folder:
        (folder / "b").write_text("2")
        raise KeyboardInterrupt
    assert [one.name for one in path.iterdir()] == ["a"]
    with atomic_folder(path) as folder:
        (folder / "c").write_text("3")
        assert (path / "a").is_file()  # the old one stays until the new one is whole
    assert [one.name for one in path.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe"])
def test_a_damaged_document_is_a_corrupt_file_with_its_remedy(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFile) as found:
        read_json(path, remedy="try again")
    assert str(path) in str(found.value) and "try again" in str(found.value)


def test_a_document_comes_back_as_it_was_written_and_nan_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "one.json", {"a": [1, 0.1, None, "ä"]})
    assert read_json(path) == {"a": [1, 0.1, None, "ä"]}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["a"][0] == 1


def test_digests_agree_with_hashlib(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == expected
