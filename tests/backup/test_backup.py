"""Backups: what they hold, what verifying finds wrong, and what comes back of what was lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import sqlalchemy as sa
import yaml

from tests import configs
from tests.costs.conftest import Postgres
from tests.planning.customer import charge, local
from tests.registry.stored import Make, artifact, put
from turbo_vaed.backup import databases, restore
from turbo_vaed.backup.create import create, verify
from turbo_vaed.backup.places import Places, places
from turbo_vaed.backup.store import Store
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.db.roles import grant
from turbo_vaed.errors import CorruptFile, Refused, UserError
from turbo_vaed.registry.promotion import audit, promote
from turbo_vaed.settings import Settings

LIST = json.dumps([{"md5": hashlib.md5(b"weights").hexdigest(), "relpath": "student"}])
CUSTOMER = "demo"


def quiet(_: str) -> None:
    pass


def add_object(folder: Path, content: bytes, suffix: str = "") -> str:
    """Into a remote or a cache of DVC, by its MD5; its name."""
    md5 = hashlib.md5(content).hexdigest()
    path = folder / "files/md5" / md5[:2] / (md5[2:] + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5 + suffix


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, make: Make) -> Path:
    root = configs.copy_to(tmp_path / "checkout")
    (root / "dvc.yaml").touch()
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("['remote \"main\"']\n    url = ../state/remote\n")
    add_object(root / "state/remote/demo", b"weights")
    name = add_object(root / "state/remote/demo", LIST.encode(), ".dir")
    lock = {"stages": {"distill": {"outs": [{"path": "work/demo/distill", "md5": name}]}}}
    (root / "customers/demo").mkdir(parents=True)
    (root / "customers/demo/dvc.lock").write_text(yaml.safe_dump(lock))
    (root / "work/demo/params").mkdir(parents=True)
    (root / "work/demo/params/clip.yaml").write_text("size: 64\n")
    (root / "work/demo/run.json").write_text("{}")
    shutil.copyfile(empty_store, root / "state/mlflow.db")
    settings = local(root)
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge("gate", "demo-1", 0, 45))
    put(settings.mlflow_tracking_uri, make())
    promote(tracking_uri=settings.mlflow_tracking_uri, customer=CUSTOMER, version=1)
    return root


@pytest.fixture
def here(root: Path) -> Places:
    return places(local(root))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "kept"))


def fetch() -> int:
    """In place of `dvc pull`, which tests/drills calls for real."""
    return 0


def kept(store: Store, pick: Callable[[dict[str, Any]], str]) -> Path:
    """The file of a content of the newest backup."""
    sha256 = pick(store.read()[1])
    return Path(store.url) / "contents" / sha256[:2] / sha256


def _object(document: dict[str, Any]) -> str:
    files = document["trees"]["remote main"]["files"]
    return str(next(one["sha256"] for path, one in files.items() if not path.endswith(".dir")))


def _program(document: dict[str, Any]) -> str:
    files = document["trees"]["artifacts"]["files"]
    return str(next(one["sha256"] for path, one in files.items() if path.endswith(".pte")))


def _ledger(document: dict[str, Any]) -> str:
    return str(document["databases"]["ledger"]["sha256"])


def test_everything_lost_comes_back(root: Path, here: Places, store: Store) -> None:
    name, problems = create(here, store, report=quiet)
    assert not problems and verify(store) == (name, [])
    kept = [path for path in Path(store.url).rglob("*") if path.is_file()]
    assert kept and not any(path.stat().st_mode & 0o077 for path in kept), "dumps of databases"
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".db"}
    for lost in ("state", "work", "customers"):
        shutil.rmtree(root / lost)
    restore.restore(here, store, fetch=fetch, report=quiet)
    settings = local(root)
    with Ledger.open(settings.ledger_url) as ledger:
        assert ledger.total() == charge("gate", "demo-1", 0, 45).amount_usd
    (row,) = audit(settings.mlflow_tracking_uri, CUSTOMER)
    assert (row.alias, row.wrong) == ("champion", ())
    after = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".db"}
    assert {p: after.get(p) for p in before if "-wal" not in p.name and "-shm" not in p.name} == {
        p: content for p, content in before.items() if "-wal" not in p.name and "-shm" not in p.name
    }


def test_a_second_backup_copies_only_what_has_changed(
    root: Path, here: Places, store: Store
) -> None:
    create(here, store, report=quiet)
    contents = store.contents()
    (root / "work/demo/run.json").write_text('{"run_id": "demo-2"}')
    create(here, store, report=quiet)
    assert len(store.contents()) == len(contents) + 1


@pytest.mark.parametrize("pick", [_object, _program, _ledger])
def test_a_content_that_was_altered_or_lost_is_found(
    here: Places, store: Store, pick: Callable[[dict[str, Any]], str], root: Path
) -> None:
    name, _ = create(here, store, report=quiet)
    path = kept(store, pick)
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    _, problems = verify(store)
    assert len(problems) == 1 and "altered" in problems[0]
    with pytest.raises(CorruptFile, match="not whole"):
        restore.restore(here, store, fetch=fetch, replace=True, report=quiet)
    path.unlink()
    assert "missing" in verify(store, name)[1][0]


def test_an_altered_document_is_refused(here: Places, store: Store) -> None:
    name, _ = create(here, store, report=quiet)
    path = Path(store.url) / f"backups/{name}.json"
    path.write_text(path.read_text().replace("demo", "domo"))
    with pytest.raises(CorruptFile, match="altered"):
        verify(store)


def test_what_a_lock_names_and_no_remote_has_is_said(
    root: Path, here: Places, store: Store
) -> None:
    weights = next(p for p in (root / "state/remote").rglob("*") if p.is_file() and not p.suffix)
    weights.unlink()
    assert "1 files are missing" in create(here, store, report=quiet)[1][0]
    add_object(root / "state/remote/demo", LIST.encode(), ".dir")
    add_object(root / ".dvc/cache", b"weights")  # of a run that has not pushed it yet
    assert create(here, store, report=quiet)[1] == []


def test_a_version_whose_package_or_verdict_is_not_the_registered_one_is_said(
    root: Path, here: Places, store: Store, make: Make
) -> None:
    uri = here.tracking_uri
    second = put(uri, make(b"another program"))
    artifact(uri, second, "package/decoder.pte").write_bytes(b"a third program")
    artifact(uri, second, "verdict.json").unlink()
    problems = create(here, store, report=quiet)[1]
    assert len(problems) == 2 and all("version 2" in one for one in problems)
    assert create(here, store, without=["artifacts"], report=quiet)[1] == []


def test_nothing_that_is_there_is_replaced_unasked(root: Path, here: Places, store: Store) -> None:
    create(here, store, report=quiet)
    params = root / "params.yaml"
    before = params.read_text()
    params.write_text(before + "# edited since\n")
    with Ledger.open(local(root).ledger_url) as ledger:
        ledger.add(charge("gate", "demo-2", 50, 60))
    with pytest.raises(Refused, match=r"params\.yaml"):
        restore.restore(here, store, fetch=fetch, report=quiet)
    assert "edited" in params.read_text()
    restore.restore(here, store, fetch=fetch, replace=True, report=quiet)
    assert params.read_text() == before
    with Ledger.open(local(root).ledger_url) as ledger:
        assert len(ledger.charges()) == 1


@pytest.mark.parametrize("databases_here", [{"ledger": "postgresql://other/ledger"}, {}])
def test_a_database_of_another_kind_is_refused_before_anything_is_touched(
    root: Path, here: Places, store: Store, databases_here: dict[str, str]
) -> None:
    create(here, store, report=quiet)
    params = root / "params.yaml"
    params.unlink()
    elsewhere = dataclasses.replace(here, databases=databases_here)
    with pytest.raises(UserError, match="--mlflow-database"):
        restore.restore(elsewhere, store, fetch=fetch, replace=True, report=quiet)
    assert not params.exists()


def test_a_server_whose_places_are_not_known_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    settings = Settings.from_environment(root)
    with pytest.raises(UserError, match="--mlflow-database"):
        places(settings)
    found = places(settings, mlflow_database="sqlite:///x.db", mlflow_artifacts="s3://bucket/a")
    assert found.trees["artifacts"] == "s3://bucket/a"
    with pytest.raises(UserError, match="expected some of"):
        create(found, Store(str(root / "kept")), without=["remote"], report=quiet)


@pytest.mark.slow
def test_buckets_are_backed_up_into_a_bucket_and_come_back(root: Path, s3_url: str) -> None:
    bucket = s3_url.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3")
    remote = root / "state/remote"
    for path in [p for p in remote.rglob("*") if p.is_file()]:
        client.upload_file(str(path), bucket, f"dvc/{path.relative_to(remote)}")
    shutil.rmtree(remote)
    (root / ".dvc/config").write_text(f"['remote \"main\"']\n    url = s3://{bucket}/dvc\n")
    here, store = places(local(root)), Store(f"s3://{bucket}/kept")
    name, problems = create(here, store, report=quiet)
    assert not problems and store.names() == [name]
    had = {o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix="dvc/")["Contents"]}
    for key in had:
        client.delete_object(Bucket=bucket, Key=key)
    restore.restore(here, store, fetch=fetch, replace=True, report=quiet)
    found = {o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix="dvc/")["Contents"]}
    assert found == had and len(had) == 2


def test_a_ledger_on_postgresql_is_dumped_lost_and_restored(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{postgres.programs}{os.pathsep}{os.environ['PATH']}")
    url, dump = postgres.new_database(), tmp_path / "dump"
    with Ledger.open(url) as ledger:
        ledger.add(charge("gate", "demo-1", 0, 45))
        total = ledger.total()
    owner, role = sa.create_engine(url), f"run_{sa.make_url(url).database}"
    with owner.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    grant(owner, role)
    owner.dispose()
    of_runs = sa.make_url(url).set(username=role, password="x")
    assert databases.dump(of_runs.render_as_string(hide_password=False), dump)
    assert databases.check("postgresql", dump) == ""
    fresh = postgres.new_database()
    assert databases.is_empty(fresh) and not databases.is_empty(url)
    for target in (fresh, url):  # an empty one, and in place of what is there
        databases.restore("postgresql", dump, target)
        with Ledger.open(target) as ledger:
            assert ledger.total() == total
            ledger.add(charge("gate", "demo-2", 50, 60))  # its triggers let charges be added
    whole = dump.read_bytes()
    dump.write_bytes(whole[: len(whole) * 9 // 10])
    assert databases.check("postgresql", dump)
    with pytest.raises(UserError, match="the dump is of sqlite"):
        databases.restore("sqlite", dump, url)
