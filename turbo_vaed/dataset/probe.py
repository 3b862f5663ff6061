"""Probing one video in a process of its own, which may crash or hang without harm."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHILD = (sys.executable, "-m", "turbo_vaed.dataset._probe_child")
"""Called with the file's path; prints one JSON object."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What was measured of a file; `error` says why it cannot be used, None where it can.

    Facts that could not be measured are None. Shares are of the decoded frames, in [0,1];
    brightness is mean luma and motion mean absolute luma difference of neighbours, in [0,1].
    """

    error: str | None = None
    container: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    frames: int | None = None
    seconds: float | None = None
    black_share: float | None = None
    frozen_share: float | None = None
    brightness: float | None = None
    motion: float | None = None
    phash: str | None = None


def probe_video(path: Path, *, timeout_seconds: float, child: Sequence[str] = CHILD) -> VideoFacts:
    """Measure a file by decoding all of it; whatever goes wrong is in `error`, never raised.

    Args:
        path: the file.
        timeout_seconds: the child is killed after this.
        child: the command that probes; tests hand in one that crashes.
    """
    try:
        if path.stat().st_size == 0:
            return VideoFacts(error="the file is empty (0 bytes)")
        done = subprocess.run(
            [*child, str(path.absolute())],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_seconds,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    except subprocess.TimeoutExpired:
        return VideoFacts(error=f"the probe did not end within {timeout_seconds:g} s: killed")
    except OSError as error:
        return VideoFacts(error=f"cannot be read: {error.strerror}")
    if done.returncode:
        return VideoFacts(error=f"the probe crashed ({_how(done.returncode, done.stderr)})")
    try:
        return VideoFacts(**json.loads(done.stdout))
    except (ValueError, TypeError):
        return VideoFacts(error=f"the probe's answer cannot be read: {done.stdout[:80]!r}")


def _how(code: int, stderr: bytes) -> str:
    """`signal SIGSEGV`, or the exit code with the child's last word."""
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    last = stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"exit code {code}" + "".join(f": {line}" for line in last)
