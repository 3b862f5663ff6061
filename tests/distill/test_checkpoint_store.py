"""A store of checkpoints, in a folder and in a bucket: what it returns is whole, or reported."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import re
import time
from dataclasses import asdict, replace
from decimal import Decimal

import boto3
import fsspec
import pytest
import s3fs
import torch

from tests.distill.checkpoints import make_checkpoint
from tests.drills.faults import FlakyS3
from turbo_vaed.distill import checkpoints
from turbo_vaed.distill.checkpoints import Store, backoff_seconds
from turbo_vaed.errors import Busy, CorruptFile, Fault, Unreachable, UserError


@pytest.fixture(params=["folder", "bucket"])
def url(request, tmp_path):
    """Where a store may be."""
    if request.param == "folder":
        return str(tmp_path / "run" / "checkpoints")
    return request.getfixturevalue("s3_url")


@pytest.fixture
def raw(url):
    """The objects of the store behind its back."""
    return Raw(url)


class Raw:
    def __init__(self, url):
        self.files, self.path = fsspec.url_to_fs(url, skip_instance_cache=True)

    def names(self):
        self.files.invalidate_cache()
        return {path.rpartition("/")[2] for path in self.files.ls(self.path, detail=False)}

    def read(self, name):
        return self.files.cat_file(f"{self.path}/{name}")

    def write(self, name, data):
        self.files.makedirs(self.path, exist_ok=True)
        self.files.pipe_file(f"{self.path}/{name}", data)


def never(text):
    pytest.fail(f"trouble was reported: {text}")


def steps(store):
    return [int(name[:8]) for name in store.names()]


def plain(state):
    """Its values with the tensors as lists, to compare."""

    def of(value):
        if isinstance(value, torch.Tensor):
            return str(value.dtype), value.tolist()
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items()}
        return [of(item) for item in value] if isinstance(value, list) else value

    return of(asdict(state))


def test_a_checkpoint_is_read_back_as_written(url, raw):
    state = make_checkpoint(3)
    saved = Store(url).write(state)
    data = raw.read(saved.name)
    assert saved.name == f"00000003-{hashlib.sha256(data).hexdigest()}.pt"
    assert saved.bytes == len(data)
    name, found = Store(url).newest(never)
    assert name == saved.name
    assert plain(found) == plain(state)


def test_the_history_of_an_earlier_version_gets_its_dollars(tmp_path):
    """Or its price of quality would be unknown, and a run that has ended by it would train on."""
    store = Store(str(tmp_path))
    rows = [{"step": step, "loss": 0.1, "step_usd": "0.002"} for step in (1, 2, 3)]
    store.write(replace(make_checkpoint(3), history=[*rows, {"step": 4, "training_usd": "0.007"}]))
    _, found = store.newest(never)
    usd = [Decimal(row["training_usd"]) for row in found.history]
    assert usd == [Decimal(text) for text in ("0.002", "0.004", "0.006", "0.007")]


def test_an_empty_store_has_no_newest_checkpoint(url):
    assert Store(url).names() == []
    assert Store(url).newest(never) is None


def test_newest_is_the_latest_step(url):
    store = Store(url, keep=9)
    for step in (9, 10, 99_999_999, 100_000_000):
        store.write(make_checkpoint(step))
    assert [int(name.partition("-")[0]) for name in store.names()] == [
        100_000_000, 99_999_999, 10, 9
    ]  # fmt: skip
    assert store.newest(never)[1].step == 100_000_000


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_read(url, raw, damage):
    store = Store(url)
    store.write(make_checkpoint(1))
    bad = store.write(make_checkpoint(2)).name
    data = bytearray(raw.read(bad))
    data[len(data) // 2] ^= 1
    raw.write(bad, {"cut short": bytes(data[:-100]), "one bit": bytes(data), "empty": b""}[damage])
    with pytest.raises(CorruptFile, match="sha256"):
        store.read(bad)
    reported = []
    assert store.newest(reported.append)[1].step == 1
    assert len(reported) == 1 and bad in reported[0]


def test_a_file_with_a_valid_digest_that_is_no_checkpoint_is_skipped(url, raw):
    store = Store(url)
    store.write(make_checkpoint(1))
    for data in (b"some other file", b""):
        raw.write(f"00000002-{hashlib.sha256(data).hexdigest()}.pt", data)
    reported = []
    assert store.newest(reported.append)[1].step == 1
    assert len(reported) == 2 and all("00000002-" in text for text in reported)


def test_a_checkpoint_of_another_version_is_refused(url, raw, tmp_path):
    torch.save({"step": 2, "weights": {}}, tmp_path / "old.pt")
    data = (tmp_path / "old.pt").read_bytes()
    raw.write(f"00000002-{hashlib.sha256(data).hexdigest()}.pt", data)
    with pytest.raises(UserError, match=r"00000002-.*another version"):
        Store(url).newest(never)


def test_checkpoints_before_a_step_can_be_removed(url):
    store = Store(url)
    for step in (1, 2, 3):
        store.write(make_checkpoint(step))
    store.clear(before=3)
    assert steps(store) == [3]


def test_foreign_files_are_left_alone(url, raw):
    foreign = {"notes.txt", "00000009-abc.pt", "latest.pt"}
    for name in foreign:
        raw.write(name, b"mine")
    store = Store(url, keep=1)
    for step in (1, 2):
        store.write(make_checkpoint(step))
    assert steps(store) == [2]
    store.clear()
    assert store.names() == []
    assert raw.names() == foreign


def test_pruning_keeps_the_last_few_and_the_best(url):
    store = Store(url, keep=2)
    for step in range(1, 7):
        store.write(make_checkpoint(step, best_step=2 if step >= 2 else 1))
    assert steps(store) == [6, 5, 2]


def test_a_run_that_went_back_prunes_its_later_checkpoints(url, raw):
    """Else the spoilt ones would count as the last, and push out what is whole."""
    store = Store(url, keep=2)
    for step in (1, 2, 3, 4):
        store.write(make_checkpoint(step))
    for name in store.names():
        raw.write(name, b"spoilt")
    store.write(make_checkpoint(3, numbers=5))
    store.write(make_checkpoint(4, numbers=5))
    assert steps(store) == [4, 3]
    assert store.newest(never)[1].student["w"].numel() == 5


def test_a_writer_prunes_while_a_reader_lists(url, monkeypatch):
    writer, reader = Store(url, keep=1), Store(url)
    writer.write(make_checkpoint(1))
    names = reader.names

    def listed_too_early():
        found = names()
        if len(found) == 1 and writer.names()[0].startswith("00000001"):
            writer.write(make_checkpoint(2))
        return found

    monkeypatch.setattr(reader, "names", listed_too_early)
    assert reader.newest(never)[1].step == 2


def test_tensors_come_back_on_the_cpu(url, monkeypatch):
    load, options = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **kw: options.append(kw) or load(*a, **kw))
    store = Store(url)
    store.write(make_checkpoint(1))
    store.newest(never)
    assert options == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize("address", ["ftp://host/x", "s3://", "memory://x"])
def test_an_address_that_is_neither_folder_nor_bucket_is_refused(address):
    with pytest.raises(UserError, match=rf"{address}.*s3://BUCKET/PREFIX"):
        Store(address)


def test_keeping_no_checkpoint_is_refused():
    with pytest.raises(UserError, match=r"\b0\b"):
        Store("x", keep=0)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "x"))):
        Store(str(tmp_path / "x")).write(make_checkpoint(1))


@pytest.mark.slow
def test_a_missing_bucket_is_refused_by_its_name(s3_url):
    store = Store("s3://not-there/run")
    for call in (store.names, lambda: store.write(make_checkpoint(1))):
        with pytest.raises(UserError, match="'not-there'"):
            call()


def test_an_impossible_bucket_name_is_refused(s3_url):
    with pytest.raises(UserError, match="s3://no bucket/run"):
        Store("s3://no bucket/run").names()


def test_missing_s3_credentials_are_a_users_mistake(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match=r"no credentials.*AWS_PROFILE"):
        Store(s3_url).names()


def test_an_s3_server_that_is_not_there_is_unreachable(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        Store(s3_url).newest(never, patience_seconds=0)


@pytest.mark.slow
def test_a_failing_s3_server_is_tried_again(monkeypatch):
    with FlakyS3.started("checkpoints") as s3:
        store = Store("s3://checkpoints/run")
        name = store.write(make_checkpoint(1)).name
        s3.is_down, reported = True, []

        def mend(text):
            reported.append(text)
            s3.is_down = False

        assert store.newest(mend)[1].step == 1
        assert len(reported) == 1 and "again" in reported[0]
        s3.is_down = True
        with pytest.raises(Unreachable, match="s3://checkpoints/run"):
            store.read(name)
        monkeypatch.setattr("turbo_vaed.distill.checkpoints.time.sleep", mend)
        assert store.read(name, patience_seconds=60).step == 1


def test_a_large_checkpoint_is_uploaded_in_parts(s3_url, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 * 2**20)
    store = Store(s3_url)
    store.write(make_checkpoint(1, numbers=1_400_000))
    assert "-" in fsspec.url_to_fs(s3_url)[0].info(f"{s3_url}/{store.names()[0]}")["ETag"]
    assert store.newest(never)[1].student["w"].numel() == 1_400_000


def test_a_run_that_another_one_replaced_writes_and_removes_nothing(url):
    late, now = Store(url, token=3), Store(url, token=4)
    late.claim()
    late.write(make_checkpoint(2))
    now.claim()
    now.write(make_checkpoint(1))
    kept = now.names()
    for act in (late.claim, lambda: late.write(make_checkpoint(3)), late.clear):
        with pytest.raises(Busy):
            act()
    assert now.names() == kept and steps(now) == [1]
    Store(url, token=5).claim()


def test_an_upload_that_breaks_off_leaves_nothing(s3_url, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 * 2**20)
    store = Store(s3_url)
    store.write(make_checkpoint(1))
    upload, parts = s3fs.core.S3File._upload_chunk, []

    def broken(file, final=False):
        parts.append(file)
        if len(parts) == 2:
            raise OSError("connection lost")
        return upload(file, final)

    monkeypatch.setattr(s3fs.core.S3File, "_upload_chunk", broken)
    with pytest.raises(Unreachable, match="connection lost"):
        store.write(make_checkpoint(2, numbers=1_400_000))
    assert parts[0].closed  # so that it does not try anew as garbage
    assert steps(store) == [1]
    bucket = s3_url.split("/")[2]
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)


def write_and_stop_in_the_middle(store, state, in_the_middle):
    def stuck(state, file):
        if isinstance(file, checkpoints.Digest):  # of the name
            return serialise(state, file)
        file.write(b"x" * 20_000)
        file.flush()
        in_the_middle.set()
        time.sleep(600)

    serialise, checkpoints.serialise = checkpoints.serialise, stuck
    store.write(state)


def test_a_writer_killed_during_a_write_leaves_no_broken_checkpoint(tmp_path):
    store = Store(str(tmp_path))
    for step in (1, 2):
        store.write(make_checkpoint(step))
    whole = store.names()
    processes = multiprocessing.get_context("fork")
    in_the_middle = processes.Event()
    state = make_checkpoint(3, numbers=100_000)
    writer = processes.Process(
        target=write_and_stop_in_the_middle, args=(store, state, in_the_middle)
    )
    writer.start()
    assert in_the_middle.wait(60)
    writer.kill()
    writer.join()
    partial = set(tmp_path.iterdir()) - {tmp_path / name for name in whole}
    assert [path.stat().st_size > 0 for path in partial] == [True]
    assert store.names() == whole
    assert store.newest(never)[1].step == 2
    store.write(state)
    assert {path.name for path in tmp_path.iterdir()} == set(store.names())


def test_a_write_is_synced_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(
            f"os.{name}", lambda *a, name=name, call=call: (calls.append(name), call(*a))[1]
        )
    Store(str(tmp_path)).write(make_checkpoint(1))
    assert calls == ["fsync", "replace", "fsync"]


def test_an_error_of_the_file_is_not_hidden_by_torch(tmp_path, monkeypatch):
    """Its zip writer raises a RuntimeError of its own where a write fails."""
    serialise = checkpoints.serialise

    class Broken(io.RawIOBase):
        def write(self, data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def to_broken(state, file):
        serialise(state, file if isinstance(file, checkpoints.Digest) else Broken())

    monkeypatch.setattr(checkpoints, "serialise", to_broken)
    with pytest.raises(Fault, match=os.strerror(errno.EIO)):
        Store(str(tmp_path)).write(make_checkpoint(1))
    assert list(tmp_path.iterdir()) == []


def test_backoff():
    assert [backoff_seconds(n) for n in (0, 1, 2, 4, 5, 10_000)] == [0.5, 1, 2, 8, 15, 15]
