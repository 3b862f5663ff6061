"""Copies of a customer's files in a bucket, as moto's S3 has them: whole, once, of one customer."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest

from turbo_vaed.errors import UserError
from turbo_vaed.storage import published
from turbo_vaed.storage.published import publish, stored_files
from turbo_vaed.storage.urls import filesystem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files that are published, and one that is not."""
    made = tmp_path / "clip"
    for name in ("clips.json", "clips.zarr/zarr.json", "clips.zarr/c/0/0", "figures.json"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(f"content of {name}")
    return made


PARTS = ("clips.json", "clips.zarr")


@pytest.fixture(params=["bucket", "folder"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A customer's, with a neighbour of nearly the same name."""
    if request.param == "folder":
        return f"{tmp_path}/shared/demo"
    return f"{request.getfixturevalue('s3_url')}/demo"


def names(url: str) -> dict[str, float]:
    _, root = filesystem(url)
    return {one.path.removeprefix(f"{root}/"): one.changed_at for one in stored_files(url)}


def test_unchanged_content_is_uploaded_once_and_changed_content_besides(
    folder: Path, prefix: str
) -> None:
    url = publish(folder, prefix, "clip", parts=PARTS)
    assert set(names(url)) == {"clips.json", "clips.zarr/zarr.json", "clips.zarr/c/0/0"}
    before = names(prefix)
    (folder / "figures.json").write_text("other figures")
    assert publish(folder, prefix, "clip", parts=PARTS) == url
    assert names(prefix) == before
    (folder / "clips.json").write_text("another text")
    other = publish(folder, prefix, "clip", parts=PARTS)
    assert other != url
    files, root = filesystem(other)
    assert files.cat_file(f"{root}/clips.json") == b"another text"


def test_a_broken_upload_is_not_there_and_goes_on(
    folder: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_AT_A_TIME", 1)
    carry_up = published._carry_up

    def breaks_off(names: dict[str, Path], missing: list[str], url: str, what: str) -> None:
        carry_up(names, missing[:1], url, what)
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(published, "_carry_up", breaks_off)
    key = published.content_key(published._names(folder, PARTS))
    with pytest.raises(ConnectionError):
        publish(folder, prefix, "clip", parts=PARTS)
    assert len(stored_files(f"{prefix}/clip/{key}")) == 1
    assert published.published_at(prefix, "clip", key) is None
    carried: list[str] = []
    monkeypatch.setattr(
        published, "_carry_up", lambda n, m, *rest: (carried.extend(m), carry_up(n, m, *rest))
    )
    url = publish(folder, prefix, "clip", parts=PARTS)
    assert len(carried) == 2, "the third is there"
    assert published.published_at(prefix, "clip", key) == url


def test_what_a_lifecycle_rule_has_taken_is_uploaded_again(folder: Path, prefix: str) -> None:
    url = publish(folder, prefix, "clip", parts=PARTS)
    files, root = filesystem(url)
    files.rm_file(f"{root}/clips.zarr/c/0/0")
    assert publish(folder, prefix, "clip", parts=PARTS) == url
    assert "clips.zarr/c/0/0" in names(url)


def test_what_workers_wrote_is_brought_here_and_uploaded_no_second_time(
    folder: Path, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = published.new_prefix(prefix, "clip")
    files, root = filesystem(written)
    for name in ("clips.zarr/zarr.json", "clips.zarr/c/0/0"):
        files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        files.pipe_file(f"{root}/{name}", (folder / name).read_bytes())
    here = tmp_path / "here"
    assert published.fetch(written, here, "fetching") == sum(
        (folder / name).stat().st_size for name in ("clips.zarr/zarr.json", "clips.zarr/c/0/0")
    )
    assert (here / "clips.zarr/c/0/0").read_bytes() == (folder / "clips.zarr/c/0/0").read_bytes()
    (here / "clips.json").write_text("facts")
    published.adopt(here, written, prefix, "clip", parts=PARTS)
    before = names(prefix)
    assert publish(here, prefix, "clip", parts=PARTS) == written
    assert names(prefix) == before


def test_a_customers_copies_are_removed_but_for_those_in_use(folder: Path, prefix: str) -> None:
    neighbour = publish(folder, f"{prefix}-two", "clip")
    old = publish(folder, prefix, "clip", parts=PARTS)
    (folder / "clips.json").write_text("another text")
    new = publish(folder, prefix, "clip", parts=PARTS)
    half = published.new_prefix(prefix, "encode")
    files, root = filesystem(half)
    files.makedirs(root, exist_ok=True)
    files.pipe_file(f"{root}/chunk", b"of a pass that was killed")
    targets = f"{prefix}/targets/0123456789abcdef"
    files.makedirs(filesystem(targets)[1], exist_ok=True)
    files.pipe_file(f"{filesystem(targets)[1]}/targets.json", json.dumps({"key": 1}).encode())
    kept = names(new)
    assert published.remove(prefix, keep=[new, targets]) > 0
    assert names(new) == kept and stored_files(targets)
    assert not stored_files(old) and not stored_files(half)
    assert publish(folder, prefix, "clip", parts=PARTS) == new
    assert published.remove(prefix) > 0
    assert not stored_files(prefix)
    assert stored_files(neighbour), "another customer's"


def test_a_single_file(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "lpips.safetensors").write_bytes(b"weights")
    url = publish(tmp_path / "lpips.safetensors", prefix, "perceptual")
    files, root = filesystem(url)
    assert url.endswith("/lpips.safetensors") and files.cat_file(root) == b"weights"
    assert published.remove(prefix, keep=[url]) == 0


def test_a_missing_bucket_is_a_users_mistake(folder: Path, s3_url: str) -> None:
    boto3.client("s3")  # the environment is the test's
    with pytest.raises(UserError, match="no bucket 'no-such-bucket'"):
        publish(folder, "s3://no-such-bucket/x/demo", "clip")
