"""Whether the teacher's targets are cached or recomputed in every step, and either way of it.

A cache costs one pass of the teacher over every train clip, its writing, and a read of each sample
of each step, except for clips that a worker has in memory, which it reads once. Recomputing costs a
pass of the teacher over each sample of each step. Reads are counted although most of them overlap
with steps, which favours recomputing. Loading the teacher costs the same either way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Spending
from turbo_vaed.dataset.clip_pass import pass_over_clips, room, run_on_worker
from turbo_vaed.distill.data import MEMORY_BYTES, Batch
from turbo_vaed.distill.teacher_cache import (
    CacheMeasurement,
    CacheWriter,
    TeacherTargetsSpec,
    delete_cache,
    free_bytes,
    measure_on_first_clips,
    read_measurement,
    write_description,
)
from turbo_vaed.errors import BudgetRefused, UserError

Mode = Literal["none", "cache", "recompute"]
DISK_MARGIN = 1.1
"""A cache must leave a tenth of its own size free."""
TEACHER_MEMORY_SHARE = 0.25
"""Of a worker's memory, the most that the teacher's weights may take: its activations come on top,
and the student with its gradients needs the rest."""
_CACHING = "caching the teacher's targets"
_MEASURING = "measuring the cost of the teacher's targets"


@dataclass(frozen=True, kw_only=True)
class TeacherTargetsPlan:
    """Where a run's targets come from."""

    blocks: tuple[str, ...]
    """Blocks of the teacher whose features are needed."""
    reconstruction: bool
    """Whether the teacher's video is needed."""
    mode: Mode
    reason: str
    """For a person, with figures; begins with how: "cached, …"."""
    figures: dict[str, float] = field(default_factory=dict)
    """What was measured and what follows; empty where the choice needed no measurement."""


@dataclass(frozen=True, kw_only=True)
class CacheCosts:
    """All that the choice between caching and recomputing depends on."""

    train_clips: int
    cached_clips: int
    """Of them, already in the cache."""
    samples: int
    """Of all steps: steps x batch size."""
    workers: int
    bytes_per_clip: int
    """Of its targets. A clip is read whole, whatever the crop."""
    clips_in_memory: int
    """That fit into a worker's memory once they are read."""
    read_mb_per_s: float
    write_mb_per_s: float
    """Of one worker, 1e6 bytes."""
    free_bytes: int | None
    """Where the cache would be; None where there is no limit (a bucket)."""
    teacher_seconds_per_clip: float
    teacher_seconds_per_crop: float
    """Of one worker."""
    teacher_bytes: int
    """Of its weights."""
    memory_bytes: int
    """Of one worker, on its GPU or its share of the machine."""
    affordable_seconds: float
    """Before the run's reserve is touched."""

    @property
    def missing_clips(self) -> int:
        """Train clips that are not cached yet."""
        return self.train_clips - self.cached_clips

    @property
    def write_seconds(self) -> float:
        """Of the pass that fills the cache."""
        write = self.bytes_per_clip / (1e6 * self.write_mb_per_s)
        return self.missing_clips * (self.teacher_seconds_per_clip + write) / self.workers

    @property
    def reads_per_worker(self) -> float:
        """Clips that a worker reads from the cache in all steps."""
        samples, held = self.samples / self.workers, min(self.clips_in_memory, self.train_clips)
        return min(samples, held + samples * (1 - held / self.train_clips))

    @property
    def read_seconds(self) -> float:
        """Of all reads from the cache."""
        return self.reads_per_worker * self.bytes_per_clip / (1e6 * self.read_mb_per_s)

    @property
    def cache_seconds(self) -> float:
        """Writing and reading the cache."""
        return self.write_seconds + self.read_seconds

    @property
    def recompute_seconds(self) -> float:
        """Of the teacher in all steps."""
        return self.samples * self.teacher_seconds_per_crop / self.workers

    def disk_shortage(self) -> str:
        """Why a cache does not fit on the disk; "" where it does."""
        needed = self.missing_clips * self.bytes_per_clip * DISK_MARGIN
        if self.free_bytes is None or needed <= self.free_bytes:
            return ""
        return f"{needed / 1e9:.2f} GB of disk needed, {self.free_bytes / 1e9:.2f} GB free"

    def budget_shortage(self) -> str:
        """Why the budget does not cover a cache; "" where it does."""
        if self.write_seconds <= self.affordable_seconds:
            return ""
        return (
            f"writing a cache takes {self.write_seconds:.0f} s, the budget has "
            f"{self.affordable_seconds:.0f} s left before its reserve"
        )

    def memory_shortage(self) -> str:
        """Why a worker cannot hold the teacher together with the student; "" where it can."""
        if self.teacher_bytes <= TEACHER_MEMORY_SHARE * self.memory_bytes:
            return ""
        return (
            f"the teacher's weights take {self.teacher_bytes / 1e9:.1f} GB, at most "
            f"{TEACHER_MEMORY_SHARE:.0%} of a worker's {self.memory_bytes / 1e9:.1f} GB is allowed"
        )

    def comparison(self) -> str:
        """Seconds of either way, and what they follow from."""
        return (
            f"Cached: {self.cache_seconds:.1f} s on {self.workers} workers "
            f"({self.write_seconds:.1f} s to write {self.missing_clips} of {self.train_clips} "
            f"clips at {self.teacher_seconds_per_clip:.3f} s each, {self.read_seconds:.1f} s for "
            f"{self.reads_per_worker:.0f} reads of {self.bytes_per_clip / 1e6:.2f} MB at "
            f"{self.read_mb_per_s:.0f} MB/s). Recomputed: {self.recompute_seconds:.1f} s "
            f"({self.samples} samples at {self.teacher_seconds_per_crop:.3f} s each)"
        )


