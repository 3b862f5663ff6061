from __future__ import annotations

import base64
import functools
import http.server
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.loopback import free_port
from tests.registry.stored import Make, aliases, artifact, edit, put
from turbo_vaed.errors import Fault, GateRefused, Unreachable, UserError
from turbo_vaed.export.package import load_package
from turbo_vaed.registry.client import experiment_id, open_tracking
from turbo_vaed.registry.promotion import audit, model_name, promote, versions


def test_register_logs_the_run_with_its_lineage(store: str, make: Make, tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    lock.write_text("schema: '2.0'\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.html").write_text("<p>")
    made = make()
    found = put(
        store, made, artifacts=[lock, tmp_path / "docs"], params={f"p{n}": n for n in range(230)}
    )
    sha256 = load_package(made[0]).sha256
    assert (found.name, found.version, found.created) == ("turbo-vaed-demo", 1, True)
    assert (found.package_sha256, found.verdict_result) == (sha256, "passes")

    client = MlflowClient(tracking_uri=store)
    run = client.get_run(found.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "turbo-vaed/demo"
    assert run.data.metrics == {"psnr": 30.0, "retention/psnr": 1.0}
    assert len(run.data.params) == 230 and run.data.params["p229"] == "229"
    tags = client.get_model_version("turbo-vaed-demo", "1").tags
    for found_tags in (run.data.tags, tags):
        assert found_tags["git_revision"] == "0123abc" and found_tags["data_sha256"] == "d" * 64
        assert found_tags["package_sha256"] == sha256
        assert found_tags["turbo_vaed_run_id"] == "demo-1"
    assert tags["verdict_result"] == "passes"
    assert artifact(store, found, "dvc.lock").read_text() == lock.read_text()
    assert artifact(store, found, "docs/index.html").read_text() == "<p>"
    assert artifact(store, found, "verdict.json").read_bytes() == made[1].read_bytes()
    assert load_package(artifact(store, found, "package")).sha256 == sha256


def test_artifacts_are_stored_next_to_the_store(store: str, make: Make, tmp_path: Path) -> None:
    found = put(store, make())
    assert artifact(store, found, "package").is_relative_to(tmp_path / "mlartifacts" / "demo")
    assert not Path("mlruns").exists()


def test_the_same_package_and_verdict_is_registered_once(store: str, make: Make) -> None:
    made = make()
    first = put(store, made)
    again = put(store, made, run_id="demo-2", metrics={"psnr": 1.0})
    assert (again.version, again.mlflow_run_id) == (first.version, first.mlflow_run_id)
    assert not again.created
    runs = MlflowClient(tracking_uri=store).search_runs(
        [experiment_id(open_tracking(store), store, "demo")]
    )
    assert len(runs) == 1


def test_what_mlflow_still_takes_for_running_of_the_run_is_ended(store: str, make: Make) -> None:
    """It was away when they ended."""
    client = open_tracking(store)
    experiment = experiment_id(client, store, "demo")
    made = {
        name: client.create_run(experiment, tags={tag: run}).info.run_id
        for name, tag, run in (
            ("a stage", "turbo_vaed.run_id", "demo-1"),
            ("a try to register", "turbo_vaed_run_id", "demo-1"),
            ("of another run", "turbo_vaed.run_id", "demo-2"),
        )
    }
    put(store, make())
    status = {name: client.get_run(run).info.status for name, run in made.items()}
    assert status == {
        "a stage": "FINISHED",
        "a try to register": "KILLED",
        "of another run": "RUNNING",
    }


def test_another_verdict_or_package_is_another_version(store: str, make: Make) -> None:
    put(store, make())
    assert put(store, make(psnr_db=29.9)).version == 2
    assert put(store, make(b"other bytes")).version == 3


def test_the_versions_of_customers_are_separate(store: str, make: Make) -> None:
    put(store, make())
    other = put(store, make(customer="acme"), customer="acme")
    assert (other.name, other.version, other.created) == ("turbo-vaed-acme", 1, True)
    assert [row.version for row in versions(store, "acme")] == [1]
    assert versions(store, "nobody") == ()


def test_a_run_that_fails_to_register_makes_no_version(store: str, make: Make) -> None:
    with pytest.raises(Fault, match=r"MLflow .*sqlite:"):
        put(store, make(), metrics={"not a | metric": 1.0})
    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([experiment_id(client, store, "demo")])
    assert [run.info.status for run in runs] == ["FAILED"]
    assert versions(store, "demo") == ()


def test_a_passing_version_becomes_champion_and_the_old_one_previous(
    store: str, make: Make
) -> None:
    put(store, make(b"1"))
    put(store, make(b"2"))
    first = promote(tracking_uri=store, customer="demo", version=1)
    assert (first.alias, first.reasons, first.previous_champion) == ("champion", (), None)
    second = promote(tracking_uri=store, customer="demo", version=2)
    assert (second.alias, second.previous_champion) == ("champion", 1)
    assert aliases(store) == {"champion": 2, "previous": 1}
    again = promote(tracking_uri=store, customer="demo", version=2)
    assert (again.alias, again.previous_champion) == ("champion", None)
    assert aliases(store) == {"champion": 2, "previous": 1}
    promote(tracking_uri=store, customer="demo", version=1)
    assert aliases(store) == {"champion": 1, "previous": 2}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"psnr_db": 25.0}, "measured 25.00 dB"),
        ({"needs_approval": True}, "approval"),
    ],
)
def test_a_version_that_does_not_pass_is_a_candidate_with_the_reasons(
    store: str, make: Make, changes: dict[str, Any], reason: str
) -> None:
    put(store, make(b"good"))
    promote(tracking_uri=store, customer="demo", version=1)
    put(store, make(b"bad", **changes))
    found = promote(tracking_uri=store, customer="demo", version=2)
    assert found.alias == "candidate" and found.previous_champion is None
    assert any(reason in text for text in found.reasons)
    assert aliases(store) == {"champion": 1, "candidate": 2}
    newest, oldest = versions(store, "demo")
    assert reason in newest.reasons and newest.promotion == "candidate"
    assert oldest.promotion == "champion" and reason not in oldest.reasons
    client = MlflowClient(tracking_uri=store)
    for row in (newest, oldest):
        tags = client.get_model_version("turbo-vaed-demo", str(row.version)).tags
        assert row.verdict_result == tags["verdict_result"]
        assert row.package_sha256 == tags["package_sha256"]
    assert oldest.created_at <= newest.created_at
    assert abs(datetime.now(UTC) - newest.created_at) < timedelta(hours=1)
    audited = {row.alias: row for row in audit(store, "demo")}
    assert {alias: row.version for alias, row in audited.items()} == {"champion": 1, "candidate": 2}
    assert audited["candidate"].wrong == (), "that it does not pass is why it is a candidate"
    assert audited["candidate"].approved_by == audited["candidate"].approved_at == ""


