"""What `turbo-vaed doctor` says of servers that are not there, want a login, or lack something."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests import configs
from tests.loopback import free_port
from turbo_vaed.cli import endpoints
from turbo_vaed.cli.endpoints import Warned
from turbo_vaed.cluster.probe import token_fault
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.errors import Unreachable, UserError
from turbo_vaed.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "TURBO_VAED_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".dvc").mkdir()
    return Settings.from_environment(configs.copy_to(tmp_path))


@pytest.fixture
def nobody() -> str:
    """host:port where nothing listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[int, str]]]]:
    """The URL of a server, and what it answers to paths that begin so: 401 to all others."""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = [one for path, one in answers.items() if self.path.startswith(path)]
            status, body = given[0] if given else (401, "You are not authenticated.")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body.encode())

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", answers
    listening.shutdown()
    listening.server_close()


def test_what_is_not_set_is_embedded_and_no_fault(settings, monkeypatch):
    with temporary_settings({PREFECT_API_URL: None}):
        assert "own" in endpoints.prefect(settings)
    assert "own" in endpoints.ray(settings)
    assert "work/NAME/checkpoints" in endpoints.checkpoints(settings)
    assert "SQLite" in endpoints.ledger(settings)


def test_a_prefect_server_that_wants_a_login(settings, server):
    url, _ = server
    with (
        temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_API_AUTH_STRING: "ann:wrong"}),
        pytest.raises(UserError, match="PREFECT_API_AUTH_STRING"),
    ):
        endpoints.prefect(settings)


def test_a_prefect_server_without_a_pool_or_a_worker(settings, server):
    url, answers = server
    with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        answers["/api"] = (404, "{}")
        with pytest.raises(Warned, match="schedule sync"):
            endpoints.prefect(settings)
        pool = '{"name": "turbo-vaed", "type": "process", "id": "%s"}' % ("0" * 32)
        answers.clear()
        answers["/api/work_pools/turbo-vaed/workers"] = (200, '[{"name":"a","status":"OFFLINE"}]')
        answers["/api/work_pools/turbo-vaed"] = (200, pool)
        answers["/"] = (404, "{}")
        with pytest.raises(Warned, match="prefect worker start"):
            endpoints.prefect(settings)
        answers["/api/work_pools/turbo-vaed/workers"] = (200, '[{"name":"a","status":"ONLINE"}]')
        assert endpoints.prefect(settings).endswith("a")


def test_a_prefect_server_that_is_not_there_or_none(settings, server, nobody):
    for url in (f"http://{nobody}/api", server[0]):
        server[1]["/"] = (502, "")
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(Unreachable, match="PREFECT_API_URL"),
        ):
            endpoints.prefect(settings)


@pytest.mark.slow  # imports MLflow
def test_an_mlflow_server_that_wants_a_login(settings, server, nobody, monkeypatch):
    url, answers = server
    answers["/health"] = (200, "OK")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME") as found:
        endpoints.mlflow(
            dataclasses.replace(settings, mlflow_tracking_uri=url.replace("//", "//ann:hidden@"))
        )
    assert "hidden" not in str(found.value)
    with pytest.raises(Unreachable, match="MLFLOW_TRACKING_URI"):
        endpoints.mlflow(dataclasses.replace(settings, mlflow_tracking_uri=f"http://{nobody}"))


@pytest.mark.slow
def test_an_mlflow_server_that_does_not_reach_its_artifacts(settings, server, monkeypatch):
    url, answers = server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answers |= {"/health": (200, "OK"), "/api/2.0/mlflow/experiments": (200, "{}")}
    there = dataclasses.replace(settings, mlflow_tracking_uri=url)
    answers["/api/2.0/mlflow-artifacts"] = (500, "{}")
    with pytest.raises(Exception, match="artifacts-destination"):
        endpoints.mlflow(there)
    answers["/api/2.0/mlflow-artifacts"] = (200, '{"files": []}')
    assert endpoints.mlflow(there) == "a server, with its artifacts"


@pytest.mark.slow  # starts an S3
def test_buckets_of_checkpoints_and_of_dvc(settings, s3_url, nobody, monkeypatch):
    there = dataclasses.replace(settings, checkpoints_url=s3_url)
    assert endpoints.checkpoints(there) == s3_url
    wrong = dataclasses.replace(settings, checkpoints_url="s3://no-such-bucket/x")
    with pytest.raises(UserError, match="no bucket no-such-bucket"):
        endpoints.checkpoints(wrong)
    config = settings.root / ".dvc/config"
    config.write_text(
        "[core]\n    remote = team\n['remote \"team\"']\n    url = s3://nowhere/dvc\n"
    )
    with pytest.raises(UserError, match=r"no bucket nowhere.*remote team"):
        endpoints.dvc_remote(settings)
    config.write_text(config.read_text() + f"    endpointurl = http://{nobody}\n")
    with pytest.raises(Unreachable, match=nobody):
        endpoints.dvc_remote(settings)


def test_an_s3_that_refuses_the_keys(settings, server, monkeypatch):
    url, answers = server
    answers["/"] = (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ann")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="SignatureDoesNotMatch"):
        endpoints.checkpoints(dataclasses.replace(settings, checkpoints_url="s3://bucket/x"))


def test_a_checkout_whose_outputs_are_on_one_disk_only(settings):
    with pytest.raises(UserError, match="dvc remote add"):
        endpoints.dvc_remote(settings)
    (settings.root / ".dvc/config").write_text(
        "[core]\n    remote = here\n['remote \"here\"']\n    url = ../state/remote\n"
    )
    assert "state/remote" in endpoints.dvc_remote(settings)


def test_tokens_that_cannot_be_read(tmp_path):
    assert token_fault({}) is None
    assert token_fault({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}) is None
    path = tmp_path / "token"
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    assert str(path) in (token_fault(given) or "")
    path.touch()
    assert "empty" in (token_fault(given) or "")
    path.write_text("secret")
    assert token_fault(given) is None


def test_rays_client_is_refused(settings):
    address = "ray://127.0.0.1:10001"
    with pytest.raises(UserError, match="HOST:PORT"):
        endpoints.ray(dataclasses.replace(settings, ray_address=address))
    with pytest.raises(UserError, match="HOST:PORT"), ray_session(address):
        pass


@pytest.mark.slow
def test_a_ray_that_asks_for_no_token_or_is_not_there(settings, ray_cluster, nobody, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(Warned, match="RAY_AUTH_MODE=token"):
        endpoints.ray(dataclasses.replace(settings, ray_address=ray_cluster.address))
    with pytest.raises(Unreachable, match=nobody):
        endpoints.ray(dataclasses.replace(settings, ray_address=nobody))


def test_postgresql_means_the_driver_that_we_install(settings, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:secret@host/mlflow")
    found = Settings.from_environment(settings.root).mlflow_tracking_uri
    assert found == "postgresql+psycopg://ann:secret@host/mlflow"