def choose(costs: CacheCosts, setting: Literal["auto", "cache"]) -> tuple[Mode, str]:
    """Caches or recomputes, whichever takes less time or is set and fits; and why.

    Raises:
        UserError: a cache is set and does not fit, or neither a cache nor the teacher fits.
        BudgetRefused: the budget does not cover a cache, and the teacher does not fit into memory.
    """
    no_disk, no_memory = costs.disk_shortage(), costs.memory_shortage()
    no_budget = costs.budget_shortage()
    if no_disk and (setting == "cache" or no_memory):
        raise UserError(
            f"the teacher's targets cannot be cached: {no_disk}; free some, or set "
            "distill.weight_feature or distill.weight_teacher to 0"
            + (f" (and {no_memory})" if no_memory else ", or distill.teacher_targets to recompute")
        )
    if no_budget and no_memory:
        raise BudgetRefused(
            f"the teacher's targets can be neither cached nor recomputed: {no_budget}; "
            f"{no_memory}. Raise budget.run_usd, or set distill.weight_feature and "
            "distill.weight_teacher to 0"
        )
    if no_budget:
        return "recompute", no_budget
    if setting == "cache":
        return "cache", "as set by distill.teacher_targets"
    if no_disk:
        return "recompute", no_disk
    if no_memory:
        return "cache", no_memory
    is_cheaper = costs.cache_seconds <= costs.recompute_seconds
    return "cache" if is_cheaper else "recompute", "which takes less time"


def prepare_teacher_targets(
    spec: TeacherTargetsSpec,
    params: DistillParams,
    *,
    batch_size: int,
    ray_address: str | None,
    spending: Spending,
    report_progress: Callable[[str, int, int], None],
) -> TeacherTargetsPlan:
    """Plan the targets of a run and fill the cache, if there is to be one, within the budget.

    Args:
        report_progress: called with what is being done, and how many of how many clips are done.

    Raises: as `plan_teacher_targets` and `fill_cache`, but for the budget of the cache.
    """
    plan = plan_teacher_targets(
        spec,
        params,
        batch_size=batch_size,
        ray_address=ray_address,
        affordable_seconds=spending.affordable_seconds,
        report_progress=partial(report_progress, _MEASURING),
    )
    print(f"teacher's targets: {plan.reason}", flush=True)
    if plan.mode == "cache":
        try:
            fill_cache(
                spec,
                batch_size=batch_size,
                ray_address=ray_address,
                check_budget=lambda seconds: spending.require(seconds, _CACHING),
                report_progress=partial(report_progress, _CACHING),
            )
        except BudgetRefused as refusal:  # slower than measured; recomputing costs nothing up front
            reason = f"recomputed in every step: {refusal}"
            print(f"teacher's targets: {reason}", flush=True)
            plan = dataclasses.replace(plan, mode="recompute", reason=reason)
    return plan


