"""Batches of a step: crops of latents, of the source and of the teacher's targets.

Shapes: B batch, C latent channels, T frames, t latent frames, H W pixels, h w latent positions;
a feature is (B, C', T', H', W') with H' and W' multiples of h and w.
Sample j of a step is a function of (seed, step, j) alone: a resumed run sees the same data as an
uninterrupted one, and two workers together the same as one.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from turbo_vaed.dataset.clip_arrays import ClipArray, read_together
from turbo_vaed.dataset.latents import CLIPS_REMEDY, LATENTS_REMEDY, to_network
from turbo_vaed.errors import CorruptFile, DataRefused
from turbo_vaed.storage.urls import filesystem, worker_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECONSTRUCTION = "reconstruction"
"""Name of the array of a targets cache that holds the teacher's video."""
FEATURES = "features"
"""Name of the group of a targets cache that holds an array per block of the teacher."""
TARGETS_REMEDY = "run the stage `distill` again: it writes what is missing"
_LATENTS, _SOURCE = "latents", "source"
_VIDEOS = (_SOURCE, RECONSTRUCTION)
"""(N,T,H,W,3); all other arrays are (N,C,T,H,W)."""
MEMORY_BYTES = 2**30
"""Of chunks that a worker keeps in memory: reading one costs a millisecond of CPU time, however
small it is, and a batch has several for every clip."""
_ORDER, _CORNER = 0, 1  # independent streams of random numbers


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Where a sample is cut out: its clip, and its upper left corner in latent positions."""

    clip: int
    row: int
    column: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Latents (B, C, t, h, w), videos (B, 3, T, H, W) in [-1, 1], all float32."""

    latents: Tensor
    source: Tensor
    teacher: Tensor | None = None
    """The teacher's reconstruction; None where no loss needs it."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of blocks of the teacher's decoder, by block name."""

    def to(self, device: torch.device) -> Batch:
        """A copy on `device`; from pinned memory the copy is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """A copy in pinned memory, for asynchronous copies to a GPU."""
        return self._each(lambda tensor: tensor.pin_memory())

    def with_finite_latents(self) -> Batch:
        """Itself; where latents are not finite, zeros and a source of NaN: then the loss fails, on
        all ranks, and not the decoder's check of its input, on one."""
        if self.latents.isfinite().all():
            return self
        latents, source = torch.zeros_like(self.latents), torch.full_like(self.source, math.nan)
        return replace(self, latents=latents, source=source)

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` clips."""
        starts = range(0, len(self.latents), size)
        return [self._each(itemgetter(slice(i, i + size))) for i in starts]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            latents=change(self.latents),
            source=change(self.source),
            teacher=None if self.teacher is None else change(self.teacher),
            features={name: change(feature) for name, feature in self.features.items()},
        )


class Clips:
    """A customer's clips, their latents and, where they are cached, the teacher's targets."""

    def __init__(
        self, *, clips: str | Path, latents: str | Path, targets: str | Path | None = None
    ) -> None:
        """Open what the stages `clip` and `encode` wrote, and a filled targets cache.

        Args:
            clips, latents, targets: folders, or fsspec URLs (s3://…).

        Raises:
            CorruptFile: one is missing, or they do not hold the same clips.
        """
        clips, latents = str(clips).rstrip("/"), str(latents).rstrip("/")
        self.index = read_json(f"{clips}/clips.json", CLIPS_REMEDY)["clips"]
        facts = read_json(f"{latents}/latents.json", LATENTS_REMEDY)
        self.compression: tuple[int, int] = tuple(facts["compression"][1:])
        self.tiles: int = facts.get("tiles", 1)
        """Per side of a train clip; each tile was encoded by itself."""
        self.video = ClipArray(f"{clips}/clips.zarr", "video", remedy=CLIPS_REMEDY)
        self.latents = ClipArray(f"{latents}/latents.zarr", "latents", remedy=LATENTS_REMEDY)
        arrays = {_LATENTS: self.latents, _SOURCE: self.video}
        if targets is not None:
            arrays |= _open_targets(str(targets).rstrip("/"))
        for array in arrays.values():
            if array.shape[0] != len(self.index):
                raise CorruptFile(
                    f"{array} holds {array.shape[0]} clips, {clips}/clips.json names "
                    f"{len(self.index)}; run the stages `clip`, `encode` and `distill` again"
                )
        self._arrays = {name: self._croppable(name, array) for name, array in arrays.items()}
        self._memory: dict[tuple[str, int], NDArray[Any]] = {}
        self._memory_lock = threading.Lock()  # the prefetcher's thread and a repeated read

    def of_split(self, split: str) -> list[int]:
        """Indices of the clips of `train`, `val` or `test`.

        Raises:
            DataRefused: the split is empty.
        """
        found = [clip["index"] for clip in self.index if clip["split"] == split]
        if not found:
            raise DataRefused(f"no clip in the {split} split; add videos or lower clip.frames")
        return found

    def draw_crops(self, *, split: str, size: int, count: int, seed: int, step: int) -> list[Crop]:
        """The `count` samples of a step, crops of `size` x `size` pixels.

        Anywhere in clips that were encoded whole. Of clips that were encoded in tiles a crop is one
        tile: latents at the edges of any other depend on pixels outside the crop. Every clip is
        drawn once per epoch, in a new order each time, so that the cost of encoding each and of
        caching its targets is used equally.

        Args:
            count: the same for every step of a run.
            seed: at least 0.
        """
        clips = self.of_split(split)
        rows, columns = self._positions(size)
        _, _, _, height, width = self.latents.shape
        down, across = (rows, columns) if self.tiles > 1 else (1, 1)
        assert self.tiles == 1 or self.tiles * rows == height, "the stage checks that a crop is one"
        crops = []
        for j in range(count):
            epoch, turn = divmod(step * count + j, len(clips))
            rng = np.random.default_rng((_CORNER, seed, step, j))
            crops.append(
                Crop(
                    clip=clips[_order(seed, epoch, len(clips))[turn]],
                    row=down * int(rng.integers((height - rows) // down + 1)),
                    column=across * int(rng.integers((width - columns) // across + 1)),
                )
            )
        return crops

    def read(self, crops: Sequence[Crop], size: int) -> Batch:
        """The crops, `size` x `size` pixels each.

        Raises:
            CorruptFile: a chunk is missing or damaged.
        """
        positions = self._positions(size)
        chunks = self._chunks({crop.clip for crop in crops})
        found = {
            name: np.stack(
                [chunks[name, crop.clip][array.slices(crop, positions)] for crop in crops]
            )
            for name, array in self._arrays.items()
        }
        return Batch(
            latents=torch.from_numpy(found.pop(_LATENTS)),
            source=to_network(found.pop(_SOURCE)),
            teacher=to_network(found.pop(RECONSTRUCTION)) if RECONSTRUCTION in found else None,
            features={block: torch.from_numpy(values).float() for block, values in found.items()},
        )

    def clear_memory(self) -> None:
        """Drop the chunks in memory: they may be what was wrong with a batch."""
        self._memory = {}

    def _chunks(self, clips: Iterable[int]) -> dict[tuple[str, int], NDArray[Any]]:
        """Of each array and clip, from memory or read, and kept in memory while there is room.

        Nothing is evicted: clips are drawn in epochs, so the oldest chunk is the next one needed.
        """
        memory = self._memory
        needed = [(name, clip) for name in self._arrays for clip in sorted(clips)]
        missing = [key for key in needed if key not in memory]
        read = read_together([(self._arrays[name].array, (clip,)) for name, clip in missing])
        fresh = dict(zip(missing, read, strict=True))
        found = {key: fresh[key] if key in fresh else memory[key] for key in needed}
        with self._memory_lock:
            room = MEMORY_BYTES - sum(chunk.nbytes for chunk in memory.values())
            for key, chunk in fresh.items():
                room -= chunk.nbytes
                if room >= 0:
                    memory[key] = chunk
        return found

    def whole(self, index: int) -> Batch:
        """Latents and source of one whole clip, B = 1.

        Raises:
            CorruptFile: a chunk is missing or damaged.
        """
        return Batch(
            latents=torch.from_numpy(self.latents[index][None]),
            source=to_network(self.video[index][None]),
        )

    def _positions(self, size: int) -> tuple[int, int]:
        """Latent rows and columns of a crop of `size` pixels."""
        down, across = self.compression
        assert size % down == 0 == size % across, "the stage checks the crop before it is paid for"
        return size // down, size // across

    def _croppable(self, name: str, array: ClipArray) -> _Croppable:
        row_axis = 2 if name in _VIDEOS else 3
        sizes, ours = array.shape[row_axis : row_axis + 2], self.latents.shape[3:5]
        if sizes[0] % ours[0] or sizes[1] % ours[1]:
            raise CorruptFile(
                f"{array} {array.shape} cannot be cropped with latents {self.latents.shape}: "
                f"expected its height and width to be multiples of theirs; {TARGETS_REMEDY}"
            )
        return _Croppable(array, row_axis, sizes[0] // ours[0], sizes[1] // ours[1])


class _Croppable(NamedTuple):
    """An array with `down` rows and `across` columns per latent position."""

    array: ClipArray
    row_axis: int
    down: int
    across: int

    def slices(self, crop: Crop, positions: tuple[int, int]) -> tuple[slice, ...]:
        """Of the clip's chunk, for a crop of so many latent rows and columns."""
        rows = slice(crop.row * self.down, (crop.row + positions[0]) * self.down)
        columns = slice(crop.column * self.across, (crop.column + positions[1]) * self.across)
        return (*[slice(None)] * (self.row_axis - 1), rows, columns)


class Prefetcher:
    """Reads the next batches in a thread. A context manager; `get` raises what a read raised."""

    def __init__(
        self,
        read: Callable[[int], Batch],
        *,
        stop: int,
        device: torch.device,
        depth: int = 2,
    ) -> None:
        """
        Args:
            read: step -> its batch; called in the thread, in order of step.
            stop: the step after the last; nothing is read from there on.
            device: of the training; for a GPU batches come in pinned memory.
            depth: batches read ahead of the one returned.
        """
        self._read, self._stop, self._depth = read, stop, depth
        self._pins = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[int, Future[Batch]] = {}

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def get(self, step: int) -> Batch:
        """The batch of `step`, waiting for it where necessary."""
        for ahead in range(step, min(step + 1 + self._depth, self._stop)):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._thread.submit(self._load, ahead)
        return self._ahead.pop(step).result()

    def _load(self, step: int) -> Batch:
        batch = self._read(step)
        return batch.pinned() if self._pins else batch


def _open_targets(folder: str) -> dict[str, ClipArray]:
    """The arrays of a targets cache, by block, and `RECONSTRUCTION`."""
    facts = read_json(f"{folder}/targets.json", TARGETS_REMEDY)
    names = {block: f"{FEATURES}/{block}" for block in facts["blocks"]}
    if facts["reconstruction"]:
        names[RECONSTRUCTION] = RECONSTRUCTION
    open_array = functools.partial(ClipArray, f"{folder}/targets.zarr", remedy=TARGETS_REMEDY)
    return {name: open_array(stored) for name, stored in names.items()}


def read_json(url: str, remedy: str) -> dict[str, Any]:
    """The JSON object at a path or fsspec URL.

    Raises:
        CorruptFile: it is missing or not JSON.
    """
    try:
        files, root = filesystem(url)
        with worker_errors(url):
            document: dict[str, Any] = json.loads(files.cat_file(root))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{url} cannot be read ({error}); {remedy}") from error
    return document


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which an epoch draws `count` clips."""
    order: list[int] = np.random.default_rng((_ORDER, seed, epoch)).permutation(count).tolist()
    return order
