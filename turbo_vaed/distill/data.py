"""Batches of a step: crops of latents, source and teacher reconstruction from Zarr.

Shapes: B batch, C latent channels, T frames, t latent frames, H W pixels, h w latent.
What a batch holds is a function of (seed, step, rank) alone, so that a resumed run sees the
same data as an uninterrupted one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turbo_vaed.errors import CorruptFile, DataRefused


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Latents (B, C, t, h, w); source and teacher videos (B, 3, T, H, W) in [-1, 1]."""

    latents: Tensor
    source: Tensor
    teacher: Tensor


def to_signed(video: np.ndarray[Any, Any]) -> Tensor:
    """uint8 (B, T, H, W, 3) to float (B, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


class Clips:
    """The encoded clips of a customer, read clip by clip."""

    def __init__(self, *, clips: Path, latents: Path) -> None:
        """Open `clips` (work/…/clip) and `latents` (work/…/encode).

        Raises:
            CorruptFile: the two do not hold the same clips.
        """
        import zarr

        self.index = json.loads((clips / "clips.json").read_text())["clips"]
        self.facts = json.loads((latents / "latents.json").read_text())
        video: Any = zarr.open_group(str(clips / "clips.zarr"), mode="r")
        encoded: Any = zarr.open_group(str(latents / "latents.zarr"), mode="r")
        self.video = video["video"]
        self.latents = encoded["latents"]
        self.reconstruction = encoded["reconstruction"]
        if not len(self.index) == self.video.shape[0] == self.latents.shape[0]:
            raise CorruptFile(
                f"{latents} holds {self.latents.shape[0]} clips and {clips} "
                f"{self.video.shape[0]} ({len(self.index)} indexed); run encode again"
            )

    def of_split(self, split: str) -> list[int]:
        """Indices of the clips of `train`, `val` or `test`.

        Raises:
            DataRefused: there is none.
        """
        found = [clip["index"] for clip in self.index if clip["split"] == split]
        if not found:
            raise DataRefused(f"no clip in the {split} split; add videos or lower clip.frames")
        return found

    def whole(self, index: int) -> Batch:
        """One whole clip, B = 1."""
        return Batch(
            latents=torch.from_numpy(np.asarray(self.latents[index])[None]),
            source=to_signed(np.asarray(self.video[index])[None]),
            teacher=to_signed(np.asarray(self.reconstruction[index])[None]),
        )

    def crops(self, *, size: int, count: int, split: str, seed: tuple[int, ...]) -> Batch:
        """`count` random crops of `size` x `size` pixels out of `split`."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(self.of_split(split), size=count)
        _, compression_h, compression_w = self.facts["compression"]
        height, width = self.latents.shape[3:5]
        rows, columns = size // compression_h, size // compression_w
        latents, source, teacher = [], [], []
        for index in chosen:
            y = int(rng.integers(height - rows + 1))
            x = int(rng.integers(width - columns + 1))
            ys = slice(y * compression_h, y * compression_h + size)
            xs = slice(x * compression_w, x * compression_w + size)
            latents.append(self.latents[index, :, :, y : y + rows, x : x + columns])
            source.append(self.video[index, :, ys, xs])
            teacher.append(self.reconstruction[index, :, ys, xs])
        return Batch(
            latents=torch.from_numpy(np.stack(latents)),
            source=to_signed(np.stack(source)),
            teacher=to_signed(np.stack(teacher)),
        )
