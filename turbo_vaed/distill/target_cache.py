"""The cache of the teacher's targets: what a train clip's student is to look like, inside and out.

Shapes: B batch, N clips, T frames, H W pixels; a feature of a block is (C', T', H', W').
`targets.zarr` holds `reconstruction` uint8 (N,T,H,W,3) and for each block `features/BLOCK`
(N,C',T',H',W'), float16 where that holds them; a chunk per clip, of the train clips. `targets.json`
says of what. Nothing is compressed: of tiny-ltx's features Zstandard takes a tenth off, and reading
them takes three times as long. A clip is there when its chunks are, in all arrays; each appears
whole, so that a pass that was killed goes on with the clips it lacks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from torch import Tensor

from turbo_vaed.dataset.clip_arrays import (
    ClipArray,
    create_clip_array,
    open_for_writing,
    whole_chunks,
)
from turbo_vaed.dataset.clip_pass import Device
from turbo_vaed.dataset.latents import (
    CLIPS_REMEDY,
    LATENTS_REMEDY,
    assemble,
    cut,
    to_pixels,
)
from turbo_vaed.distill.data import FEATURES, RECONSTRUCTION, TARGETS_REMEDY, read_json
from turbo_vaed.errors import CorruptFile, Fault

_LAYOUT = 1
"""To be raised when what is written changes: older caches are then made anew."""
_LARGEST_HALF = 65504.0
_HALF_MARGIN = 16.0
"""Features whose largest value in the first clips is so many times below the largest float16 are
stored in it, others in float32."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of which teacher, for which clips: plain values that travel to any node."""

    family: str
    weights: str
    clips: str
    """As `clip` wrote them; a folder or URL, as are the next two."""
    latents: str
    """As `encode` wrote them, with this teacher."""
    targets: str
    """Where the cache is, or would be."""
    blocks: tuple[str, ...]
    """Of the teacher's decoder, whose features are wanted."""
    reconstruction: bool
    """Whether its video is."""

    @property
    def arrays(self) -> list[str]:
        """Names of the cache's arrays."""
        of_blocks = [f"{FEATURES}/{block}" for block in self.blocks]
        return [RECONSTRUCTION, *of_blocks] if self.reconstruction else of_blocks

    @property
    def store(self) -> str:
        """The Zarr group."""
        return f"{self.targets}/targets.zarr"

    def train_clips(self) -> list[int]:
        """Indices of the clips that a student is trained on."""
        clips = read_json(f"{self.clips}/clips.json", CLIPS_REMEDY)["clips"]
        return [clip["index"] for clip in clips if clip["split"] == "train"]

    def missing(self) -> list[int]:
        """The train clips that the cache lacks, wholly or in part."""
        train = set(self.train_clips())
        present = train.intersection(*(whole_chunks(self.store, name) for name in self.arrays))
        return sorted(train - present)

    def key(self) -> str:
        """Of what the cache holds: another teacher, other clips or blocks have another one."""
        facts = [
            read_json(f"{self.clips}/clips.json", CLIPS_REMEDY),
            read_json(f"{self.latents}/latents.json", LATENTS_REMEDY),
        ]
        told = [_LAYOUT, self.family, self.arrays, facts]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_facts(wanted: Wanted) -> dict[str, Any] | None:
    """What targets.json says, if it is of this cache; None where there is none or another one."""
    try:
        facts = read_json(f"{wanted.targets}/targets.json", TARGETS_REMEDY)
    except CorruptFile:
        return None
    return facts if facts.get("key") == wanted.key() else None


def write_facts(wanted: Wanted, measured: Mapping[str, Any]) -> None:
    """Write targets.json, whole or not at all: without it the arrays count for nothing.

    Args:
        measured: kept for a run that goes on.
    """
    facts = {
        "key": wanted.key(),
        "blocks": wanted.blocks,
        "reconstruction": wanted.reconstruction,
        "measured": dict(measured),
    }
    files, root = url_to_fs(wanted.targets)
    partial = f"{root}/targets.json.partial"
    files.pipe_file(partial, json.dumps(facts, indent=1).encode())
    files.mv(partial, f"{root}/targets.json")


