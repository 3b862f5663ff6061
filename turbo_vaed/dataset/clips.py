"""Which clips are cut from which video, and for which split.

A clip is a slot of `frames` consecutive frames, counted from the video's first, and a square crop
at the video's own resolution. Slots do not overlap, and a slot belongs to one split whatever
crops are taken of it. With `MIN_SOURCES` videos or more a video belongs to one split whole; with
fewer, every video is cut by time, with one unused slot between two splits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from turbo_vaed.errors import DataRefused

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MIN_SOURCES = 5
"""From here on the split is by source video."""
GUARD_SLOTS = 1
"""Slots left unused between two splits of one video."""


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """A good video; pixels, decodable frames, frames per second."""

    path: str
    sha256: str
    width: int
    height: int
    frames: int
    fps: float


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip; `index` is its row in the arrays, (y, x) the crop's upper left corner."""

    index: int
    path: str
    sha256: str
    fps: float
    start_frame: int
    y: int
    x: int
    split: Split


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """Every clip in order of index (by path, then time); `left_out` is (path, reason)."""

    clips: tuple[Clip, ...]
    frames: int
    size: int
    split_by: Literal["source", "time"]
    split_reason: str
    left_out: tuple[tuple[str, str], ...]

    @property
    def counts(self) -> dict[str, int]:
        """Clips per split."""
        found = Counter(clip.split for clip in self.clips)
        return {split: found[split] for split in SPLITS}


def time_ranges(
    frame_count: int, *, frames: int, train_share: float, val_share: float
) -> dict[Split, tuple[int, int]]:
    """The frames [start, stop) of each split when one video is cut by time.

    All are whole slots; one unused slot lies between train and val and between val and test.
    A video of fewer than five slots cannot hold all three splits: it is train only, and val and
    test are empty ranges.
    """
    slots = frame_count // frames
    usable = slots - 2 * GUARD_SLOTS
    if usable < len(SPLITS):
        end = slots * frames
        return {"train": (0, end), "val": (end, end), "test": (end, end)}
    train, val, test = _parts(usable, train_share, val_share)
    val_start = train + GUARD_SLOTS
    test_start = val_start + val + GUARD_SLOTS
    return {
        "train": (0, train * frames),
        "val": (val_start * frames, (val_start + val) * frames),
        "test": (test_start * frames, (test_start + test) * frames),
    }


def plan_clips(
    videos: Sequence[SourceVideo],
    *,
    frames: int,
    size: int,
    clips_per_video: int,
    train_share: float,
    val_share: float,
    seed: int,
) -> ClipPlan:
    """Choose the clips; the same arguments, in whatever order of videos, give the same plan.

    Args:
        videos: good videos; those that cannot hold one clip are left out, and named.
        frames: frames of a clip.
        size: side of the crop, pixels.
        clips_per_video: clips of one video, spread evenly over its slots. With more clips than
            slots several crops are taken of one slot, all different; never fewer than one clip
            per split is taken.
        train_share: share of the videos, or of the time in each, for training.
        val_share: likewise for validation; the rest is for the test.
        seed: of the split and of the crops.

    Raises:
        DataRefused: no train or no test clip is left.
    """
    usable, left_out = _usable(videos, frames, size)
    if not usable:
        raise DataRefused(
            f"no video can hold one clip of {frames} frames and {size}x{size} pixels; "
            "add longer or larger videos, or lower clip.frames or clip.size. Found:"
            + "".join(f"\n  {path}: {reason}" for path, reason in left_out)
        )
    by_source = len(usable) >= MIN_SOURCES
    if by_source:
        ranges, reason = _split_sources(usable, frames, train_share, val_share, seed)
    else:
        ranges, reason = _split_time(usable, frames, train_share, val_share)
    clips: list[Clip] = []
    for video in usable:
        for split, slot, (y, x) in _choose(video, ranges[video.path], frames, size,
                                           clips_per_video, seed):  # fmt: skip
            clips.append(
                Clip(
                    index=len(clips), path=video.path, sha256=video.sha256, fps=video.fps,
                    start_frame=slot * frames, y=y, x=x, split=split,
                )
            )  # fmt: skip
    plan = ClipPlan(
        clips=tuple(clips),
        frames=frames,
        size=size,
        split_by="source" if by_source else "time",
        split_reason=reason,
        left_out=tuple(left_out),
    )
    empty = [split for split in ("train", "test") if not plan.counts[split]]
    if empty:
        needed = (len(SPLITS) + 2 * GUARD_SLOTS) * frames
        raise DataRefused(
            f"no {' and no '.join(empty)} clip is left: {reason}; add a video of at least "
            f"{needed} frames, or at least {MIN_SOURCES} videos, or lower clip.frames ({frames})"
        )
    return plan