def test_a_champion_set_by_hand_loses_the_alias_when_it_is_promoted(store: str, make: Make) -> None:
    put(store, make(psnr_db=20.0))
    MlflowClient(tracking_uri=store).set_registered_model_alias("turbo-vaed-demo", "champion", "1")
    promote(tracking_uri=store, customer="demo", version=1)
    assert aliases(store) == {"candidate": 1}


def test_users_mistakes_are_refused_by_name(store: str, make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json"):
        put(store, make(), artifacts=[tmp_path / "gone.json"])
    with pytest.raises(UserError, match="'a/b'"):
        put(store, make(), customer="a/b")
    with pytest.raises(UserError, match=r"version 7; .*: none"):
        promote(tracking_uri=store, customer="demo", version=7)
    put(store, make())
    with pytest.raises(UserError, match=r"version 7; .*: 1$"):
        promote(tracking_uri=store, customer="demo", version=7)
    with pytest.raises(UserError, match=r"expected http://…"):
        open_tracking("file:///somewhere")


def test_a_deleted_experiment_is_named(store: str, make: Make) -> None:
    client = open_tracking(store)
    client.delete_experiment(experiment_id(client, store, "demo"))
    with pytest.raises(UserError, match="mlflow experiments restore"):
        put(store, make())


def test_a_store_whose_folder_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match=re.escape(f"{tmp_path}/file")):
        open_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_store_that_is_not_a_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("lecture notes " * 100)
    with pytest.raises(Fault, match=re.escape(f"{tmp_path}/mlflow.db")):
        open_tracking(f"sqlite:///{tmp_path}/mlflow.db")


def test_an_unreachable_server_is_refused_at_once() -> None:
    port = free_port()
    start = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        promote(tracking_uri=f"http://ann:secret@127.0.0.1:{port}", customer="demo", version=1)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert f"http://ann:***@127.0.0.1:{port}" in message and "MLFLOW_TRACKING_URI" in message
    assert "secret" not in message


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_is_unreachable(
    silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turbo_vaed.registry.client.HEALTH_SECONDS", 0.5)
    with pytest.raises(Unreachable, match=rf"{silent_server} .*MLFLOW_TRACKING_URI"):
        open_tracking(silent_server)


@pytest.mark.parametrize("status", [200, 401])
def test_credentials_in_the_uri_reach_the_server(status: int) -> None:
    """`/health` with a password in the URI; what follows is the client's own affair."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        do_POST = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(Fault) as caught:
            open_tracking(f"http://ann:secret@127.0.0.1:{web.server_port}")
        web.shutdown()
    assert "secret" not in str(caught.value) and not isinstance(caught.value, Unreachable)
    assert seen[0] == "Basic " + base64.b64encode(b"ann:secret").decode()


def test_a_server_that_is_not_mlflow_is_refused(tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(Unreachable, match="404 to /health"):
            open_tracking(f"http://127.0.0.1:{web.server_port}")
        web.shutdown()


@pytest.mark.slow
def test_a_registry_over_http_behaves_as_one_on_a_file(
    server: str, make: Make, tmp_path: Path
) -> None:
    """The whole way against a real server, and nothing left in the working folder."""
    before = set(os.listdir())
    made = make()
    first = put(server, made)
    assert first.created and not put(server, made).created
    assert promote(tracking_uri=server, customer="demo", version=1).alias == "champion"
    put(server, make(b"bad", psnr_db=20.0))
    assert promote(tracking_uri=server, customer="demo", version=2).alias == "candidate"
    assert aliases(server) == {"champion": 1, "candidate": 2}
    rows = versions(server, "demo")
    assert [(row.version, row.verdict_result) for row in rows] == [(2, "fails"), (1, "passes")]
    client = MlflowClient(tracking_uri=server, registry_uri=server)
    doctored = Path(client.download_artifacts(first.mlflow_run_id, "verdict.json", str(tmp_path)))
    edit(doctored, lambda d: d.update(needs_approval=False))
    doctored.write_text(doctored.read_text() + " ")
    client.log_artifact(first.mlflow_run_id, str(doctored))
    with pytest.raises(GateRefused, match="verdict has sha256"):
        promote(tracking_uri=server, customer="demo", version=1)
    assert aliases(server) == {"candidate": 2}
    assert set(os.listdir()) == before


def test_the_model_of_a_customer_has_its_name() -> None:
    assert model_name("acme-2") == "turbo-vaed-acme-2"
