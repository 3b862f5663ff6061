"""The cache of the teacher's targets: its video and features for every train clip.

Shapes: B batch, C channels, N clips, T frames, t latent frames, H W pixels, h w latent positions;
a feature of a block is (C', T', H', W').
`targets.zarr` holds `reconstruction` uint8 (N,T,H,W,3) and for each block `features/BLOCK`
(N,C',T',H',W'), float16 where its range allows; a chunk per train clip. `targets.json` identifies
teacher, clips and blocks. Nothing is compressed: Zstandard saves a tenth of tiny-ltx's features and
makes reading them three times as slow. A clip is cached when its chunk is present in all arrays;
each appears whole, so a pass that was killed continues with the missing clips.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from torch import Tensor

from turbo_vaed.dataset.clip_arrays import (
    ClipArray,
    create_clip_array,
    open_for_writing,
    read_together,
    whole_chunks,
)
from turbo_vaed.dataset.clip_pass import Device
from turbo_vaed.dataset.latents import CLIPS_REMEDY, LATENTS_REMEDY, assemble, cut, to_pixels
from turbo_vaed.distill.data import FEATURES, RECONSTRUCTION, TARGETS_REMEDY, read_json
from turbo_vaed.errors import CorruptFile, Fault
from turbo_vaed.runtime.files import sha256_json
from turbo_vaed.storage.urls import filesystem

_LAYOUT = 1
"""Raise it when the content of a cache changes: older caches are then made anew."""
_MAX_FLOAT16 = 65504.0
_FLOAT16_MARGIN = 16.0
"""Features are stored as float16 if their largest value in the first clips is this many times below
the largest float16, else as float32."""
_READS = 3


@dataclass(frozen=True, kw_only=True)
class TeacherTargetsSpec:
    """Which targets of which teacher, for which clips: plain values that pickle to any node."""

    family: str
    weights: str
    clips: str
    """Output of the stage `clip`; a folder or URL, as are the next two."""
    latents: str
    """Output of the stage `encode`, by the same teacher."""
    targets: str
    """Where the cache is, or would be."""
    blocks: tuple[str, ...]
    """Blocks of the teacher's decoder whose features are needed."""
    reconstruction: bool
    """Whether the teacher's video is needed."""

    @property
    def arrays(self) -> list[str]:
        """Names of the cache's arrays."""
        features = [f"{FEATURES}/{block}" for block in self.blocks]
        return [RECONSTRUCTION, *features] if self.reconstruction else features

    @property
    def store(self) -> str:
        """The Zarr group."""
        return f"{self.targets}/targets.zarr"

    def train_clips(self) -> list[int]:
        """Indices of the clips of the train split."""
        clips = read_json(f"{self.clips}/clips.json", CLIPS_REMEDY)["clips"]
        return [clip["index"] for clip in clips if clip["split"] == "train"]

    def missing(self) -> list[int]:
        """The train clips that are not cached, wholly or in part."""
        train = set(self.train_clips())
        cached = train.intersection(*(whole_chunks(self.store, name) for name in self.arrays))
        return sorted(train - cached)

    def key(self) -> str:
        """Digest of all that decides the cache's content: teacher, clips, latents and blocks."""
        clips = read_json(f"{self.clips}/clips.json", CLIPS_REMEDY)
        latents = read_json(f"{self.latents}/latents.json", LATENTS_REMEDY)
        return sha256_json([_LAYOUT, self.family, self.arrays, [clips, latents]])


@dataclass(frozen=True, kw_only=True)
class CacheMeasurement:
    """Speeds and sizes of one worker on one batch of clips, after a warm-up."""

    crop: int
    """Pixels per side."""
    crops_at_once: int
    device: Device
    teacher_seconds_per_clip: float
    teacher_seconds_per_crop: float
    bytes_per_clip: int
    read_mb_per_s: float
    write_mb_per_s: float
    """1e6 bytes. On a disk through the page cache, as in training; a cache larger than memory is
    read more slowly than this."""
    teacher_bytes: int
    """Of its weights."""
    memory_bytes: int
    """Of the worker's GPU, or its CPU's share of the machine's."""
    feature_error: float
    """RMS of the storage's rounding over the features' standard deviation, for the worst block."""


