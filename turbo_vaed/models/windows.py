"""Decoding a video of any length with a program of one fixed length, window by window.

Shapes: t latent frames, T video frames; R video frames per latent frame.

A decoder made by `TurboVaedDecoder` sees ahead and back in time, and a program for a phone takes
exactly L latent frames. So a runner decodes overlapping windows of L, and keeps of each the
frames that do not depend on what lies outside. Which these are follows from the layers alone
(`DecoderConfig.time_spec`): a convolution of k taps spoils k // 2 more frames at either end of a
window, and an upsampling by r makes r of each that is spoilt; its first r - 1 frames are dropped.

A window that starts at latent a has as its first frame the video's frame R*a, in both layouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Window:
    """Latents to decode together, and which of their frames to keep."""

    start: int
    stop: int
    """Latent frames [start, stop)."""
    kept_start: int
    kept_stop: int
    """Frames of the decoded window [kept_start, kept_stop)."""
    at: int
    """Where in the video the first frame kept stands."""


@dataclass(frozen=True, kw_only=True)
class TimeSpec:
    """How the frames of a video hang together with its latents; see `DecoderConfig.time_spec`."""

    frames_per_latent: int
    """R."""
    first_latent_frames: int
    """Frames that the first latent frame becomes: 1, or R."""
    halo_frames: tuple[int, int]
    """Frames at the start and at the end of a window that are not right, where the video does
    not start or end there."""

    def frames(self, latents: int) -> int:
        """T of t latent frames."""
        return self.first_latent_frames + self.frames_per_latent * (latents - 1)

    @property
    def least_overlap(self) -> int:
        """Latent frames that windows must have in common for no frame to be missing: the first
        latent frame of each may become one frame only."""
        return int(self.first_latent_frames < self.frames_per_latent)

    @property
    def exact_overlap(self) -> int:
        """Latent frames that windows must have in common for every frame to be right."""
        missing = self.frames_per_latent - self.first_latent_frames
        return math.ceil((sum(self.halo_frames) + missing) / self.frames_per_latent)

    def windows(self, latents: int, *, length: int, overlap: int | None = None) -> Iterator[Window]:
        """Windows of `length` latent frames over a video of `latents`.

        Each has at least `overlap` latent frames in common with the next (None: as many as
        make every frame right); the last one ends with the video, and may have more. The cut
        lies where the two are equally good.

        Raises:
            ValueError: the video is shorter than a window, or a window not longer than the
                overlap.
        """
        overlap = self.exact_overlap if overlap is None else overlap
        if latents < length:
            raise ValueError(
                f"latents: found {latents} frames, allowed: {length} or more, the length that "
                "the program takes; export a shorter one"
            )
        if not self.least_overlap <= overlap < length:
            raise ValueError(
                f"overlap: found {overlap} latent frames, allowed: {self.least_overlap} to "
                f"{length - 1}, for windows of {length}; every frame is right from "
                f"{self.exact_overlap} on"
            )
        stride, last = length - overlap, latents - length
        starts = [*range(0, last, stride), last]
        ratio, (before, after) = self.frames_per_latent, self.halo_frames
        shared = [(b, self.frames(length) - ratio * (b - a)) for a, b in pairwise(starts)]
        inner = [ratio * b + frames * before // (before + after) for b, frames in shared]
        cuts = [0, *inner, self.frames(latents)]
        for start, (cut, next_cut) in zip(starts, pairwise(cuts), strict=True):
            yield Window(
                start=start,
                stop=start + length,
                kept_start=cut - ratio * start,
                kept_stop=next_cut - ratio * start,
                at=cut,
            )
