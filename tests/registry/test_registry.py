from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from turbo_vaed.errors import CorruptFile, Fault, GateRefused, Unreachable, UserError
from turbo_vaed.export.package import MANIFEST_NAME, load_package
from turbo_vaed.mlflow_runs import experiment_id, open_tracking
from turbo_vaed.registry import (
    Approval,
    RegisteredVersion,
    audit,
    model_name,
    promote,
    register,
    versions,
)

Make = Callable[..., tuple[Path, Path]]


def put(uri: str, made: tuple[Path, Path], **changes: Any) -> RegisteredVersion:
    values: dict[str, Any] = {
        "tracking_uri": uri,
        "run_id": "demo-1",
        "customer": "demo",
        "package_folder": made[0],
        "verdict_path": made[1],
        "metrics": {"psnr": 30.0, "retention/psnr": 1.0},
        "params": {"distill.steps": 400, "clip.size": 128},
        "lineage": {"git_revision": "0123abc", "data_sha256": "d" * 64},
    }
    return register(**{**values, **changes})


def artifact(uri: str, version: RegisteredVersion, path: str) -> Path:
    """Where the store keeps it."""
    run = MlflowClient(tracking_uri=uri).get_run(version.mlflow_run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / path


def aliases(uri: str, customer: str = "demo") -> dict[str, int]:
    return {alias: row.version for row in versions(uri, customer) for alias in row.aliases}


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
    for held in (run.data.tags, tags):
        assert held["git_revision"] == "0123abc" and held["data_sha256"] == "d" * 64
        assert held["package_sha256"] == sha256 and held["turbo_vaed_run_id"] == "demo-1"
    assert tags["verdict_result"] == "passes"
    assert artifact(store, found, "dvc.lock").read_text() == lock.read_text()
    assert artifact(store, found, "docs/index.html").read_text() == "<p>"
    assert artifact(store, found, "verdict.json").read_bytes() == made[1].read_bytes()
    assert load_package(artifact(store, found, "package")).sha256 == sha256


def test_artifacts_stay_beside_the_store(store: str, make: Make, tmp_path: Path) -> None:
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


def test_another_verdict_or_package_is_another_version(store: str, make: Make) -> None:
    put(store, make())
    assert put(store, make(psnr_db=29.9)).version == 2
    assert put(store, make(b"other bytes")).version == 3


def test_customers_are_kept_apart(store: str, make: Make) -> None:
    put(store, make())
    other = put(store, make(customer="acme"), customer="acme")
    assert (other.name, other.version, other.created) == ("turbo-vaed-acme", 1, True)
    assert [row.version for row in versions(store, "acme")] == [1]
    assert versions(store, "nobody") == ()


def test_a_run_that_breaks_is_a_failed_run_and_no_version(store: str, make: Make) -> None:
    with pytest.raises(Fault, match="MLflow at sqlite"):
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


def test_a_person_approves_for_exactly_these_bytes_and_it_is_recorded(
    store: str, make: Make
) -> None:
    approval = Approval(by="ada", reason="seen on three phones")
    put(store, make(b"first", needs_approval=True))
    found = promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    assert (found.alias, found.reasons) == ("champion", ())
    (row,) = audit(store, "demo")
    assert (row.alias, row.approved_by, row.approved_because) == (
        "champion",
        "ada",
        approval.reason,
    )
    assert row.approved_at and row.wrong == ()
    # It holds for the version, whoever asks again, and for no other.
    assert promote(tracking_uri=store, customer="demo", version=1).alias == "champion"
    put(store, make(b"second", needs_approval=True))
    assert promote(tracking_uri=store, customer="demo", version=2).alias == "candidate"


def test_an_approval_does_not_make_up_for_a_failed_check(store: str, make: Make) -> None:
    put(store, make(b"bad", psnr_db=20.0, needs_approval=True))
    approval = Approval(by="ada", reason="in a hurry")
    found = promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    assert found.alias == "candidate"
    assert any("misses the limit" in said for said in found.reasons)


@pytest.mark.parametrize("missing", ["approved_by", "approved_because", "approved_at"])
def test_an_approval_of_nobody_is_none_and_the_audit_says_so(
    store: str, make: Make, missing: str
) -> None:
    put(store, make(b"first", needs_approval=True))
    approval = Approval(by="ada", reason="seen")
    promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    client = MlflowClient(tracking_uri=store)
    client.delete_model_version_tag("turbo-vaed-demo", "1", missing)
    (row,) = audit(store, "demo")
    assert row.wrong == ("use case inspection needs a person's approval",)
    assert promote(tracking_uri=store, customer="demo", version=1).alias == "candidate"
    with pytest.raises(ValueError, match="who approves, and why"):
        Approval(by=" ", reason="x")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"psnr_db": 25.0}, "mean PSNR against the source: 25.00 dB misses the limit"),
        ({"needs_approval": True}, "needs a person's approval"),
    ],
)
def test_a_version_that_is_not_passed_is_candidate_with_the_reasons(
    store: str, make: Make, changes: dict[str, Any], reason: str
) -> None:
    put(store, make(b"good"))
    promote(tracking_uri=store, customer="demo", version=1)
    put(store, make(b"bad", **changes))
    found = promote(tracking_uri=store, customer="demo", version=2)
    assert found.alias == "candidate" and found.previous_champion is None
    assert any(reason in said for said in found.reasons)
    assert aliases(store) == {"champion": 1, "candidate": 2}
    newest, oldest = versions(store, "demo")
    assert reason in newest.reasons and newest.promotion == "candidate"
    assert (oldest.promotion, oldest.reasons) == ("champion", "every check passes")


