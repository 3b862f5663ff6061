"""How the devices' tests measure, and what the fake devices put out."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.devices.fake_program import video_of
from turbo_vaed.devices import Plan
from turbo_vaed.export.package import Package

SHAPE = (1, 8, 2, 4, 6)
VIDEO_SHAPE = (1, 3, 3, 16, 24)
PLAN = Plan(
    threads=1, max_warmup=1, min_samples=3, max_samples=3, max_spread=100.0, confidence=0.95
)
STRICT = replace(PLAN, max_spread=1.0)
"""In which the first process of an `unsteady` device is too far from the others."""


def expected_frames(package: Package, latents_npy: Path) -> np.ndarray:
    """The video (B, 3, T, H, W) of every clip by `fake_program`, float32."""
    io, shape = package.io, package.io.video_shape[1:]
    clips = [clip.astype(io.latent_dtype).tobytes() for clip in np.load(latents_npy)]
    numbers = int(np.prod(shape))
    videos = [
        video_of(package.program_path, clip, numbers, io.latent_dtype, io.video_dtype)
        for clip in clips
    ]
    found = [np.frombuffer(video, io.video_dtype).reshape(shape) for video in videos]
    return np.stack(found).astype(np.float32)