def _usable(
    videos: Sequence[SourceVideo], frames: int, size: int
) -> tuple[list[SourceVideo], list[tuple[str, str]]]:
    """Videos that hold a clip, by path, and (path, reason) of those that do not."""
    usable, left_out = [], []
    for video in sorted(videos, key=lambda v: v.path):
        if video.frames < frames:
            left_out.append((video.path, f"{video.frames} frames, a clip has {frames}"))
        elif min(video.width, video.height) < size:
            left_out.append(
                (video.path, f"{video.width}x{video.height} pixels, a crop has {size}x{size}")
            )
        else:
            usable.append(video)
    return usable, left_out


def _parts(total: int, train_share: float, val_share: float) -> tuple[int, int, int]:
    """`total` >= 3 things in (train, val, test), close to the shares, at least one each."""
    train = max(1, min(total - 2, round(total * train_share)))
    val = max(1, min(total - train - 1, round(total * val_share)))
    return train, val, total - train - val


def _split_sources(
    videos: Sequence[SourceVideo], frames: int, train_share: float, val_share: float, seed: int
) -> tuple[dict[str, dict[Split, tuple[int, int]]], str]:
    """Path -> {its split: all its frames}, and the reason in words."""
    shuffled = list(videos)
    random.Random(f"split/{seed}").shuffle(shuffled)
    train, val, test = _parts(len(shuffled), train_share, val_share)
    order = [
        split for split, count in zip(SPLITS, (train, val, test), strict=True) for _ in range(count)
    ]
    ranges: dict[str, dict[Split, tuple[int, int]]] = {
        video.path: {split: (0, video.frames // frames * frames)}
        for video, split in zip(shuffled, order, strict=True)
    }
    return ranges, (
        f"{len(videos)} sources, at least {MIN_SOURCES}: {train} for train, {val} for val, "
        f"{test} for test; no source is in two splits"
    )


def _split_time(
    videos: Sequence[SourceVideo], frames: int, train_share: float, val_share: float
) -> tuple[dict[str, dict[Split, tuple[int, int]]], str]:
    """Path -> {split: its frames}, and the reason in words, short sources named."""
    ranges = {
        v.path: time_ranges(v.frames, frames=frames, train_share=train_share, val_share=val_share)
        for v in videos
    }
    short = [path for path, r in ranges.items() if r["test"][0] == r["test"][1]]
    reason = (
        f"{len(videos)} source{'s' * (len(videos) != 1)}, fewer than {MIN_SOURCES}: each is cut "
        f"by time, with a guard gap of one clip ({frames} frames) between train, val and test"
    )
    if short:
        reason += f"; too short for all three, train only: {', '.join(short)}"
    return ranges, reason


def _choose(
    video: SourceVideo,
    ranges: dict[Split, tuple[int, int]],
    frames: int,
    size: int,
    clips_per_video: int,
    seed: int,
) -> list[tuple[Split, int, tuple[int, int]]]:
    """(split, slot, (y, x)) of the clips of one video, in order of time."""
    slots = {
        split: range(start // frames, stop // frames)
        for split, (start, stop) in ranges.items()
        if stop > start
    }
    columns = video.width - size + 1
    positions = columns * (video.height - size + 1)
    chosen = []
    for split, quota in _quotas({s: len(r) for s, r in slots.items()}, clips_per_video).items():
        inside = slots[split]
        crops = Counter(inside[i * len(inside) // quota] for i in range(quota))
        for slot, count in sorted(crops.items()):
            dice = random.Random(f"crop/{seed}/{video.sha256}/{slot}")
            for position in dice.sample(range(positions), min(count, positions)):
                chosen.append((split, slot, divmod(position, columns)))
    return chosen


def _quotas(slots: dict[Split, int], clips: int) -> dict[Split, int]:
    """Clips per split in proportion to its slots, at least one each; largest remainder."""
    spare = max(0, clips - len(slots))
    exact = {split: spare * n / sum(slots.values()) for split, n in slots.items()}
    quotas = {split: 1 + int(share) for split, share in exact.items()}
    left = spare - sum(int(share) for share in exact.values())
    for split in sorted(exact, key=lambda s: int(exact[s]) - exact[s])[:left]:
        quotas[split] += 1
    return quotas
