"""A checkout with a customer whose PoC takes a minute or two, and the command line in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import configs
from tests.loopback import free_port
from tests.videos import make_video

ROOT = Path(__file__).parents[2]
TINY: dict[str, dict[str, Any]] = {
    "validate": {"min_side": 64},
    "clip": {"size": 64, "clips_per_video": 6},
    "distill": {
        "steps": 4, "crop": 32, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2,
    },
    "encode": {"tile": 32},
    "export": {"targets": ["executorch-xnnpack/fp32"]},  # of two packages: tests/stages
    "gate": {
        "max_warmup": 1, "min_samples": 3, "max_samples": 3, "max_spread": 100.0,
        "max_background_cpu_share": 1.0,
    },
    "thresholds": {
        "min_psnr_retention": 0.1, "min_psnr": 5.0, "min_ssim": -1.0, "min_ms_ssim": -1.0,
        "min_worst_psnr": 0.01, "max_flicker": 1e6, "min_detail_retention": -1.0, "min_fps": 0.1,
        "max_cold_start_seconds": 300, "max_latency_ratio": 100,
    },
}  # fmt: skip
"""What the customer `tiny` overrides."""


def make(root: Path, remote: Path | None = None) -> Path:
    """The checkout, at `root`, with four videos, one of them a text file; returns it.

    Args:
        remote: DVC's, which the checkout may have in common with others; None for one of its own.
    """
    configs.copy_to(root)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "assets", root / "assets")
    for seed in range(2):
        make_video(root / f"videos/v{seed}.mp4", frames=60, width=96, height=80, seed=seed)
    (root / "videos/notes.mp4").write_text("not a video")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    add = ["remote", "add", "-d", "local", str(remote or "state/dvc-remote")]
    subprocess.run([sys.executable, "-m", "dvc", *add], cwd=root, check=True)
    return root


def override(checkout: Path, **changes: object) -> None:
    """Let the customer differ in these sections."""
    path = checkout / "params.yaml"
    document = yaml.safe_load(path.read_text())
    document["customers"]["tiny"].update(changes)
    path.write_text(yaml.safe_dump(document))


def environment(checkout: Path, **given: str) -> dict[str, str]:
    """Of a command in the checkout: nothing of this process's own servers."""
    own = ("TURBO_VAED_ROOT", "TURBO_VAED_RUN_ID", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    inherited = {k: v for k, v in os.environ.items() if k not in own}
    return {**inherited, "PREFECT_HOME": str(checkout / "state/prefect"), **given}


def command(*arguments: str) -> list[str]:
    """The command line, as a person would call it."""
    return [sys.executable, "-m", "turbo_vaed.cli", *arguments]


def turbo_vaed(checkout: Path, *arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=checkout,
        env=environment(checkout, **given),
        capture_output=True,
        text=True,
        timeout=1500,  # two minutes on a quiet machine
    )


def prefect_api(url: str, path: str, body: Mapping[str, Any]) -> Any:
    """What a Prefect server answers to a POST."""
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def flow_runs(url: str) -> list[dict[str, Any]]:
    """The runs of a Prefect server, the newest first."""
    found: list[dict[str, Any]] = prefect_api(url, "/flow_runs/filter", {"sort": "START_TIME_DESC"})
    return found


@contextlib.contextmanager
def prefect_server(checkout: Path) -> Iterator[Mapping[str, str]]:
    """A Prefect server that stays, as a team has one; the environment by which runs find it."""
    port = free_port()
    (checkout / "state").mkdir(exist_ok=True)
    url = f"http://127.0.0.1:{port}/api"
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"],
        env=environment(checkout, PREFECT_API_URL=url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None and time.monotonic() < deadline, "no Prefect server"
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{url}/health", timeout=5),
            ):
                break
            time.sleep(0.2)
        yield {"PREFECT_API_URL": url}
    finally:
        server.terminate()
        server.wait(60)
