from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from turbo_vaed.dataset.manifest import (
    COLUMNS,
    build_manifest,
    list_files,
    read_manifest,
    write_manifest,
)
from turbo_vaed.errors import CorruptFile, DataRefused, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video) -> Path:
    source = tmp_path_factory.mktemp("videos")
    make_video(source / "b.mp4", seed=1)
    make_video(source / "sub" / "c.mp4", seed=2)
    shutil.copy(source / "b.mp4", source / "sub" / "copy.mp4")
    (source / "a.avi").write_text("notes")
    (source / "Read Me.TXT").write_text("a document lies beside videos")
    (source / ".hidden.mp4").write_text("x")
    (source / ".cache").mkdir()
    (source / ".cache" / "d.mp4").write_text("x")
    (source / "gone.mp4").symlink_to(source / "nowhere")
    with open(os.fsencode(source) + b"/z\xff.mp4", "wb") as file:
        file.write(b"x")
    return source


@pytest.fixture(scope="module")
def manifest(folder: Path) -> pd.DataFrame:
    return build_manifest(folder, timeout_seconds=60)


def test_a_row_per_file_with_its_reason(manifest: pd.DataFrame) -> None:
    rows = manifest.set_index("path")
    assert list(rows.index) == [
        "a.avi", "b.mp4", "gone.mp4", "sub/c.mp4", "sub/copy.mp4", "z\\xff.mp4"
    ]  # fmt: skip
    assert list(rows.index[rows["status"] == "ok"]) == ["b.mp4", "sub/c.mp4"]
    assert "decode" in rows.at["a.avi", "reason"]
    assert os.strerror(errno.ENOENT) in rows.at["gone.mp4", "reason"]
    assert "UTF-8" in rows.at["z\\xff.mp4", "reason"]
    assert rows.loc[["b.mp4", "sub/c.mp4"], "reason"].isna().all()


def test_a_duplicate_names_its_original_and_keeps_its_facts(manifest: pd.DataFrame) -> None:
    rows = manifest.set_index("path")
    copy = rows.loc["sub/copy.mp4"]
    assert (copy["status"], copy["duplicate_of"]) == ("quarantined", "b.mp4")
    assert "b.mp4" in copy["reason"] and pd.isna(copy["error"])
    assert copy["frames"] == 30 and copy["phash"] == rows.at["b.mp4", "phash"]
    assert pd.isna(rows.at["b.mp4", "duplicate_of"])


def test_bytes_and_sha256_are_the_files_own(manifest: pd.DataFrame, folder: Path) -> None:
    row = manifest.set_index("path").loc["sub/c.mp4"]
    content = (folder / "sub" / "c.mp4").read_bytes()
    assert row["bytes"] == len(content)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_manifest_survives_parquet(manifest: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest(manifest, path)
    pd.testing.assert_frame_equal(read_manifest(path), manifest)
    assert {str(t) for t in manifest.dtypes} <= set(COLUMNS.values())
    assert os.listdir(tmp_path) == ["manifest.parquet"]


def test_a_write_that_fails_leaves_the_old_file(
    manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest(manifest, path)

    def full_disk(self: pd.DataFrame, target: Path, **_: object) -> None:
        target.write_bytes(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_manifest(manifest.head(1), path)
    pd.testing.assert_frame_equal(read_manifest(path), manifest)


def test_a_broken_manifest_is_named(manifest: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(CorruptFile, match=r"manifest\.parquet .*stage `validate`"):
        read_manifest(path)
    write_manifest(manifest, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match=r"manifest\.parquet .*parquet file"):
        read_manifest(path)
    manifest.drop(columns=["sha256"]).to_parquet(path)
    with pytest.raises(CorruptFile, match=r"manifest\.parquet .*columns sha256"):
        read_manifest(path)


def test_a_missing_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none"))):
        list_files(tmp_path / "none")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataRefused, match="no videos"):
        build_manifest(tmp_path, timeout_seconds=1)