def read_measurement(spec: TeacherTargetsSpec) -> CacheMeasurement | None:
    """The measurement in targets.json; None where there is no cache for this spec."""
    try:
        facts = read_json(f"{spec.targets}/targets.json", TARGETS_REMEDY)
    except CorruptFile:
        return None
    return CacheMeasurement(**facts["measured"]) if facts.get("key") == spec.key() else None


def write_description(spec: TeacherTargetsSpec, measured: CacheMeasurement) -> None:
    """Write targets.json, atomically: without it the arrays are not used.

    Args:
        measured: for a run that resumes.
    """
    facts = {
        "key": spec.key(),
        "blocks": spec.blocks,
        "reconstruction": spec.reconstruction,
        "measured": asdict(measured),
    }
    files, root = filesystem(spec.targets)
    partial = f"{root}/targets.json.partial"
    files.pipe_file(partial, json.dumps(facts, indent=1).encode())
    files.mv(partial, f"{root}/targets.json")


def delete_cache(spec: TeacherTargetsSpec) -> None:
    """Remove the cache at `spec.targets`, whatever it was for."""
    files, root = filesystem(spec.targets)
    for name in ("targets.json", "targets.zarr"):
        if files.exists(f"{root}/{name}"):
            files.rm(f"{root}/{name}", recursive=True)
    files.makedirs(root, exist_ok=True)


def free_bytes(spec: TeacherTargetsSpec) -> int | None:
    """Of the cache's disk; None for a bucket, which has no limit."""
    files, root = filesystem(spec.targets)
    return shutil.disk_usage(root).free if isinstance(files, LocalFileSystem) else None


class CacheWriter:
    """A worker of `pass_over_clips`: decodes clips and writes their targets."""

    def __init__(self, spec: TeacherTargetsSpec, *, device: Device) -> None:
        from turbo_vaed.models.teachers import load_teacher

        self.spec = spec
        self.teacher = load_teacher(spec.family, spec.weights, device=device)
        facts = read_json(f"{spec.latents}/latents.json", LATENTS_REMEDY)
        if self.teacher.sha256 != facts["teacher_sha256"]:
            raise CorruptFile(
                f"the latents in {spec.latents} were made by a teacher of sha256 "
                f"{facts['teacher_sha256'][:12]}…, {spec.weights} has "
                f"{self.teacher.sha256[:12]}…; run the stage `encode` again"
            )
        self.tiles: int = facts.get("tiles", 1)
        self.compression: list[int] = facts["compression"]
        self.latents = ClipArray(f"{spec.latents}/latents.zarr", "latents", remedy=LATENTS_REMEDY)

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Write the targets of the clips in `index`; returns the batch."""
        clips = [int(i) for i in batch["index"]]
        self.write(clips, self.decode(self.read(clips), self.tiles))
        return batch

    def read(self, clips: Sequence[int]) -> Tensor:
        """Latents (B,C,t,h,w)."""
        return torch.from_numpy(np.stack([self.latents[clip] for clip in clips]))

    def decode(self, latents: Tensor, tiles: int = 1) -> dict[str, NDArray[Any]]:
        """Targets by array name: the video as uint8 BTHWC, features as float32 BCTHW.

        Args:
            tiles: per side; each was encoded by itself and is decoded by itself.
        """
        decoded = self.teacher.decode_with_features(cut(latents, tiles), self.spec.blocks)
        targets: dict[str, NDArray[Any]] = {
            f"{FEATURES}/{block}": assemble(feature, tiles).float().cpu().numpy()
            for block, feature in decoded.features.items()
        }
        if self.spec.reconstruction:
            targets[RECONSTRUCTION] = to_pixels(assemble(decoded.video, tiles))
        return targets

    def create_arrays(self, targets: Mapping[str, NDArray[Any]]) -> None:
        """Create the cache's arrays, with shapes and ranges as those of the first `targets`."""
        import zarr

        group = zarr.open_group(self.spec.store, mode="w", zarr_format=3)
        clips = self.latents.shape[0]
        for name, values in targets.items():
            dtype = str(values.dtype)
            if dtype == "float32" and np.abs(values).max() * _FLOAT16_MARGIN < _MAX_FLOAT16:
                dtype = "float16"
            create_clip_array(
                group, name, clips=clips, shape=values.shape[1:], dtype=dtype, is_compressed=False
            )

    def write(self, clips: Sequence[int], targets: Mapping[str, NDArray[Any]]) -> None:
        """Write the targets of `clips` into the arrays.

        Raises:
            Fault: a value is not finite, or too large for the array's type.
        """
        for name, values in targets.items():
            array = open_for_writing(self.spec.store, name)
            with np.errstate(over="ignore"):  # checked below
                stored = values.astype(array.dtype)
            if not np.isfinite(stored).all():
                raise Fault(
                    f"{name} of clips {list(clips)} is not finite in {array.dtype}: up to "
                    f"{np.abs(values).max():g}; set distill.teacher_targets to recompute"
                )
            for clip, value in zip(clips, stored, strict=True):
                array[clip] = value


