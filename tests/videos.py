"""Small videos, made on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def make_video(
    path: Path,
    *,
    frames: int = 30,
    width: int = 160,
    height: int = 144,
    fps: int = 25,
    look: str = "moving",
    seed: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write an H.264 video; returns its path.

    Args:
        look: "moving", "black" or "frozen".
        options: of the encoder; `container_options` of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)
    coarse = dice.integers(0, 255, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    scene = coarse.repeat(16, axis=0).repeat(16, axis=1)[: height + 8, : width + 8]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.options = {"preset": "ultrafast", **(options or {})}
        for number in range(frames):
            shift = 0 if look == "frozen" else number % 8
            picture = scene[shift : shift + height, shift : shift + width].copy()
            if look == "black":
                picture[:] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
