"""A team's stack, started for real: two scheduled customers on PostgreSQL, MLflow with a login, S3,
Prefect with a login, a worker and a Ray head with a token, and what each of them has afterwards.

One stack serves all tests in order, as a person would use it; the last one takes it down.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import psutil
import psycopg
import pytest
import requests
import sqlalchemy as sa

from scripts.team import layout as team
from scripts.team.customers import CUSTOMERS
from scripts.team.layout import BUCKET, PORTS, USER, Layout
from scripts.team.supervision import Supervisor
from tests.e2e.checkout import ROOT
from turbo_vaed.cluster.probe import probe
from turbo_vaed.errors import UserError

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]


def verb(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.team", name], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def stack() -> Iterator[Layout]:
    """Its servers run; no port is fixed."""
    # Not pytest's folder: PostgreSQL, which is not root, must be able to enter it.
    home = Path(tempfile.mkdtemp(prefix="turbo-vaed-team-"))
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURBO_VAED_TEAM_HOME", str(home / "team"))
        for name in PORTS:
            patch.setenv(f"TURBO_VAED_TEAM_{name.upper()}_PORT", "0")
        try:
            done = verb("up")
            assert done.returncode == 0, done.stdout + done.stderr
            found = team.find()
            assert found is not None
            yield found
        finally:
            verb("clean")
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def first(stack: Layout) -> str:
    """Both customers have run; what was printed of it."""
    done = verb("run")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ends(printed: str) -> dict[str, str]:
    last = [line.split() for line in printed.splitlines() if line.split()[0] in CUSTOMERS]
    return {words[0]: words[1] for words in last}


def charges(stack: Layout) -> dict[str, int]:
    url = sa.make_url(stack.client()["TURBO_VAED_LEDGER_URL"])
    with psycopg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False)
    ) as ledger:
        return dict(
            ledger.execute("SELECT customer, count(*) FROM charges GROUP BY customer").fetchall()
        )


def s3(stack: Layout):
    return boto3.client(
        "s3",
        endpoint_url=stack.url("s3"),
        aws_access_key_id=stack.secrets["s3_key"],
        aws_secret_access_key=stack.secrets["s3_secret"],
        region_name="us-east-1",
    )


def buckets(stack: Layout) -> list[str] | None:
    try:
        return [one["Name"] for one in s3(stack).list_buckets()["Buckets"]]
    except botocore.exceptions.EndpointConnectionError:
        return None


def mlflow(stack: Layout, path: str, **given: object) -> requests.Response:
    return requests.get(f"{stack.url('mlflow')}/api/2.0/{path}", timeout=60, **given)  # type: ignore[arg-type]


def test_two_scheduled_customers_pass_the_gate(first):
    assert ends(first) == dict.fromkeys(CUSTOMERS, "Passed")


def test_what_they_cost_is_in_postgresql_where_no_run_can_change_it(stack, first):
    assert set(charges(stack)) == set(CUSTOMERS)
    url = sa.make_url(stack.client()["TURBO_VAED_LEDGER_URL"]).set(drivername="postgresql")
    with (
        psycopg.connect(url.render_as_string(hide_password=False)) as ledger,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        ledger.execute("DELETE FROM charges")


def test_versions_are_in_mlflow_and_their_files_in_s3_through_the_server(stack, first):
    login = (USER, stack.secrets["mlflow_user"])
    found = mlflow(stack, "mlflow/registered-models/search", auth=login).json()
    names = {one["name"] for one in found["registered_models"]}
    assert all(any(customer in name for name in names) for customer in CUSTOMERS), names
    listed = s3(stack).list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")
    (key, *_) = [
        one["Key"] for one in listed["Contents"] if one["Key"].endswith("/package/package.json")
    ]
    stored = s3(stack).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    path = f"mlflow-artifacts/artifacts/{key.removeprefix('mlflow/')}"
    assert mlflow(stack, path, auth=login).content == stored
    assert json.loads(stored)["files"]


def test_outputs_and_checkpoints_are_in_s3(stack, first):
    client = s3(stack)
    for prefix in (f"{kind}/{name}/" for kind in ("dvc", "checkpoints") for name in CUSTOMERS):
        assert client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"], prefix


def test_no_server_answers_a_stranger(stack, tmp_path):
    assert mlflow(stack, "mlflow/registered-models/search").status_code == 401
    assert mlflow(stack, "mlflow-artifacts/artifacts").status_code == 401
    flows = requests.post(f"{stack.url('prefect')}/api/flow_runs/filter", json={}, timeout=30)
    assert flows.status_code == 401
    address = stack.client()["RAY_ADDRESS"]
    wrong = tmp_path / "token"
    wrong.write_text("guessed" * 8)
    for given in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")},
    ):
        with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
            probe(address, given)
    assert probe(address, stack.ray_token()) == 1
    join = (
        f"from turbo_vaed.cluster.session import ray_session\nwith ray_session({address!r}): pass"
    )
    joined = subprocess.run(  # Ray reads a token once per process
        [sys.executable, "-c", join],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
        capture_output=True,
        text=True,
    )
    assert "UserError" in joined.stderr and str(wrong) in joined.stderr


def test_no_program_has_another_ones_secrets(stack):
    owners = {
        "worker": ("ledger", "mlflow_user", "prefect_api", "s3_key", "s3_secret"),
        "ray": ("s3_key", "s3_secret"),
        "mlflow": ("mlflow", "mlflow_admin", "mlflow_cookie", "s3_key", "s3_secret"),
        "prefect": ("prefect", "prefect_api"),
        "s3": (),
        "postgres": (),
    }
    for program in Supervisor(stack).programs():
        environment = str(psutil.Process(program["pid"]).environ())
        own = {name for name, secret in stack.secrets.items() if secret in environment}
        assert own == set(owners[program["name"]]), program["name"]
    for file in (stack.team_env, *(stack.home / "env").iterdir()):
        assert file.stat().st_mode & 0o077 == 0, file


def test_doctor_finds_every_endpoint_in_order(stack, first):
    found = subprocess.run(
        [sys.executable, "-m", "turbo_vaed.cli", "doctor", "--format", "json"],
        cwd=stack.home / "checkout",
        env={**os.environ, **team.read_env(stack.team_env)},
        capture_output=True,
        text=True,
    )
    rows = {row["what"]: row for row in json.loads(found.stdout)}
    for what in ("ledger", "MLflow's store", "Prefect's server", "Ray cluster", "checkpoints"):
        assert rows[what]["state"] == "ok", rows[what]
    assert rows["DVC remote"]["state"] == "ok", rows["DVC remote"]


def test_a_second_run_finds_nothing_to_do_and_costs_nothing(stack, first):
    before = charges(stack)
    done = verb("run")
    assert ends(done.stdout) == dict.fromkeys(CUSTOMERS, "Unchanged"), done.stdout + done.stderr
    assert charges(stack) == before


def test_a_server_that_dies_comes_back(stack):
    def process() -> int:
        return next(int(p["pid"]) for p in Supervisor(stack).programs() if p["name"] == "worker")

    dead = process()
    os.kill(dead, signal.SIGKILL)
    while process() in (dead, 0):
        time.sleep(0.2)


def test_up_again_changes_nothing(stack):
    before = {one["name"]: one["pid"] for one in Supervisor(stack).programs()}
    environment = stack.team_env.read_text()
    assert verb("up").returncode == 0
    assert {one["name"]: one["pid"] for one in Supervisor(stack).programs()} == before
    assert stack.team_env.read_text() == environment


def test_down_leaves_the_data_and_no_process(stack, first):
    above = psutil.Process(int((stack.home / "supervisord.pid").read_text()))
    processes = [above, *above.children(recursive=True)]
    assert len(processes) > len(PORTS) + 1
    done = verb("down")
    assert done.returncode == 0, done.stderr
    assert not [one for one in processes if one.is_running()]
    left = [p.pid for p in psutil.process_iter() if str(stack.home) in _command_of(p)]
    assert not left
    assert (stack.home / "postgres/PG_VERSION").is_file()
    assert any((stack.home / "s3/mlflow").rglob("package.json")), "kept, to be restored"
    assert not stack.sockets.exists()


def test_objects_come_back_but_for_those_that_were_removed(stack, first):
    assert verb("up").returncode == 0

    def keys() -> set[str]:
        listed = s3(stack).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {one["Key"] for page in listed for one in page.get("Contents", ())}

    (removed, *_), before = sorted(keys()), keys()
    s3(stack).delete_object(Bucket=BUCKET, Key=removed)
    assert verb("down").returncode == 0
    assert verb("up").returncode == 0
    assert keys() == before - {removed}
    dead = next(p["pid"] for p in Supervisor(stack).programs() if p["name"] == "s3")
    os.kill(dead, signal.SIGKILL)
    while buckets(stack) != []:
        time.sleep(0.2)
    assert verb("down").returncode == 0
    assert verb("up").returncode == 0
    assert keys() == before - {removed}, "a restarted S3 deletes no kept file"


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
