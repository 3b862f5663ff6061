"""Each server of a team's stack: what it needs before it starts, and when it is ready."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import psycopg
import requests

from scripts.team.layout import (
    BUCKET,
    REGION,
    USER,
    Layout,
    postgres_programs,
    postgres_user,
)
from scripts.team.supervision import Supervisor
from turbo_vaed.costs.db.migrate import open_database
from turbo_vaed.costs.db.roles import grant
from turbo_vaed.errors import Fault

STOP_ORDER = ["worker", "ray", "mlflow", "prefect", "s3", "postgres"]
"""What uses another one ends before it."""
_READY_SECONDS = 240.0
_DATABASES = {"ledger": "ledger_owner", "mlflow": "mlflow", "prefect": "prefect"}
"""Each with the role that owns it."""
_WHOLE = {"Key": "turbo-vaed", "Value": "whole"}
"""A tag of the bucket, which its server forgets with the objects."""


def start_all(layout: Layout, supervisor: Supervisor, say: Callable[[str], None]) -> None:
    """Start what does not run, and wait until it answers.

    Raises:
        Fault: a server does not get ready; the message names its log.
    """
    make_cluster(layout)
    supervisor.start()
    # Ray gives its node 30 s to start, so nothing heavy starts beside it.
    for name, is_ready in (
        ("postgres", _postgres_answers),
        ("s3", _s3_answers),
        ("ray", _ray_answers),
    ):
        supervisor.start_program(name)
        _wait(layout, supervisor, name, is_ready, say)
    make_databases(layout)
    make_bucket(layout)
    restore_objects(layout)
    for name in ("mlflow", "prefect"):  # side by side: each takes long
        supervisor.start_program(name)
    _wait(layout, supervisor, "mlflow", _mlflow_answers, say)
    make_mlflow_user(layout)
    _wait(layout, supervisor, "prefect", _prefect_answers, say)
    supervisor.start_program("worker")
    _wait(layout, supervisor, "worker", _worker_is_online, say)


def make_cluster(layout: Layout) -> None:
    """The folder of PostgreSQL's data, where it is missing."""
    data = layout.home / "postgres"
    if (data / "PG_VERSION").is_file():
        return
    shutil.rmtree(data, ignore_errors=True)  # of an attempt that was broken off
    data.mkdir(mode=0o700)
    programs = _readable_programs(layout)
    account = pwd.getpwnam(postgres_user())
    os.chown(data, account.pw_uid, account.pw_gid)
    with _secret_for(account.pw_uid, layout) as password:
        subprocess.run(
            [
                programs / "initdb", "-D", data, "--username=postgres", "--auth=scram-sha-256",
                f"--pwfile={password}", "--encoding=UTF8", "--locale=C",
            ],
            cwd="/", check=True, stdout=subprocess.DEVNULL, **_as_user(account),  # type: ignore[call-overload]
        )  # fmt: skip


def make_databases(layout: Layout) -> None:
    """The roles, a database for each, and the ledger's tables with what runs may do to them."""
    with _admin(layout) as admin:
        for role in ("ledger_owner", "ledger", "mlflow", "prefect"):
            known = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
            verb = "ALTER" if known else "CREATE"
            admin.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{layout.secrets[role]}'")  # hex
        for database, owner in _DATABASES.items():
            sql = "SELECT 1 FROM pg_database WHERE datname = %s"
            if not admin.execute(sql, [database]).fetchone():
                admin.execute(f"CREATE DATABASE {database} OWNER {owner}")
            admin.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
        admin.execute("GRANT CONNECT ON DATABASE ledger TO ledger")
    engine = open_database(layout.database("ledger_owner", "ledger"))
    grant(engine, "ledger")
    engine.dispose()


def make_bucket(layout: Layout) -> None:
    client = _s3(layout)
    if BUCKET not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)


def keep_objects(layout: Layout) -> None:
    """Copy the bucket's objects to files: the local S3 has them in memory alone. What was removed
    from the bucket goes from the files too, unless the S3 was restarted since `restore_objects`
    and has lost what it had.

    Raises:
        Fault: some could not be copied; the S3 still has them.
    """
    try:
        make_bucket(layout)
        verb = "sync" if _is_whole(layout) else "copy"
    except botocore.exceptions.BotoCoreError as error:
        raise Fault(
            f"the local S3 does not answer, so that its objects are not kept: {error}"
        ) from error
    _rclone(layout, verb, f":s3:{BUCKET}", str(layout.home / "s3"))


def restore_objects(layout: Layout) -> None:
    """Copy the kept files to the bucket, where it has lost them."""
    if _is_whole(layout):
        return
    kept = layout.home / "s3"
    kept.mkdir(exist_ok=True)
    _rclone(layout, "copy", str(kept), f":s3:{BUCKET}", "--ignore-existing")
    _s3(layout).put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": [_WHOLE]})


