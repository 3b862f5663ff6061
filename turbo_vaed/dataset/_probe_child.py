"""The probe's child process: `python -m turbo_vaed.dataset._probe_child FACTS PATH` writes FACTS.

Frames are streamed and shrunk to 72x64 luma at once, so that memory holds one full frame.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av.error
import numpy as np
from numpy.typing import NDArray

from turbo_vaed.dataset.video import frames_of, open_video
from turbo_vaed.runtime.files import write_json

WIDTH, HEIGHT = 72, 64
BT601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)
BLACK_LUMA = 0.1
BLACK_PIXELS = 0.98
"""A frame is black when this share of it is darker than `BLACK_LUMA`."""
FROZEN_DIFFERENCE = 0.001
"""A frame is frozen when its mean absolute luma difference to the last is below -60 dB."""


class Measures:
    """Running sums over the frames of one video."""

    def __init__(self) -> None:
        self.frames = self.black = self.frozen = 0
        self.brightness = self.motion = 0.0
        self.mean = np.zeros((HEIGHT, WIDTH))
        self.last: NDArray[np.float32] | None = None

    def add(self, luma: NDArray[np.float32]) -> None:
        """Count one frame, (64,72) luma in [0,1]."""
        self.frames += 1
        self.black += bool((luma < BLACK_LUMA).mean() >= BLACK_PIXELS)
        self.brightness += float(luma.mean())
        self.mean += luma
        if self.last is not None:
            difference = float(np.abs(luma - self.last).mean())
            self.motion += difference
            self.frozen += difference < FROZEN_DIFFERENCE
        self.last = luma

    def facts(self) -> dict[str, object]:
        """Shares of the frames, means in [0,1] and the hash."""
        steps = max(1, self.frames - 1)
        return {
            "black_share": self.black / self.frames,
            "frozen_share": self.frozen / steps,
            "brightness": self.brightness / self.frames,
            "motion": self.motion / steps,
            "phash": difference_hash(self.mean),
        }


def difference_hash(luma: NDArray[np.float64]) -> str:
    """64-bit dHash, 16 hex digits, of (64,72) luma: is each of 8x9 cells brighter than its left?"""
    cells = luma.reshape(8, HEIGHT // 8, 9, WIDTH // 9).mean(axis=(1, 3))
    bits = (np.diff(cells, axis=1) > 0).ravel()
    return np.packbits(bits).tobytes().hex()


def probe(path: Path) -> dict[str, object]:
    """Everything measured of the file; `error` says why it is no good, if it is not."""
    facts: dict[str, object] = {"error": None}
    measures = Measures()
    try:
        with open_video(path) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            size = (stream.width, stream.height)
            facts |= {
                "container": container.format.name,
                "codec": stream.codec_context.name,
                "width": size[0],
                "height": size[1],
                "fps": float(rate) if rate else None,
            }
            for frame in frames_of(container, stream):
                if (frame.width, frame.height) != size:
                    raise ValueError(
                        f"the picture changes size at frame {measures.frames}: "
                        f"{size[0]}x{size[1]} to {frame.width}x{frame.height}"
                    )
                small = frame.reformat(WIDTH, HEIGHT, format="rgb24", interpolation="AREA")
                measures.add((small.to_ndarray() @ BT601) / np.float32(255))
            facts["error"] = _shortfall(measures.frames, stream.frames, bool(rate))
    except av.error.FFmpegError as error:
        text = error.strerror or type(error).__name__
        after = f" after {measures.frames} frames" if measures.frames else ""
        facts["error"] = f"does not decode as a video{after}: {text}"
    except (LookupError, ValueError) as error:
        facts["error"] = str(error)
    if measures.frames:
        facts |= {"frames": measures.frames, **measures.facts()}
        if facts.get("fps"):
            facts["seconds"] = measures.frames / float(str(facts["fps"]))
    return facts


def _shortfall(decoded: int, declared: int, has_rate: bool) -> str | None:
    """Why a stream that decoded to its end is still no good; `declared` is 0 where unknown."""
    if decoded == 0:
        return "no frame decodes"
    if decoded < 0.95 * declared:
        return f"cut short: {decoded} of {declared} declared frames decode"
    return None if has_rate else "no frame rate is given"


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), probe(Path(sys.argv[2])))
