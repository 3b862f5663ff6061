"""What a cache of the teacher's targets would cost, measured while its first clips are written.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels, h w latent positions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from turbo_vaed.dataset.clip_arrays import ClipArray, open_for_writing, read_together
from turbo_vaed.dataset.clip_pass import Device
from turbo_vaed.dataset.latents import LATENTS_REMEDY
from turbo_vaed.distill.data import FEATURES, TARGETS_REMEDY, read_json
from turbo_vaed.distill.target_cache import TargetWriter, Wanted, create

if TYPE_CHECKING:
    from turbo_vaed.models.teachers import Teacher

_READS = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one worker on one batch of clips, after a warm-up."""

    crop: int
    crops_at_once: int
    device: Device
    teacher_seconds_per_clip: float
    teacher_seconds_per_crop: float
    bytes_per_clip: int
    read_mb_per_s: float
    write_mb_per_s: float
    """Through the page cache where the place is a disk, as in training: of a cache larger than
    memory, reads are slower than this."""
    teacher_bytes: int
    memory_bytes: int
    feature_error: float
    """Root mean square of what storing takes from the features, over their spread: the worst
    block's."""


def begin_cache(
    wanted: Wanted,
    clips: Sequence[int],
    crop: int,
    crops_at_once: int,
    is_new: bool,
    *,
    device: Device,
) -> Measured:
    """Write the targets of some clips as the pass will, and measure all that the choice asks for.

    Args:
        clips: the first that the cache lacks: what is measured is kept.
        crop: side in pixels.
        crops_at_once: of one step of a worker.
        is_new: whether the arrays are still to be made.
        device: of the teacher.

    Raises:
        CorruptFile: a file of the teacher, or the clips' latents.
        Fault: the teacher puts out what is not finite.
    """
    writer = TargetWriter(wanted, device=device)
    latents = writer.read(clips)
    facts = read_json(f"{wanted.latents}/latents.json", LATENTS_REMEDY)
    rows, columns = (crop // step for step in facts["compression"][1:])
    crops = latents[:1, :, :, :rows, :columns].repeat(crops_at_once, 1, 1, 1, 1)
    writer.decode(crops)  # the first call prepares what all later ones have
    per_crop, _ = _timed(lambda: writer.decode(crops))
    decoding, found = _timed(lambda: writer.decode(latents, writer.tiles))
    if is_new:
        create(wanted, writer.latents.shape[0], found)
    stored = {name: open_for_writing(wanted.store, name) for name in found}
    size = sum(int(np.prod(a.shape[1:])) * a.dtype.itemsize for a in stored.values())
    writing, _ = _timed(lambda: writer.write(clips, found))
    reading = _seconds_of_reading(wanted, clips)
    return Measured(
        crop=crop,
        crops_at_once=crops_at_once,
        device=device,
        teacher_seconds_per_clip=decoding / len(clips),
        teacher_seconds_per_crop=per_crop / crops_at_once,
        bytes_per_clip=size,
        read_mb_per_s=size * len(clips) / reading / 1e6,
        write_mb_per_s=size * len(clips) / writing / 1e6,
        teacher_bytes=_weights_bytes(writer.teacher),
        memory_bytes=_memory_bytes(device),
        feature_error=max(
            (_error(found[name], stored[name].dtype) for name in found if FEATURES in name),
            default=0.0,
        ),
    )


def _seconds_of_reading(wanted: Wanted, clips: Sequence[int]) -> float:
    """All targets of some clips, after a first read, which also connects."""
    arrays = [ClipArray(wanted.store, name, remedy=TARGETS_REMEDY) for name in wanted.arrays]
    every = [(array, (clip,)) for array in arrays for clip in clips]
    read_together(every)
    seconds, _ = _timed(lambda: [read_together(every) for _ in range(_READS)])
    return seconds / _READS


def _error(values: NDArray[Any], dtype: Any) -> float:
    """Root mean square of the rounding, over the values' standard deviation."""
    rounding = values.astype(dtype).astype(np.float32) - values
    return float(np.sqrt(np.mean(rounding**2)) / max(float(values.std()), 1e-12))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _weights_bytes(teacher: Teacher) -> int:
    return sum(p.numel() * p.element_size() for p in teacher.module.parameters())


def _memory_bytes(device: Device) -> int:
    """Of the worker's GPU, or of its CPU's share of the machine."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // (os.cpu_count() or 1)