def clear(wanted: Wanted) -> None:
    """Remove a cache, of whatever it is."""
    files, root = url_to_fs(wanted.targets)
    for name in ("targets.json", "targets.zarr"):
        if files.exists(f"{root}/{name}"):
            files.rm(f"{root}/{name}", recursive=True)
    files.makedirs(root, exist_ok=True)


def free_bytes(wanted: Wanted) -> int | None:
    """On the disk of the cache; None for a bucket."""
    files, root = url_to_fs(wanted.targets)
    return shutil.disk_usage(root).free if isinstance(files, LocalFileSystem) else None


def create(wanted: Wanted, clips: int, found: Mapping[str, NDArray[Any]]) -> None:
    """The arrays of the cache, for targets such as these."""
    import zarr

    group = zarr.open_group(wanted.store, mode="w", zarr_format=3)
    for name, values in found.items():
        dtype = str(values.dtype)
        if dtype == "float32" and np.abs(values).max() * _HALF_MARGIN < _LARGEST_HALF:
            dtype = "float16"
        create_clip_array(
            group, name, clips=clips, shape=values.shape[1:], dtype=dtype, is_compressed=False
        )


class TargetWriter:
    """A worker of `pass_over_clips`: decodes clips and writes their targets."""

    def __init__(self, wanted: Wanted, *, device: Device) -> None:
        from turbo_vaed.models.teachers import load_teacher

        self.wanted = wanted
        self.teacher = load_teacher(wanted.family, wanted.weights, device=device)
        facts = read_json(f"{wanted.latents}/latents.json", LATENTS_REMEDY)
        if self.teacher.sha256 != facts["teacher_sha256"]:
            raise CorruptFile(
                f"the latents in {wanted.latents} were made by a teacher of sha256 "
                f"{facts['teacher_sha256'][:12]}…, {wanted.weights} has "
                f"{self.teacher.sha256[:12]}…; run the stage `encode` again"
            )
        self.tiles: int = facts.get("tiles", 1)
        self.latents = ClipArray(f"{wanted.latents}/latents.zarr", "latents", remedy=LATENTS_REMEDY)

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Write the targets of the clips of `index`, and hand the indices back."""
        clips = [int(i) for i in batch["index"]]
        self.write(clips, self.decode(self.read(clips), self.tiles))
        return batch

    def read(self, clips: Sequence[int]) -> Tensor:
        """Latents (B,C,t,h,w)."""
        return torch.from_numpy(np.stack([self.latents[clip] for clip in clips]))

    def decode(self, latents: Tensor, tiles: int = 1) -> dict[str, NDArray[Any]]:
        """What the arrays of the cache take, by their names: uint8 BTHWC and float32 BCTHW.

        Args:
            tiles: a side; each was encoded for itself, and is decoded so.
        """
        decoded = self.teacher.decode_with_features(cut(latents, tiles), self.wanted.blocks)
        found: dict[str, NDArray[Any]] = {
            f"{FEATURES}/{block}": assemble(feature, tiles).float().cpu().numpy()
            for block, feature in decoded.features.items()
        }
        if self.wanted.reconstruction:
            found[RECONSTRUCTION] = to_pixels(assemble(decoded.video, tiles))
        return found

    def write(self, clips: Sequence[int], found: Mapping[str, NDArray[Any]]) -> None:
        """Into the arrays, which are there."""
        for name, values in found.items():
            array = open_for_writing(self.wanted.store, name)
            with np.errstate(over="ignore"):  # it is looked for below
                stored = values.astype(array.dtype)
            if not np.isfinite(stored).all():
                raise Fault(
                    f"{name} of clips {list(clips)} is not finite in {array.dtype}: up to "
                    f"{np.abs(values).max():g}; set distill.teacher_targets to recompute"
                )
            for clip, value in zip(clips, stored, strict=True):
                array[clip] = value
