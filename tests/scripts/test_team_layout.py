"""What a team's stack is made of before anything starts: ports, files of secrets, who may read."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.team import layout
from scripts.team.__main__ import down
from turbo_vaed.errors import Fault, UserError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that PostgreSQL could enter, and any free port for each server."""
    monkeypatch.setenv("TURBO_VAED_TEAM_HOME", str(tmp_path / "team"))
    monkeypatch.setattr(layout, "_check_reachable", lambda folder: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in layout.PORTS:
        monkeypatch.setenv(f"TURBO_VAED_TEAM_{name.upper()}_PORT", "0")
    return tmp_path / "team"


def test_a_stack_keeps_its_ports_and_secrets(home):
    made = layout.prepare()
    assert layout.prepare() == made == layout.find()
    assert len({*made.ports.values()}) == len(layout.PORTS)
    assert len({*made.secrets.values()}) == len(layout.SECRETS)
    assert layout.read_env(made.team_env) == made.client()


def test_nobody_else_reads_a_secret(home):
    made = layout.prepare()
    holders = [
        path
        for path in home.rglob("*")
        if path.is_file() and any(secret in path.read_text() for secret in made.secrets.values())
    ]
    assert {"team.env", "stack.json", "mlflow.env", "ray-token"} <= {path.name for path in holders}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*holders, home / "env"))
    of_all = str(made.environment())
    assert not [name for name, secret in made.secrets.items() if secret in of_all]


def test_the_supervisor_gets_what_its_config_asks_for_and_nothing_of_the_shell(home, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "AWS_PROFILE", "RAY_ADDRESS", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "of another stack")
    given = layout.prepare().environment()
    asked = set(re.findall(r"%\(ENV_(\w+)\)s", layout.CONFIG.read_text(encoding="utf-8")))
    assert asked <= given.keys()
    assert "of another stack" not in given.values()


def test_ports_that_are_taken_or_none(home, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        usual = taken.getsockname()[1]
        monkeypatch.setitem(layout.PORTS, "mlflow", usual)
        monkeypatch.delenv("TURBO_VAED_TEAM_MLFLOW_PORT")
        assert layout._choose_ports()["mlflow"] not in (usual, 0)
    monkeypatch.setenv("TURBO_VAED_TEAM_RAY_PORT", "many")
    with pytest.raises(UserError, match="TURBO_VAED_TEAM_RAY_PORT"):
        layout._choose_ports()


def test_a_folder_that_postgresql_cannot_enter_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "closed/team").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    with pytest.raises(UserError, match="TURBO_VAED_TEAM_HOME"):
        layout._check_reachable(tmp_path / "closed/team")


def test_a_folder_of_something_else_is_not_taken_for_a_stacks(home):
    """`clean` would remove it."""
    home.mkdir()
    (home / "thesis.txt").touch()
    with pytest.raises(UserError, match="TURBO_VAED_TEAM_HOME"):
        layout.prepare()
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def test_what_runs_without_its_supervisor_keeps_its_data(home):
    made = layout.prepare()
    server = subprocess.Popen(["tail", "-f", home / "env/stack.json"], stdout=subprocess.DEVNULL)
    try:
        with pytest.raises(Fault, match=str(server.pid)):
            down(made, remove=True)
        assert (home / "env/stack.json").is_file()
    finally:
        server.kill()
        server.wait()
    assert down(made, remove=True) == 0 and not home.exists()


@pytest.mark.slow
def test_mlflow_hashes_a_password_once_a_minute_and_not_for_each_request(home, monkeypatch):
    layout.prepare()
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(home / "env/mlflow-auth.ini"))
    code = (
        "from mlflow.server.auth.config import read_auth_config\n"
        "assert read_auth_config().auth_cache_ttl_seconds == 60"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