def _is_whole(layout: Layout) -> bool:
    """Whether the kept files were restored to the bucket since its server started."""
    try:
        return _WHOLE in _s3(layout).get_bucket_tagging(Bucket=BUCKET)["TagSet"]
    except botocore.exceptions.ClientError:  # no tags, or no bucket
        return False


def _rclone(layout: Layout, verb: str, source: str, target: str, *more: str) -> None:
    program = Path(sys.executable).with_name("rclone")
    options = {"PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": layout.url("s3")}
    given = {**layout.s3_client(), **{f"RCLONE_S3_{k}": v for k, v in options.items()}}
    unchanged = ["--config", "", "--no-update-modtime", "--checksum"]
    done = subprocess.run(
        [program, verb, source, target, *unchanged, *more],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise Fault(f"objects were not copied from {source} to {target}: {done.stderr.strip()}")


def make_mlflow_user(layout: Layout) -> None:
    """Runs log in as a user who is no administrator."""
    answer = requests.post(
        f"{layout.url('mlflow')}/api/2.0/mlflow/users/create",
        json={"username": USER, "password": layout.secrets["mlflow_user"]},
        auth=("admin", layout.secrets["mlflow_admin"]),
        timeout=30,
    )
    if answer.status_code != 200 and "RESOURCE_ALREADY_EXISTS" not in answer.text:
        raise Fault(f"MLflow does not make the user {USER}: {answer.status_code} {answer.text}")


def _postgres_answers(layout: Layout) -> bool:
    with contextlib.suppress(psycopg.OperationalError), _admin(layout):
        return True
    return False


def _s3_answers(layout: Layout) -> bool:
    with contextlib.suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
        _s3(layout).list_buckets()
        return True
    return False


def _mlflow_answers(layout: Layout) -> bool:
    return _status(f"{layout.url('mlflow')}/health") == 200


def _prefect_answers(layout: Layout) -> bool:
    return _status(f"{layout.url('prefect')}/api/health", _prefect_login(layout)) == 200


def _ray_answers(layout: Layout) -> bool:
    """Whether a node has joined: the head is one."""
    from turbo_vaed.cluster.probe import probe
    from turbo_vaed.errors import TurboVaedError

    try:
        return probe(layout.client()["RAY_ADDRESS"], layout.ray_token()) > 0
    except TurboVaedError:
        return False


def _worker_is_online(layout: Layout) -> bool:
    url = f"{layout.url('prefect')}/api/work_pools/turbo-vaed/workers/filter"
    with contextlib.suppress(requests.RequestException):
        answer = requests.post(url, json={}, auth=_prefect_login(layout), timeout=10)
        return answer.ok and any(one["status"] == "ONLINE" for one in answer.json())
    return False


def _prefect_login(layout: Layout) -> tuple[str, str]:
    return USER, layout.secrets["prefect_api"]


def _status(url: str, login: tuple[str, str] | None = None) -> int:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url, auth=login, timeout=10).status_code
    return 0


def _wait(
    layout: Layout,
    supervisor: Supervisor,
    name: str,
    is_ready: Callable[[Layout], bool],
    say: Callable[[str], None],
) -> None:
    began = time.monotonic()
    while not is_ready(layout):
        if supervisor.state(name) == "FATAL" or time.monotonic() - began > _READY_SECONDS:
            log = layout.home / f"logs/{name}.log"
            last = log.read_text(errors="replace").splitlines()[-15:] if log.is_file() else []
            raise Fault(f"{name} does not get ready; the end of {log}:\n" + "\n".join(last))
        time.sleep(0.5)
    say(f"{name:10} ready after {time.monotonic() - began:.0f} s")


def _s3(layout: Layout):  # type: ignore[no-untyped-def]
    return boto3.client(
        "s3",
        endpoint_url=layout.url("s3"),
        aws_access_key_id=layout.secrets["s3_key"],
        aws_secret_access_key=layout.secrets["s3_secret"],
        region_name=REGION,
    )


def _admin(layout: Layout) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host="127.0.0.1",
        port=layout.ports["postgres"],
        user="postgres",
        password=layout.secrets["postgres"],
        dbname="postgres",
        autocommit=True,
        connect_timeout=5,
    )


def _readable_programs(layout: Layout) -> Path:
    """PostgreSQL's programs; a copy where the user whom root runs them as cannot read them."""
    programs = postgres_programs(layout.home)
    hidden = any(not above.stat().st_mode & 0o001 for above in programs.parents)
    if os.geteuid() == 0 and hidden and not programs.is_relative_to(layout.home):
        shutil.copytree(programs.parent, layout.home / "programs", symlinks=True)
        return layout.home / "programs/bin"
    return programs


def _as_user(account: pwd.struct_passwd) -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def _secret_for(uid: int, layout: Layout) -> Iterator[Path]:
    """The administrator's password in a file that `initdb` may read, for as long as it does."""
    path = layout.home / "initdb-password"
    path.touch(0o600)
    os.chown(path, uid, -1)
    try:
        path.write_text(layout.secrets["postgres"])
        yield path
    finally:
        path.unlink()