def test_a_champion_by_hand_loses_the_alias_when_it_is_looked_at(store: str, make: Make) -> None:
    put(store, make(psnr_db=20.0))
    MlflowClient(tracking_uri=store).set_registered_model_alias("turbo-vaed-demo", "champion", "1")
    promote(tracking_uri=store, customer="demo", version=1)
    assert aliases(store) == {"candidate": 1}


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _flip_a_bit(package: Path, verdict: Path) -> None:
    program = package / "decoder.pte"
    program.write_bytes(bytes([program.read_bytes()[0] ^ 1]) + program.read_bytes()[1:])


def _swap_program_and_its_hashes(package: Path, verdict: Path) -> None:
    """A whole, consistent package: only not the one that was measured."""
    from turbo_vaed.export.package import write_package

    io = load_package(package).io
    program = package.parent / "decoder.pte"
    program.write_bytes(b"another program")
    write_package(package, program, io, tools=("numpy",))


def _swap_program_hashes_and_verdict(package: Path, verdict: Path) -> None:
    """As above, and the verdict is about the new bytes: only not the one that was registered."""
    _swap_program_and_its_hashes(package, verdict)
    _edit(verdict, lambda d: d.update(package_sha256=load_package(package).sha256))


def _widen_the_io_spec(package: Path, verdict: Path) -> None:
    _edit(package / MANIFEST_NAME, lambda d: d["io"].update(video_range=[0.0, 1.0]))


def _smuggle_a_file(package: Path, verdict: Path) -> None:
    (package / "extra.pte").write_bytes(b"stowaway")


def _cut_the_program_short(package: Path, verdict: Path) -> None:
    (package / "decoder.pte").write_bytes(b"a pro")


def _say_it_passes(package: Path, verdict: Path) -> None:
    _edit(verdict, lambda d: d.update(result="passes"))


