"""Whether the teacher's targets are cached or computed again in every step: which costs less time.

A cache costs a pass of the teacher over every train clip, once, its writing, and a read of each
sample of each step, but for clips that a worker holds in memory, which it reads once. Computing
again costs a pass over each sample of each step. Reading is counted although most of it is hidden
behind the steps: that is in favour of computing again.
Loading the teacher costs the same either way and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from turbo_vaed.errors import BudgetRefused, UserError

Mode = Literal["none", "cache", "recompute"]
DISK_MARGIN = 1.1
"""A cache must leave a tenth of its own size free."""
TEACHER_MEMORY_SHARE = 0.25
"""The teacher's weights may take so much of a worker's memory; what it puts out between its layers
comes on top, and the student with its gradients needs the rest."""


@dataclass(frozen=True, kw_only=True)
class TargetCosts:
    """What is known before the choice."""

    train_clips: int
    cached_clips: int
    """Of them, written already."""
    samples: int
    """Of all steps: steps x batch size."""
    workers: int
    bytes_per_clip: int
    """Of its targets. A clip is read whole, whatever the crop."""
    held_clips: int
    """So many stay in a worker's memory once they are read."""
    read_mb_per_s: float
    write_mb_per_s: float
    """Of one worker, 1e6 bytes."""
    free_bytes: int | None
    """Where the cache would lie; None where nothing bounds it (a bucket)."""
    teacher_seconds_per_clip: float
    teacher_seconds_per_crop: float
    """Of one worker."""
    teacher_bytes: int
    """Of its weights."""
    memory_bytes: int
    """Of one worker, on its GPU or its share of the machine."""
    affordable_seconds: float
    """That the run's budget still holds."""

    @property
    def missing_clips(self) -> int:
        """Train clips that a cache still lacks."""
        return self.train_clips - self.cached_clips

    @property
    def missing_bytes(self) -> int:
        """What a cache still needs on the disk."""
        return self.missing_clips * self.bytes_per_clip

    @property
    def seconds_written(self) -> float:
        """Of the pass that fills the cache."""
        write = self.bytes_per_clip / (1e6 * self.write_mb_per_s)
        return self.missing_clips * (self.teacher_seconds_per_clip + write) / self.workers

    @property
    def reads_per_worker(self) -> float:
        """Clips that a worker reads from the cache in all steps."""
        samples, held = self.samples / self.workers, min(self.held_clips, self.train_clips)
        return min(samples, held + samples * (1 - held / self.train_clips))

    @property
    def seconds_read(self) -> float:
        """Of all reads from the cache."""
        return self.reads_per_worker * self.bytes_per_clip / (1e6 * self.read_mb_per_s)

    @property
    def seconds_cached(self) -> float:
        """Of the cache, all in all."""
        return self.seconds_written + self.seconds_read

    @property
    def seconds_recomputed(self) -> float:
        """Of the teacher in all steps."""
        return self.samples * self.teacher_seconds_per_crop / self.workers


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """Where a run's targets come from."""

    blocks: tuple[str, ...]
    """Blocks of the teacher whose features are wanted."""
    reconstruction: bool
    """Whether the teacher's video is wanted."""
    mode: Mode
    reason: str
    """For a person, with figures."""
    figures: dict[str, float]


def choose(
    costs: TargetCosts,
    *,
    blocks: tuple[str, ...],
    reconstruction: bool,
    wish: Literal["auto", "cache"],
) -> TargetPlan:
    """The plan that costs less time, or the one that is wished for, as far as it can be paid.

    Raises:
        UserError: a cache is wished for and does not fit, or neither it nor the teacher does.
        BudgetRefused: the budget does not hold a cache, and without one no worker can do.
    """
    no_disk, no_memory, no_money = (
        _lack_of_disk(costs),
        _lack_of_memory(costs),
        _lack_of_money(costs),
    )
    mode: Mode
    if no_disk and (wish == "cache" or no_memory):
        raise UserError(
            f"the teacher's targets cannot be cached: {no_disk}; free some, or set "
            "distill.weight_feature or distill.weight_teacher to 0"
            + (f" (and {no_memory})" if no_memory else ", or distill.teacher_targets to recompute")
        )
    if no_money and no_memory:
        raise BudgetRefused(
            f"the teacher's targets cannot be cached: {no_money}, and {no_memory}; raise "
            "budget.run_usd, or set distill.weight_feature and distill.weight_teacher to 0"
        )
    if no_money:
        mode, why = "recompute", no_money
    elif wish == "cache":
        mode, why = "cache", "as distill.teacher_targets says"
    elif no_disk:
        mode, why = "recompute", no_disk
    elif no_memory:
        mode, why = "cache", no_memory
    elif costs.seconds_cached <= costs.seconds_recomputed:
        mode, why = "cache", "which takes less time"
    else:
        mode, why = "recompute", "which takes less time"
    return TargetPlan(
        blocks=blocks,
        reconstruction=reconstruction,
        mode=mode,
        reason=f"{_WORDS[mode]}, {why}. {_comparison(costs)}",
        figures={
            "bytes_per_clip": costs.bytes_per_clip,
            "read_mb_per_s": costs.read_mb_per_s,
            "write_mb_per_s": costs.write_mb_per_s,
            "teacher_seconds_per_clip": costs.teacher_seconds_per_clip,
            "teacher_seconds_per_crop": costs.teacher_seconds_per_crop,
            "seconds_cached": costs.seconds_cached,
            "seconds_recomputed": costs.seconds_recomputed,
        },
    )


_WORDS = {"cache": "the teacher's targets are cached", "recompute": "they are computed every step"}


def _lack_of_disk(costs: TargetCosts) -> str:
    """Why a cache does not fit, "" where it does."""
    needed = costs.missing_bytes * DISK_MARGIN
    if costs.free_bytes is None or needed <= costs.free_bytes:
        return ""
    return (
        f"they need {needed / 1e9:.2f} GB of disk with a tenth to spare and "
        f"{costs.free_bytes / 1e9:.2f} GB are free"
    )


def _lack_of_money(costs: TargetCosts) -> str:
    """Why the budget does not hold a cache, "" where it does."""
    if costs.seconds_written <= costs.affordable_seconds:
        return ""
    return (
        f"to write them takes {costs.seconds_written:.0f} s and the budget holds "
        f"{costs.affordable_seconds:.0f} s before what must follow"
    )


def _lack_of_memory(costs: TargetCosts) -> str:
    """Why no worker can hold the teacher beside the student, "" where it can."""
    if costs.teacher_bytes <= TEACHER_MEMORY_SHARE * costs.memory_bytes:
        return ""
    return (
        f"the teacher's {costs.teacher_bytes / 1e9:.1f} GB of weights are too much beside a "
        f"student in the {costs.memory_bytes / 1e9:.1f} GB of a worker"
    )


def _comparison(costs: TargetCosts) -> str:
    """Both sides in seconds, and what they were worked out from."""
    return (
        f"Cached: {costs.seconds_cached:.1f} s on {costs.workers} workers, "
        f"{costs.seconds_written:.1f} s to write {costs.missing_clips} of {costs.train_clips} "
        f"clips and {costs.seconds_read:.1f} s for {costs.reads_per_worker:.0f} reads each of "
        f"{costs.bytes_per_clip / 1e6:.2f} MB at {costs.read_mb_per_s:.0f} MB/s; computed again: "
        f"{costs.seconds_recomputed:.1f} s. The teacher takes "
        f"{costs.teacher_seconds_per_clip:.3f} s per clip and "
        f"{costs.teacher_seconds_per_crop:.3f} s per crop"
    )