def measure_on_first_clips(
    spec: TeacherTargetsSpec,
    clips: Sequence[int],
    crop: int,
    crops_at_once: int,
    is_new: bool,
    *,
    device: Device,
) -> CacheMeasurement:
    """Write the targets of the first missing clips as `CacheWriter` does, and time it.

    Args:
        clips: the first that are not cached; their targets stay in the cache.
        crop: pixels per side.
        crops_at_once: of one step of a worker.
        is_new: whether to create the arrays.
        device: of the teacher.

    Raises:
        CorruptFile: a file of the teacher, or the clips' latents.
        Fault: the teacher's output is not finite.
    """
    writer = CacheWriter(spec, device=device)
    latents = writer.read(clips)
    rows, columns = (crop // step for step in writer.compression[1:])
    crops = latents[:1, :, :, :rows, :columns].repeat(crops_at_once, 1, 1, 1, 1)
    writer.decode(crops)  # warm-up
    crops_seconds, _ = _timed(lambda: writer.decode(crops))
    decode_seconds, targets = _timed(lambda: writer.decode(latents, writer.tiles))
    if is_new:
        writer.create_arrays(targets)
    write_seconds, _ = _timed(lambda: writer.write(clips, targets))
    arrays = {
        name: ClipArray(spec.store, name, remedy=TARGETS_REMEDY, is_cached=False)
        for name in targets
    }
    chunks = [(array, (clip,)) for array in arrays.values() for clip in clips]
    read_together(chunks)  # connects
    read_seconds, _ = _timed(lambda: [read_together(chunks) for _ in range(_READS)])
    dtypes = {name: open_for_writing(spec.store, name).dtype for name in targets}
    size = sum(values[0].size * dtypes[name].itemsize for name, values in targets.items())
    features = [name for name in targets if name != RECONSTRUCTION]
    return CacheMeasurement(
        crop=crop,
        crops_at_once=crops_at_once,
        device=device,
        teacher_seconds_per_clip=decode_seconds / len(clips),
        teacher_seconds_per_crop=crops_seconds / crops_at_once,
        bytes_per_clip=size,
        read_mb_per_s=_READS * size * len(clips) / read_seconds / 1e6,
        write_mb_per_s=size * len(clips) / write_seconds / 1e6,
        teacher_bytes=sum(p.numel() * p.element_size() for p in writer.teacher.module.parameters()),
        memory_bytes=_memory_bytes(device),
        feature_error=max((_error(targets[name], dtypes[name]) for name in features), default=0.0),
    )


def _error(values: NDArray[Any], dtype: Any) -> float:
    """RMS of the rounding to `dtype`, over the values' standard deviation."""
    rounding = values.astype(dtype).astype(np.float32) - values
    return float(np.sqrt(np.mean(rounding**2)) / max(float(values.std()), 1e-12))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _memory_bytes(device: Device) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // (os.cpu_count() or 1)