def _say_every_check_passes(package: Path, verdict: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["result"] = "passes"
        for check in document["checks"]:
            check["result"] = "passes"

    _edit(verdict, change)


def _invent_measurements(package: Path, verdict: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["result"] = "passes"
        for check in document["checks"]:
            check.update(result="passes", measured=check["limit"], low=None, high=None)

    _edit(verdict, change)


def _approve_it(package: Path, verdict: Path) -> None:
    _edit(verdict, lambda d: d.update(needs_approval=False))


def _drop_the_checks(package: Path, verdict: Path) -> None:
    _edit(verdict, lambda d: d.update(result="passes", checks=[]))


def _cut_the_verdict_short(package: Path, verdict: Path) -> None:
    verdict.write_text(verdict.read_text()[:200])


def _lose_the_verdict(package: Path, verdict: Path) -> None:
    verdict.unlink()


ALTERED_BYTES = [
    (_flip_a_bit, "found sha256"),
    (_swap_program_and_its_hashes, "its verdict is of a package with sha256"),
    (_swap_program_hashes_and_verdict, "was registered"),
    (_widen_the_io_spec, "do not match its own sha256"),
    (_smuggle_a_file, "does not know: {'extra.pte'}"),
    (_cut_the_program_short, "found 5 bytes, expected 9"),
]
DOCTORED_VERDICTS = [
    (_say_it_passes, "its checks say 'fails'"),
    (_say_every_check_passes, "does not follow from its value"),
    (_invent_measurements, "its verdict has sha256"),
    (_approve_it, "its verdict has sha256"),
    (_drop_the_checks, "expected psnr_retention"),
    (_cut_the_verdict_short, "not a whole verdict"),
    (_lose_the_verdict, "verdict.json missing"),
]


@pytest.mark.parametrize(("alter", "said"), ALTERED_BYTES)
def test_altered_bytes_are_refused(
    store: str, make: Make, alter: Callable[[Path, Path], None], said: str
) -> None:
    made = make()
    found = put(store, made)
    promote(tracking_uri=store, customer="demo", version=1)
    alter(artifact(store, found, "package"), artifact(store, found, "verdict.json"))
    with pytest.raises(GateRefused, match=re.escape(said)):
        promote(tracking_uri=store, customer="demo", version=1)
    assert aliases(store) == {}, "what is refused is no champion any more"
    (row,) = versions(store, "demo")
    assert row.promotion == "refused" and said in row.reasons
    again = put(store, made)
    assert again.created and again.version == 2, "what the run really made can be registered anew"
    assert promote(tracking_uri=store, customer="demo", version=2).alias == "champion"


@pytest.mark.parametrize(("alter", "said"), DOCTORED_VERDICTS)
def test_a_doctored_verdict_is_refused(
    store: str, make: Make, alter: Callable[[Path, Path], None], said: str
) -> None:
    put(store, make(b"champion"))
    promote(tracking_uri=store, customer="demo", version=1)
    found = put(store, make(b"bad", psnr_db=20.0, needs_approval=True))
    alter(artifact(store, found, "package"), artifact(store, found, "verdict.json"))
    with pytest.raises(GateRefused, match=re.escape(said)):
        promote(tracking_uri=store, customer="demo", version=2)
    assert aliases(store) == {"champion": 1}
    assert versions(store, "demo")[0].promotion == "refused"


def test_a_version_of_somebody_elses_folder_is_refused(
    store: str, make: Make, tmp_path: Path
) -> None:
    """The run's own folder is fine, but users of the version would get another one."""
    found = put(store, make())
    elsewhere, _ = make(b"never measured")
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    tags = client.get_model_version(found.name, "1").tags
    client.create_model_version(found.name, elsewhere.as_uri(), found.mlflow_run_id, tags=tags)
    with pytest.raises(GateRefused, match="its verdict is of a package with sha256"):
        promote(tracking_uri=store, customer="demo", version=2)
    assert aliases(store) == {}


def test_a_version_without_a_run_is_refused(store: str, make: Make) -> None:
    put(store, make())
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_model_version("turbo-vaed-demo", make(b"by hand")[0].as_uri())
    with pytest.raises(GateRefused, match=r"package and verdict\.json missing"):
        promote(tracking_uri=store, customer="demo", version=2)


def test_register_refuses_a_verdict_of_something_else(store: str, make: Make) -> None:
    with pytest.raises(GateRefused, match="its verdict is of a package with sha256 " + "f" * 64):
        put(store, make(of="f" * 64))
    with pytest.raises(GateRefused, match="of customer 'acme', not 'demo'"):
        put(store, make(customer="acme"))
    assert versions(store, "demo") == ()


@pytest.mark.parametrize(
    "alter", [_flip_a_bit, _smuggle_a_file, _cut_the_verdict_short, _say_every_check_passes]
)
def test_register_refuses_what_is_altered_already(
    store: str, make: Make, alter: Callable[[Path, Path], None]
) -> None:
    made = make(psnr_db=20.0)
    alter(*made)
    with pytest.raises(CorruptFile):
        put(store, made)
    assert versions(store, "demo") == ()


def test_users_mistakes(store: str, make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        put(store, make(), artifacts=[tmp_path / "gone.json"])
    with pytest.raises(UserError, match="customer name 'a/b' is not allowed"):
        put(store, make(), customer="a/b")
    with pytest.raises(UserError, match="has no version 7; there are: none"):
        promote(tracking_uri=store, customer="demo", version=7)
    put(store, make())
    with pytest.raises(UserError, match="has no version 7; there are: 1"):
        promote(tracking_uri=store, customer="demo", version=7)
    with pytest.raises(UserError, match=r"expected http://…"):
        open_tracking("file:///somewhere")


def test_a_deleted_experiment_is_named(store: str, make: Make) -> None:
    client = open_tracking(store)
    client.delete_experiment(experiment_id(client, store, "demo"))
    with pytest.raises(UserError, match="mlflow experiments restore"):
        put(store, make())


def test_a_store_whose_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match="cannot be made"):
        open_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("lecture notes " * 100)
    with pytest.raises(Fault, match="not a database"):
        open_tracking(f"sqlite:///{tmp_path}/mlflow.db")


def test_an_unreachable_server_is_said_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        promote(tracking_uri=f"http://ann:secret@127.0.0.1:{port}", customer="demo", version=1)
    assert time.monotonic() - began < 10
    said = str(caught.value)
    assert f"http://ann:***@127.0.0.1:{port}" in said and "MLFLOW_TRACKING_URI" in said
    assert "secret" not in said


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turbo_vaed.mlflow_runs.HEALTH_SECONDS", 0.5)
    with pytest.raises(Unreachable, match="no MLflow server answers"):
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


def test_a_server_that_is_not_mlflow(tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(Unreachable, match="answers 404 to /health; is it an MLflow server"):
            open_tracking(f"http://127.0.0.1:{web.server_port}")
        web.shutdown()


def test_over_http_as_on_a_file(server: str, make: Make, tmp_path: Path) -> None:
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
    _approve_it(made[0], doctored)
    doctored.write_text(doctored.read_text() + " ")
    client.log_artifact(first.mlflow_run_id, str(doctored))
    with pytest.raises(GateRefused, match="its verdict has sha256"):
        promote(tracking_uri=server, customer="demo", version=1)
    assert aliases(server) == {"candidate": 2}
    assert set(os.listdir()) == before


def test_model_names() -> None:
    assert model_name("acme-2") == "turbo-vaed-acme-2"
