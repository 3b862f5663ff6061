"""A customer's parameters, data and budget as a training job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial

from turbo_vaed.cluster.nodes import most_usd_per_hour, price_book
from turbo_vaed.costs import Spending, per_second
from turbo_vaed.costs.money import plain
from turbo_vaed.distill.events import read_progress
from turbo_vaed.distill.job import Job, QualityTarget, RunCosts, data_key
from turbo_vaed.distill.progress import ProgressRecorder
from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.models import DecoderConfig
from turbo_vaed.models.alignment import aligned_config, block_name
from turbo_vaed.models.teachers import load_teacher
from turbo_vaed.planning.compatibility import student_config
from turbo_vaed.planning.pricing import downstream_of, reserve_usd
from turbo_vaed.planning.worker_files import (
    CLIPS,
    LATENTS,
    PERCEPTUAL,
    TEACHER,
    for_workers,
    targets_for_workers,
)
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


def aligned_student(workspace: Workspace) -> DecoderConfig:
    """The student of a run, with aligned blocks where its features have a weight.

    Raises:
        UserError: as `student_config`, or no block can be aligned with the teacher's.
        CorruptFile: the teacher's files are broken.
    """
    config = student_config(workspace)
    if workspace.params.distill.weight_feature == 0 or config.aligned_blks_indices:
        return config
    teacher = load_teacher(workspace.params.encode.teacher_family, workspace.teacher_weights())
    try:
        return aligned_config(config, teacher)
    except ValueError as error:
        raise UserError(f"distill.weight_feature is above 0, but {error}") from error


def teacher_targets_spec(
    workspace: Workspace, student: DecoderConfig, settings: Settings
) -> TeacherTargetsSpec:
    """The teacher's targets that the losses of a run need, where its workers reach them.

    Raises:
        UserError, Unreachable: as `for_workers`.
    """
    params = workspace.params.distill
    blocks = student.aligned_blks_indices if params.weight_feature > 0 else ()
    spec = TeacherTargetsSpec(
        family=workspace.params.encode.teacher_family,
        weights=for_workers(workspace, settings, TEACHER),
        clips=for_workers(workspace, settings, CLIPS),
        latents=for_workers(workspace, settings, LATENTS),
        targets=str(workspace.work / "targets"),
        blocks=tuple(block_name(i) for i in blocks),
        reconstruction=params.weight_teacher > 0,
    )
    return targets_for_workers(workspace, settings, spec)


def training_job(
    workspace: Workspace,
    student: DecoderConfig,
    spec: TeacherTargetsSpec,
    plan: TeacherTargetsPlan,
    quality_target: QualityTarget | None,
    spending: Spending,
    settings: Settings,
) -> Job:
    """The job for the workers, with the run's costs up to now.

    Raises:
        UserError, Unreachable: as `for_workers`.
    """
    params, perceptual = workspace.params.distill, None
    if weights := workspace.perceptual_weights():
        params = replace(params, perceptual_weights=str(weights))
        perceptual = for_workers(workspace, settings, PERCEPTUAL)
    costs = RunCosts(
        budget=spending.budget,
        spent_usd=spending.spent_usd(),
        usd_per_hour=spending.usd_per_hour,
        now_usd_per_hour=_now_usd_per_hour(workspace, spending.usd_per_hour),
        checkpoint_seconds=read_progress(workspace.progress_file).checkpoint_every_seconds,
        at=time.time(),
    )
    return Job(
        clips=spec.clips,
        latents=spec.latents,
        targets=spec.targets if plan.mode == "cache" else None,
        plan=plan,
        teacher_family=spec.family,
        teacher_weights=spec.weights,
        student=student,
        params=params,
        data_key=data_key(workspace.folder("clip"), workspace.folder("encode")),
        costs=costs,
        quality_target=quality_target,
        perceptual_weights=perceptual,
    )


def run_costs(
    workspace: Workspace, settings: Settings, spending: Spending, recorder: ProgressRecorder
) -> Callable[[], RunCosts] | None:
    """Returns a function that reads the run's costs and checkpoint interval, for the workers while
    they train; None without a ledger: they then go by the clock."""
    if workspace.run_context.spent_usd is None:
        return None
    book = price_book(workspace.params, settings)
    reserve = partial(reserve_usd, workspace.params, downstream_of(workspace))
    usd_per_hour = most_usd_per_hour(workspace.params, settings, "distill", book)
    reserved_usd = reserve(nodes_usd_per_hour=usd_per_hour)

    def costs() -> RunCosts:
        nonlocal usd_per_hour, reserved_usd
        refusal = ""
        try:
            usd_per_hour = most_usd_per_hour(workspace.params, settings, "distill", book)
            reserved_usd = reserve(nodes_usd_per_hour=usd_per_hour)
        except BudgetRefused as unknown_price:  # of a node that joined
            refusal = str(unknown_price)
        spent_usd = spending.spent_usd()
        needed_usd = spent_usd + reserved_usd
        ahead_usd = Decimal(recorder.horizon_seconds) * per_second(usd_per_hour)
        limit = spending.claim(needed_usd + ahead_usd, least_usd=needed_usd)
        return RunCosts(
            budget=replace(spending.budget, run_usd=limit.usd, reserve_usd=reserved_usd),
            spent_usd=spent_usd,
            usd_per_hour=usd_per_hour,
            now_usd_per_hour=_now_usd_per_hour(workspace, usd_per_hour),
            checkpoint_seconds=recorder.run.checkpoint_every_seconds,
            at=time.time(),
            refusal=refusal,
        )

    return costs


def shared_limit_usd(workspace: Workspace) -> str | None:
    """What a month's budget last left to the whole run, in USD; None where that was no less than
    the run's own budget."""
    reservation = workspace.run_context.reservation
    limit = reservation.last_limit if reservation else None
    if limit is None or limit.is_own_budget:
        return None
    return plain(limit.usd)


def _now_usd_per_hour(workspace: Workspace, otherwise: Decimal) -> Decimal:
    """Of the nodes that the stage holds now."""
    current = workspace.run_context.usd_per_hour
    return current() if current else otherwise
