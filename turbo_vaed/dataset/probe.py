"""Probing one video in a process of its own, which may crash or hang without harm."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import read_json
from turbo_vaed.runtime.isolated import ChildFailed, run_command

CHILD = (sys.executable, "-m", "turbo_vaed.dataset._probe_child")
"""Called with the JSON file to write and the video's path."""


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
    except OSError as error:
        return VideoFacts(error=f"cannot be read: {error.strerror}")
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        facts = Path(scratch) / "facts.json"
        command = [*child, str(facts), str(path.absolute())]
        try:
            run_command(
                command,
                timeout_seconds=timeout_seconds,
                what="the probe",
                folder=Path(__file__).parents[2],
            )
            return VideoFacts(**read_json(facts))
        except ChildFailed as error:
            last_line = error.output.splitlines()[-1:]
            return VideoFacts(error=": ".join([f"the probe {error.ending}", *last_line]))
        except (FileNotFoundError, CorruptFile, TypeError):
            return VideoFacts(error="the probe left no facts that can be read")