def plan_teacher_targets(
    spec: TeacherTargetsSpec,
    params: DistillParams,
    *,
    batch_size: int,
    ray_address: str | None = None,
    affordable_seconds: Callable[[], float] = lambda: math.inf,
    report_progress: Callable[[int, int], None] = lambda done, clips: None,
) -> TeacherTargetsPlan:
    """Whether the targets of a run are cached, and why.

    Where the choice needs a measurement, a Ray worker caches the first missing clips and times it;
    clips and measurement stay in the cache.

    Args:
        spec: which targets.
        params: steps, crop, workers, and the setting `teacher_targets`.
        batch_size: clips of one call of the teacher in a pass over them.
        ray_address: as `ray_session` takes it.
        affordable_seconds: how long the budget lasts; with too little for a cache none is begun,
            whatever the setting.
        report_progress: called before a measurement with the cached and the train clips.

    Raises:
        UserError, BudgetRefused: as `choose`; or the teacher's folder is gone.
        CorruptFile: a file of the teacher, or of the clips and latents.
        Unreachable, Fault: as `pass_over_clips`.
    """
    plan = partial(TeacherTargetsPlan, blocks=spec.blocks, reconstruction=spec.reconstruction)
    if not spec.arrays:
        return plan(mode="none", reason="none: no loss with a weight above 0 uses them")
    if params.teacher_targets == "recompute":
        reason = "recomputed in every step, as set by distill.teacher_targets"
        return plan(mode="recompute", reason=reason)
    known = read_measurement(spec)
    if known is None:
        delete_cache(spec)
    train, missing = spec.train_clips(), spec.missing()
    if not missing:
        return plan(mode="cache", reason=f"cached already, for all {len(train)} train clips")
    if affordable_seconds() == 0:
        reason = "recomputed in every step: the budget has nothing left for a cache"
        return plan(mode="recompute", reason=reason)
    report_progress(len(train) - len(missing), len(train))
    with ray_session(ray_address):
        measured = _measured(spec, params, missing[:batch_size], known)
    costs = CacheCosts(
        train_clips=len(train),
        cached_clips=len(train) - len(spec.missing()),
        samples=params.steps * params.batch_size,
        workers=params.workers,
        free_bytes=free_bytes(spec),
        bytes_per_clip=measured.bytes_per_clip,
        # The clip itself is in memory as well, and taken to be as large as its targets.
        clips_in_memory=MEMORY_BYTES // (2 * measured.bytes_per_clip),
        read_mb_per_s=measured.read_mb_per_s,
        write_mb_per_s=measured.write_mb_per_s,
        teacher_seconds_per_clip=measured.teacher_seconds_per_clip,
        teacher_seconds_per_crop=measured.teacher_seconds_per_crop,
        teacher_bytes=measured.teacher_bytes,
        memory_bytes=measured.memory_bytes,
        affordable_seconds=affordable_seconds(),
    )
    mode, why = choose(costs, params.teacher_targets)
    how = "cached" if mode == "cache" else "recomputed in every step"
    figures = {
        "bytes_per_clip": costs.bytes_per_clip,
        "read_mb_per_s": costs.read_mb_per_s,
        "write_mb_per_s": costs.write_mb_per_s,
        "teacher_seconds_per_clip": costs.teacher_seconds_per_clip,
        "teacher_seconds_per_crop": costs.teacher_seconds_per_crop,
        "seconds_cached": costs.cache_seconds,
        "seconds_recomputed": costs.recompute_seconds,
        **({"feature_error": measured.feature_error} if spec.blocks else {}),
    }
    return plan(mode=mode, reason=f"{how}, {why}. {costs.comparison()}", figures=figures)


def fill_cache(
    spec: TeacherTargetsSpec,
    *,
    batch_size: int,
    ray_address: str | None = None,
    check_budget: Callable[[float], None] = lambda seconds: None,
    report_progress: Callable[[int, int], None] = lambda done, clips: None,
) -> int:
    """Fill the cache that `plan_teacher_targets` began; returns how many clips were added.

    Cached clips are not decoded again, so a pass that was killed continues.

    Args:
        spec: as given to `plan_teacher_targets`.
        batch_size: clips of one call of the teacher.
        ray_address: as `ray_session` takes it.
        check_budget: as `pass_over_clips` takes it; clips written before it raises stay.
        report_progress: called with the cached and the train clips, at the start and per clip.

    Raises:
        CorruptFile, Unreachable: as `plan_teacher_targets`.
        Fault: a worker failed (a full disk), or a feature is not finite.
    """
    assert read_measurement(spec) is not None, "plan_teacher_targets comes first"
    missing = spec.missing()
    if missing:
        clips = len(spec.train_clips())
        before = clips - len(missing)
        report_progress(before, clips)
        pass_over_clips(
            CacheWriter,
            (spec,),
            missing,
            batch_size=batch_size,
            label=_CACHING,
            ray_address=ray_address,
            check_budget=check_budget,
            report_progress=lambda done: report_progress(before + done, clips),
        )
    return len(missing)


class RecomputedTargets:
    """The teacher in a worker: adds the targets of its crops to a batch.

    The teacher decodes the crop alone, as the student does, and as in a cache of clips that were
    encoded in tiles; the cached target of a clip that was encoded whole is cut out of the decoded
    clip. Unlike a cached video this one is not rounded to 8 bits.
    """

    def __init__(
        self, plan: TeacherTargetsPlan, *, family: str, weights: str | Path, device: torch.device
    ) -> None:
        """Load the teacher.

        Raises: as `turbo_vaed.models.teachers.load_teacher`.
        """
        from turbo_vaed.models.teachers import load_teacher

        self.plan = plan
        self.teacher = load_teacher(family, weights, device=device)

    def __call__(self, batch: Batch) -> Batch:
        """`batch` with the targets of the plan, float32, on the teacher's device."""
        decoded = self.teacher.decode_with_features(batch.latents, self.plan.blocks)
        return dataclasses.replace(
            batch,
            teacher=decoded.video.float().clamp(-1, 1) if self.plan.reconstruction else None,
            features={name: feature.float() for name, feature in decoded.features.items()},
        )


def _measured(
    spec: TeacherTargetsSpec,
    params: DistillParams,
    clips: list[int],
    known: CacheMeasurement | None,
) -> CacheMeasurement:
    """`known` if it is of these params and this kind of machine, else measured on `clips`."""
    crops = min(params.micro_batch, -(-params.batch_size // params.workers))
    conditions = (params.crop, crops, room()[0])
    if known is not None and (known.crop, known.crops_at_once, known.device) == conditions:
        return known
    is_new = known is None
    measured = run_on_worker(measure_on_first_clips, spec, clips, params.crop, crops, is_new)
    write_description(spec, measured)
    return measured
