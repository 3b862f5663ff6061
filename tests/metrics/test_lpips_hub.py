"""LPIPS' published weights by torch.hub, from a loopback server: fetched once, refused by hash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import turbo_vaed.metrics.lpips as module
from turbo_vaed.errors import CorruptFile, Unreachable, UserError
from turbo_vaed.metrics.lpips import CHANNELS, Lpips


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, bytes], list]]:
    """What the server has by path, and the paths that it was asked for."""
    files: dict[str, bytes] = {}
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            found = files.get(self.path)
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(module, "VGG16_URL", f"{address}/vgg16.pth")
    monkeypatch.setattr(module, "HEADS_URL", f"{address}/heads.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    yield files, requested
    server.shutdown()
    server.server_close()


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "checkpoints").iterdir()}


def test_published_weights_are_fetched_once(
    hub: tuple[dict[str, bytes], list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, requested = hub
    weights = {name: torch.rand_like(value) for name, value in Lpips().state_dict().items()}
    trunk = {name: value for name, value in weights.items() if name.startswith("features")}
    heads = {f"lin{i}.model.1.weight": weights[f"heads.{i}"].view(1, -1, 1, 1) for i in range(5)}
    for path, name, tensors in (
        ("/vgg16.pth", "VGG16_SHA256", {**trunk, "classifier.6.bias": torch.zeros(3)}),
        ("/heads.pth", "HEADS_SHA256", heads),
    ):
        torch.save(tensors, buffer := io.BytesIO())
        files[path] = buffer.getvalue()
        monkeypatch.setattr(module, name, hashlib.sha256(files[path]).hexdigest())
    for _ in range(2):
        found = Lpips.from_hub().state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        assert len(found) == len(weights) == 2 * 13 + len(CHANNELS)
        for published in (tmp_path / "checkpoints").glob("*.pth"):
            published.unlink()  # what they were made into is enough
    assert requested == ["/vgg16.pth", "/heads.pth"]
    assert len(kept(tmp_path)) == 1


def test_other_contents_are_refused_unread_and_not_stored(
    hub: tuple[dict[str, bytes], list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = hub
    files["/vgg16.pth"] = b"a login page"
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("read before its hash"))
    with pytest.raises(CorruptFile, match=r"vgg16\.pth .*397923af"):
        Lpips.from_hub()
    assert kept(tmp_path) == set()


def test_another_file_of_the_published_name_is_refused(
    hub: tuple[dict[str, bytes], list], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("vgg16-397923af.pth", "lpips-v0.1-vgg.pth"):
        (tmp_path / "checkpoints" / name).write_bytes(b"cut")
    with pytest.raises(UserError, match="found sha256"):
        Lpips.from_hub()
    assert hub[1] == []


def test_a_server_without_the_file_or_none_at_all_is_unreachable(
    hub: tuple[dict[str, bytes], list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unreachable, match=r"vgg16\.pth .*404"):
        Lpips.from_hub()
    monkeypatch.setattr(module, "VGG16_URL", "http://127.0.0.1:1/vgg16.pth")
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1/vgg16\.pth.*: python"):
        Lpips.from_hub()
    assert kept(tmp_path) == set()
