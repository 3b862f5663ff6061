"""Teachers from the hub, over HTTP: a small server stands in for it, the client is the real one.

The verbs run in one other process, as they read HF_ENDPOINT when they start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import configs

pytestmark = pytest.mark.slow

COMMIT, NO_COMMIT = "0123456789abcdef" * 2 + "01234567", "f" * 40
WEIGHTS = "diffusion_pytorch_model.safetensors"
ROOT = Path(__file__).parents[3]
_RUN = """
import contextlib, io, json, sys
from turbo_vaed import cli
done = {}
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv = ["turbo-vaed", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main()
    done[name] = (code, out.getvalue(), err.getvalue())
print(json.dumps(done))
"""


@dataclass
class Hub:
    """One repository, org/tiny, at one commit; what was asked for."""

    files: dict[str, bytes]
    requested: list[str] = field(default_factory=list)
    teachers: set[str] = field(default_factory=set)
    """What was in assets/teachers meanwhile."""
    address: str = ""


@pytest.fixture(scope="module")
def hub(make_teacher, checkout) -> Iterator[Hub]:
    folder = make_teacher("wan-2.1")
    config, weights = (folder / name for name in ("config.json", WEIGHTS))
    hub = Hub(
        files={
            "model_index.json": b"{}",
            "transformer/" + WEIGHTS: b"too large to fetch by mistake",
            "vae/config.json": config.read_bytes(),
            "vae/" + WEIGHTS: weights.read_bytes(),
            "vae/diffusion_pytorch_model.bin": b"pickled",
            "vae/notes.md": b"notes",
            "old/config.json": config.read_bytes(),
            "old/diffusion_pytorch_model.bin": b"pickled",
            "cut/config.json": config.read_bytes(),
            "cut/" + WEIGHTS: weights.read_bytes()[:-1000],
        }
    )

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            hub.requested.append(path)
            hub.teachers |= {found.name for found in (checkout / "assets/teachers").iterdir()}
            if "/org/broken/revision/" in path:
                self.close_connection = True  # without a word
                return
            status, headers, body = _reply(hub.files, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def _reply(files: dict[str, bytes], path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, as the hub would answer."""
    if path == f"/api/models/org/tiny/revision/{COMMIT}":
        siblings = [{"rfilename": name} for name in files]
        model = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(model).encode()
    if path.startswith("/api/models/org/broken/tree/"):
        return 200, {"Content-Type": "application/json"}, b"[]"
    if path.startswith("/api/models/org/tiny/tree/"):
        if not path.endswith(COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        listed = [
            {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
            for name, content in files.items()
        ]
        return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
    name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
    if name in files:
        headers = {"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": COMMIT}
        return 200, headers, files[name]
    return 404, {"X-Error-Code": "RepoNotFound"}, b""


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    configs.copy_to(root)
    shutil.copy(ROOT / "dvc.yaml", root)
    (root / "assets" / "teachers").mkdir(parents=True)
    return root


def run(
    checkout: Path, cases: dict[str, list[str]], **settings: str
) -> dict[str, tuple[int, str, str]]:
    """Code, output and errors of each call of `turbo-vaed teacher`, in their order."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps({k: ["teacher", *v] for k, v in cases.items()})],
        env={
            **environment,
            **settings,
            "HF_HOME": str(checkout / "cache"),
            "TURBO_VAED_ROOT": str(checkout),
        },
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {name: tuple(found) for name, found in json.loads(done.stdout).items()}


def fetch(hub_id: str, name: str, family: str = "wan-2.1") -> list[str]:
    return ["fetch", hub_id, "--family", family, "--name", name]


def show(hub_id: str) -> list[str]:
    return ["show", hub_id, "--family", "wan-2.1", "--format", "json", "--fraction", "1"]


@pytest.fixture(scope="module")
def outcomes(hub: Hub, checkout: Path) -> dict[str, tuple[int, str, str]]:
    """Every call to the hub, in one process."""
    return run(
        checkout,
        {
            "good": fetch(f"org/tiny/vae@{COMMIT}", "mine"),
            "again": fetch(f"org/tiny/vae@{COMMIT}", "mine"),
            "shown": show(f"org/tiny/vae@{COMMIT}"),
            "no commit": fetch("org/tiny/vae", "other"),
            "branch": fetch("org/tiny/vae@main", "other"),
            "short commit": fetch(f"org/tiny/vae@{COMMIT[:12]}", "other"),
            "path": fetch(f"org/tiny/vae@{COMMIT}", "../other"),
            "no such commit": fetch(f"org/tiny/vae@{NO_COMMIT}", "other"),
            "no such model": fetch(f"org/none@{COMMIT}", "other"),
            "broken": fetch(f"org/broken@{COMMIT}", "other"),
            "pickled": fetch(f"org/tiny/old@{COMMIT}", "other"),
            "no subfolder": fetch(f"org/tiny@{COMMIT}", "other"),
            "cut short": fetch(f"org/tiny/cut@{COMMIT}", "other"),
            "another family": fetch(f"org/tiny/vae@{COMMIT}", "other", family="wan-2.2"),
        },
        HF_ENDPOINT=hub.address,
    )


def test_a_pinned_model_is_fetched_whole_and_nothing_else(outcomes, checkout, hub) -> None:
    code, out, _ = outcomes["good"]
    folder = checkout / "assets/teachers/mine"
    assert code == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name: hub.files[f"vae/{name}"] for name in ("config.json", WEIGHTS)
    }
    sha256 = hashlib.sha256(hub.files["vae/" + WEIGHTS]).hexdigest()
    assert sha256 in out
    assert "encode: {teacher_family: wan-2.1, teacher_weights: assets/teachers/mine}" in out
    assert "clip: {frames: 17}" in out and "4k+1" in out
    fetched = {path.rpartition(COMMIT + "/")[2] for path in hub.requested if "/resolve/" in path}
    assert not [name for name in fetched if name.endswith((".bin", ".md")) or "transf" in name]


def test_a_model_of_the_hub_is_shown_from_its_cache(outcomes, hub) -> None:
    code, out, _ = outcomes["shown"]
    assert code == 0
    shown = json.loads(out)
    assert shown["sha256"] == hashlib.sha256(hub.files["vae/" + WEIGHTS]).hexdigest()
    assert shown["latents"]["compression_t"] == 4
    assert shown["student"]["parameters"] <= shown["latents"]["decoder_parameters"]


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("again", 2, "assets/teachers/mine"),
        ("no commit", 2, "ORG/NAME@COMMIT"),
        ("branch", 2, "ORG/NAME@COMMIT"),
        ("short commit", 2, "ORG/NAME@COMMIT"),
        ("path", 2, "../other"),
        ("no such commit", 2, f"hub has no org/tiny/vae@{NO_COMMIT}"),
        ("no such model", 2, f"hub has no org/none@{COMMIT}"),
        ("broken", 3, "(Server disconnected"),
        ("pickled", 2, f"org/tiny/old@{COMMIT} holds no {WEIGHTS}"),
        ("no subfolder", 2, "ORG/NAME/vae@COMMIT"),
        ("cut short", 3, f"{WEIGHTS} cannot be read"),
        ("another family", 2, "wan-2.1"),
    ],
)
def test_a_bad_fetch_is_refused_with_its_exit_code(
    outcomes, case: str, code: int, message: str
) -> None:
    found, _, err = outcomes[case]
    assert (found, message in err) == (code, True), err
    assert err.count("\n") == 1  # the message alone


def test_a_partial_download_is_never_among_the_teachers(outcomes, checkout, hub) -> None:
    assert hub.teachers == {"mine"}
    assert [path.name for path in (checkout / "assets/teachers").iterdir()] == ["mine"]
    files = [path for path in (checkout / "assets").rglob("*") if path.suffix in (".bin", ".json")]
    files = [path for path in files if ".cache" not in path.parts]  # where the hub fell silent
    assert [path.parent.name for path in files] == ["mine"]


def test_without_a_server_the_cache_is_used(outcomes, checkout) -> None:
    cases = {
        "shown": show(f"org/tiny/vae@{COMMIT}"),
        "fetched": fetch(f"org/tiny/vae@{COMMIT}", "other"),
    }
    # Set offline: a client that has to find out by itself tries for twenty seconds.
    found = run(checkout, cases, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert found["shown"][:2] == outcomes["shown"][:2]
    code, _, err = found["fetched"]
    assert code == 3
    assert f"org/tiny/vae@{COMMIT}" in err and err.count("\n") == 1


def test_an_interrupted_download_resumes_once_the_hub_answers(hub: Hub, tmp_path: Path) -> None:
    """However much of it there is: only the hub can confirm that it is whole.

    And where there is no folder of teachers yet, there is one in the end.
    """
    partial = {}
    for name, there in (("vae", ("config.json",)), ("cut", ("config.json", WEIGHTS))):
        mark = hashlib.sha256(f"org/tiny/{name}@{COMMIT}".encode()).hexdigest()[:12]
        partial[name] = tmp_path / "assets" / f".{name}.{mark}.partial"
        (partial[name] / name).mkdir(parents=True)
        for file in there:
            (partial[name] / name / file).write_bytes(hub.files[f"{name}/{file}"])
    before = _contents(tmp_path / "assets")
    cases = {name: fetch(f"org/tiny/{name}@{COMMIT}", name) for name in partial}
    found = run(tmp_path, cases, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    for name, (code, _, err) in found.items():
        faults = [line for line in err.splitlines() if f"org/tiny/{name}@{COMMIT}" in line]
        assert (code, len(faults), "Traceback" in err) == (3, 1, False), err
    assert _contents(tmp_path / "assets") == before

    found = run(tmp_path, cases, HF_ENDPOINT=hub.address)
    assert (found["vae"][0], found["cut"][0]) == (0, 3), found
    teacher = tmp_path / "assets/teachers/vae"
    assert _contents(tmp_path / "assets") == {
        teacher / name: hub.files[f"vae/{name}"] for name in ("config.json", WEIGHTS)
    }


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
