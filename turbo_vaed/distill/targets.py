"""What the teacher shows a student besides its latents: planned, cached, or computed again.

Shapes: B batch, C' channels of a feature, T frames, H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config.schema import DistillParams
from turbo_vaed.dataset.clip_pass import pass_over_clips, room, run_on_worker
from turbo_vaed.distill import target_cache as cache
from turbo_vaed.distill.data import MEMORY_BYTES, Batch
from turbo_vaed.distill.target_cache import Wanted
from turbo_vaed.distill.target_costs import Mode, TargetCosts, TargetPlan, choose
from turbo_vaed.distill.target_measure import Measured, begin_cache

NOT_AFFORDED = "nothing of the budget is left to cache the teacher's targets with"

__all__ = ["Recompute", "TargetPlan", "Wanted", "plan_targets", "write_targets"]


def plan_targets(
    wanted: Wanted,
    params: DistillParams,
    *,
    batch_size: int,
    ray_address: str | None = None,
    affordable_seconds: Callable[[], float] = lambda: math.inf,
    tell: Callable[[int, int], None] = lambda done, clips: None,
) -> TargetPlan:
    """Whether the targets of a run are cached, and why.

    Where it takes figures to choose, a worker of Ray measures them on the first clips that the
    cache lacks, whose targets are kept; and the figures are, for a run that goes on.

    Args:
        wanted: what, of which teacher, for which clips.
        params: steps, crop, workers, and what `teacher_targets` wishes for.
        batch_size: clips of one call of the teacher in a pass over them.
        ray_address: as `ray_session` takes it.
        affordable_seconds: how long the run can still be paid for: where that is too short for a
            cache, none is begun, whatever is wished for.
        tell: told how many of how many train clips are cached, before a worker measures.

    Raises:
        UserError, BudgetRefused: as `choose`; or the teacher's folder is gone.
        CorruptFile: a file of the teacher, or of the clips and latents.
        Unreachable, Fault: as `pass_over_clips`.
    """
    if not wanted.arrays:
        return _plan(wanted, "none", "nothing is wanted of the teacher but its latents")
    if params.teacher_targets == "recompute":
        why = "the teacher's targets are computed every step, as distill.teacher_targets says"
        return _plan(wanted, "recompute", why)
    facts = cache.read_facts(wanted)
    if facts is None:
        cache.clear(wanted)
    train, missing = wanted.train_clips(), wanted.missing()
    if not missing:
        return _plan(wanted, "cache", f"targets of all {len(train)} train clips are cached already")
    if affordable_seconds() == 0:
        return _plan(wanted, "recompute", NOT_AFFORDED)
    tell(len(train) - len(missing), len(train))
    with ray_session(ray_address):
        measured = _measured(wanted, params, missing[:batch_size], facts)
    cached = len(train) - len(wanted.missing())
    costs = TargetCosts(
        train_clips=len(train),
        cached_clips=cached,
        samples=params.steps * params.batch_size,
        workers=params.workers,
        free_bytes=cache.free_bytes(wanted),
        bytes_per_clip=measured.bytes_per_clip,
        # The clip itself, which is held as well, is taken to be as large as its targets.
        held_clips=MEMORY_BYTES // (2 * measured.bytes_per_clip),
        read_mb_per_s=measured.read_mb_per_s,
        write_mb_per_s=measured.write_mb_per_s,
        teacher_seconds_per_clip=measured.teacher_seconds_per_clip,
        teacher_seconds_per_crop=measured.teacher_seconds_per_crop,
        teacher_bytes=measured.teacher_bytes,
        memory_bytes=measured.memory_bytes,
        affordable_seconds=affordable_seconds(),
    )
    plan = choose(
        costs,
        blocks=wanted.blocks,
        reconstruction=wanted.reconstruction,
        wish=params.teacher_targets,
    )
    error = {"feature_error": measured.feature_error} if wanted.blocks else {}
    return dataclasses.replace(plan, figures=plan.figures | error)


def write_targets(
    wanted: Wanted,
    *,
    batch_size: int,
    ray_address: str | None = None,
    workers: int | None = None,
    afford: Callable[[float], None] = lambda seconds: None,
    tell: Callable[[int, int], None] = lambda done, clips: None,
) -> int:
    """Fill the cache that `plan_targets` began; returns how many clips were written now.

    Clips that are there are not decoded again, so that a pass that was killed goes on.

    Args:
        wanted: as `plan_targets` got it.
        batch_size: clips of one call of the teacher.
        ray_address: as `ray_session` takes it.
        workers: at most so many; as many as Ray has GPUs or CPUs by default.
        afford: as `pass_over_clips` takes it; what was written by then is kept.
        tell: told how many of how many train clips are cached, now and with every clip.

    Raises:
        CorruptFile, Unreachable: as `plan_targets`.
        Fault: a worker failed (a full disk), or a feature is not finite.
    """
    assert cache.read_facts(wanted) is not None, "plan_targets comes first"
    missing = wanted.missing()
    if missing:
        clips = len(wanted.train_clips())
        before = clips - len(missing)
        tell(before, clips)
        pass_over_clips(
            cache.TargetWriter,
            (wanted,),
            missing,
            batch_size=batch_size,
            label="caching the teacher's targets",
            ray_address=ray_address,
            workers=workers,
            afford=afford,
            tell=lambda done: tell(before + done, clips),
        )
    return len(missing)


class Recompute:
    """The teacher in a worker: fills in what a batch's crops look like to it.

    It sees the crop alone and nothing around it, as the student does, and as in a cache of clips
    that were encoded in tiles; a cached target of a clip that was encoded whole was cut out of the
    decoded clip. And its video is not rounded to 8 bits, as a cached one is.
    """

    def __init__(
        self, *, family: str, weights: str | Path, plan: TargetPlan, device: torch.device
    ) -> None:
        """Load the teacher.

        Raises: as `turbo_vaed.models.teachers.load_teacher`.
        """
        from turbo_vaed.models.teachers import load_teacher

        self.plan = plan
        self.teacher = load_teacher(family, weights, device=device)

    def __call__(self, batch: Batch) -> Batch:
        """`batch` with the targets of the plan, float32, where the teacher is."""
        decoded = self.teacher.decode_with_features(batch.latents, self.plan.blocks)
        return dataclasses.replace(
            batch,
            teacher=decoded.video.float().clamp(-1, 1) if self.plan.reconstruction else None,
            features={name: feature.float() for name, feature in decoded.features.items()},
        )


def _measured(
    wanted: Wanted, params: DistillParams, clips: list[int], facts: dict[str, Any] | None
) -> Measured:
    """What was measured for these params and machines, in an earlier run or now, with `clips`."""
    crops = min(params.micro_batch, -(-params.batch_size // params.workers))
    if facts is not None:
        known = Measured(**facts["measured"])
        if (known.crop, known.crops_at_once, known.device) == (params.crop, crops, room()[0]):
            return known
    measured = run_on_worker(begin_cache, wanted, clips, params.crop, crops, facts is None)
    cache.write_facts(wanted, dataclasses.asdict(measured))
    return measured


def _plan(wanted: Wanted, mode: Mode, reason: str) -> TargetPlan:
    """A plan that needs no figures."""
    return TargetPlan(
        blocks=wanted.blocks,
        reconstruction=wanted.reconstruction,
        mode=mode,
        reason=reason,
        figures={},
    )
