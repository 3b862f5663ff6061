"""Stage `distill`: latents and clips in, a student decoder and its history out."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.costs import Spending, check_start, per_second
from turbo_vaed.costs.money import plain
from turbo_vaed.errors import BudgetRefused, TurboVaedError
from turbo_vaed.planning.compatibility import student_config
from turbo_vaed.planning.estimate import keep_pace, pace_key
from turbo_vaed.planning.pricing import (
    downstream_of,
    most_usd_per_hour,
    price_book,
    reserve_usd,
    spending_of,
)
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:
    from turbo_vaed.distill.job import Job, QualityTarget, RunCosts
    from turbo_vaed.distill.progress import ProgressRecorder
    from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec
    from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan
    from turbo_vaed.distill.train import Distilled
    from turbo_vaed.models import DecoderConfig


def run(workspace: Workspace) -> dict[str, object]:
    """Distil the customer's student inside what is left of the run's budget.

    Raises:
        BudgetRefused: the price is unknown, or the budget does not hold what training needs of
            the teacher.
        UserError: params that do not fit the teacher, the clips or the cluster.
        CorruptFile: clips, latents or the teacher are missing or damaged.
        Fault: the workers failed too often; what was saved is gone on from.
    """
    from turbo_vaed.cluster.session import ray_session
    from turbo_vaed.distill import train
    from turbo_vaed.distill.curves import write_curves
    from turbo_vaed.distill.history import write_student
    from turbo_vaed.distill.progress import ProgressRecorder, report_preparation

    settings = Settings.from_environment(workspace.root)
    spending = spending_of(workspace, settings, "distill")
    start = check_start(
        spending.budget, spent_usd=spending.spent_usd(), usd_per_hour=spending.usd_per_hour
    )
    print(start.reason, flush=True)
    student = _student(workspace)
    others = _jobs_seen(workspace)
    place = workspace.work / "checkpoints"
    storage = (
        f"{settings.checkpoints_url}/{workspace.customer}" if settings.checkpoints_url else place
    )
    with workspace.writing("distill") as folder, ray_session(settings.ray_address):
        with report_preparation(workspace.progress_file) as tell:
            plan = _targets(workspace, student, settings, spending, tell)
            target = _target(workspace, student, settings, spending, tell)
        job = _job(workspace, student, plan, spending, target)
        place.mkdir(parents=True, exist_ok=True)
        with ProgressRecorder(
            workspace.progress_file,
            job=job.name,
            steps=job.params.steps,
            usd_per_hour=job.costs.now_usd_per_hour,
            run_context=workspace.run_context,
        ) as recorder:
            done = train.distill(
                job,
                storage=str(storage),
                on_event=recorder.on_event,
                costs=_costs(workspace, settings, spending, recorder)
                if workspace.run_context.spent_usd
                else None,
            )
        summary = recorder.summary() | {
            "pace_key": pace_key(workspace.params.distill, settings),
            "limited_to_usd": _limited_to_usd(workspace, settings),
        }
        history = write_student(
            done.checkpoint,
            job,
            folder,
            progress_file=workspace.progress_file,
            summary=summary,
        )
        write_curves(history["steps"], folder)
        keep_pace(workspace, history)
    _tidy(done, others - {job.name}, str(storage), place)
    steps = history["steps"]
    return {
        "stopped": history["stopped"],
        "reason": history["reason"],
        "steps": f"{history['steps_done']} of {history['steps_planned']}",
        "best_val_psnr_db": round(history["best_val_psnr"], 2),
        "best_step": history["best_step"],
        "student_parameters": history["student_parameters"],
        "of_teacher_decoder": round(
            history["student_parameters"] / history["teacher_decoder_parameters"], 4
        ),
        "seconds_per_step": round(steps[-1]["step_seconds"], 3) if steps else None,
        "restarts": len(history["restarts"]),
        "warnings": len(history["warnings"]),
    }


def _limited_to_usd(workspace: Workspace, settings: Settings) -> str | None:
    """What a month's limit left to the whole run when its workers were told last, where that was
    less than its own budget."""
    reservation = workspace.run_context.reservation
    last = reservation.last_limit if reservation else None
    return (
        None
        if last is None or last.is_own_budget
        else plain(last.usd + settings.machine_overhead_usd)
    )


def _jobs_seen(workspace: Workspace) -> set[str]:
    """Whose checkpoints this checkout may have left: those on its disk, and the last ones told of,
    which may lie in a bucket."""
    from turbo_vaed.distill.events import read_events

    path = workspace.progress_file
    events = read_events(path) if path.is_file() else ()
    told = {event["job"] for event in events if event["event"] == "open"}
    return told | {folder.name for folder in path.parent.glob("distill-*")}


def _tidy(done: Distilled, others: set[str], storage: str, place: Path) -> None:
    """Remove what nothing goes on from: other students' checkpoints, and of one that has done all
    steps those before the last, by which it is found complete. One that its budget stopped goes on
    with a larger, one that was good enough with other limits. What cannot be removed is told."""
    from turbo_vaed.distill import train
    from turbo_vaed.distill.checkpoints import Store

    try:
        if done.checkpoint.stopped == "finished":
            done.store.clear(before=done.checkpoint.step)
        for job in others:
            Store(f"{storage}/{job}").clear()
    except (TurboVaedError, OSError) as error:  # the student is there and paid for
        print(f"checkpoints that are not needed any more stay: {error}", flush=True)
    for name in (train.RAY, *others):
        shutil.rmtree(place / name, ignore_errors=True)


def _student(workspace: Workspace) -> DecoderConfig:
    """The student, with blocks to align where features have a weight."""
    from turbo_vaed.errors import UserError

    config = student_config(workspace)
    if workspace.params.distill.weight_feature == 0 or config.aligned_blks_indices:
        return config
    from turbo_vaed.models.alignment import aligned_config
    from turbo_vaed.models.teachers import load_teacher

    teacher = load_teacher(workspace.params.encode.teacher_family, workspace.teacher_weights())
    try:
        return aligned_config(config, teacher)
    except ValueError as error:
        raise UserError(f"distill.weight_feature is above 0, but {error}") from error


def _wanted(workspace: Workspace, student: DecoderConfig) -> TeacherTargetsSpec:
    from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec
    from turbo_vaed.models.alignment import block_name

    params = workspace.params.distill
    blocks = student.aligned_blks_indices if params.weight_feature > 0 else ()
    return TeacherTargetsSpec(
        family=workspace.params.encode.teacher_family,
        weights=str(workspace.teacher_weights()),
        clips=str(workspace.folder("clip")),
        latents=str(workspace.folder("encode")),
        targets=str(workspace.work / "targets"),
        blocks=tuple(block_name(i) for i in blocks),
        reconstruction=params.weight_teacher > 0,
    )


def _targets(
    workspace: Workspace,
    student: DecoderConfig,
    settings: Settings,
    spending: Spending,
    tell: Callable[[str, int, int], None],
) -> TeacherTargetsPlan:
    from turbo_vaed.distill.teacher_targets import prepare_teacher_targets

    return prepare_teacher_targets(
        _wanted(workspace, student),
        workspace.params.distill,
        batch_size=workspace.params.encode.batch_size,
        ray_address=settings.ray_address,
        spending=spending,
        report_progress=tell,
    )


def _costs(
    workspace: Workspace, settings: Settings, spending: Spending, recorder: ProgressRecorder
) -> Callable[[], RunCosts]:
    """Reports to the run's workers what it has cost, and how often to save."""
    from turbo_vaed.distill.job import RunCosts

    book = price_book(workspace.params, settings)
    most = most_usd_per_hour(workspace.params, settings, "distill", book)
    reserve = partial(reserve_usd, workspace.params, settings, downstream_of(workspace), book=book)
    kept = reserve(nodes_usd_per_hour=most)

    def costs() -> RunCosts:
        nonlocal most, kept
        refusal = ""
        try:
            most = most_usd_per_hour(workspace.params, settings, "distill", book)
            kept = reserve(nodes_usd_per_hour=most)
        except BudgetRefused as unknown:  # a node that joined: the run ends as at its budget
            refusal = str(unknown)
        spent_usd = spending.spent_usd()
        ahead_usd = Decimal(recorder.horizon_seconds) * per_second(most)
        allowed = spending.claim(spent_usd + kept + ahead_usd, least_usd=spent_usd + kept)
        return RunCosts(
            budget=dataclasses.replace(spending.budget, run_usd=allowed.usd, reserve_usd=kept),
            spent_usd=spent_usd,
            usd_per_hour=most,
            now_usd_per_hour=workspace.run_context.usd_per_hour()
            if workspace.run_context.usd_per_hour
            else most,
            refusal=refusal,
            checkpoint_seconds=recorder.run.checkpoint_every_seconds,
            at=time.time(),
        )

    return costs


def _target(
    workspace: Workspace,
    student: DecoderConfig,
    settings: Settings,
    spending: Spending,
    tell: Callable[[str, int, int], None],
) -> QualityTarget | None:
    """What is enough: the quality that the gate asks for on the test clips, asked of the validation
    clips, and the margin on mean and worst PSNR. None where no margin is set, or the teacher's part
    cannot be paid."""
    margin, thresholds = workspace.params.distill.stop_psnr_margin_db, workspace.params.thresholds
    if margin is None:
        return None
    from turbo_vaed.distill.job import QualityTarget
    from turbo_vaed.distill.validation import teacher_quality
    from turbo_vaed.gate import least_psnr_db
    from turbo_vaed.gate.evidence import LEAST_DETAIL, LEAST_FLICKER

    try:
        teacher = teacher_quality(
            _wanted(workspace, student),
            batch_size=workspace.params.encode.batch_size,
            ray_address=settings.ray_address,
            afford=lambda seconds: spending.require(seconds, "the teacher on validation clips"),
            tell=partial(tell, "measuring the teacher on validation clips"),
        )
    except BudgetRefused as refusal:
        print(f"no quality is enough to stop for: {refusal}", flush=True)
        return None
    asked = least_psnr_db(thresholds, teacher.psnr)
    retention = thresholds.min_psnr_retention
    share = f"{retention:g} of the teacher's {teacher.psnr:.2f} dB on these clips"
    by = share if asked > thresholds.min_psnr else f"more than {share}"
    # A ratio of means, as the gate's, is a limit of the student's mean.
    limits = {
        "ssim": thresholds.min_ssim,
        "ms_ssim": thresholds.min_ms_ssim,
        "worst_psnr": thresholds.min_worst_psnr + margin,
        "detail": thresholds.min_detail_retention * max(teacher.detail, LEAST_DETAIL),
    }
    if teacher.flicker is not None:
        limits["flicker"] = thresholds.max_flicker * max(teacher.flicker, LEAST_FLICKER)
    target = QualityTarget(
        psnr=asked + margin,
        rationale=f"{asked + margin:.2f} dB: {asked:.2f} dB that the gate asks for ({by}), and a "
        f"margin of {margin:g} dB",
        limits=limits,
        worst_share=workspace.params.evaluate.worst_share,
    )
    others = ", ".join(f"{name} {limit:.4g}" for name, limit in limits.items())
    print(f"good enough: {target.rationale}; with {others}", flush=True)
    return target


def _job(
    workspace: Workspace,
    student: DecoderConfig,
    plan: TeacherTargetsPlan,
    spending: Spending,
    target: QualityTarget | None,
) -> Job:
    from turbo_vaed.distill.events import read_progress
    from turbo_vaed.distill.job import Job, RunCosts, data_key
    from turbo_vaed.distill.losses import HUB

    clips, latents, params = (
        workspace.folder("clip"),
        workspace.folder("encode"),
        workspace.params.distill,
    )
    if params.perceptual_weights not in (None, HUB):
        params = dataclasses.replace(
            params, perceptual_weights=str(workspace.root / str(params.perceptual_weights))
        )
    return Job(
        clips=str(clips),
        latents=str(latents),
        targets=str(workspace.work / "targets") if plan.mode == "cache" else None,
        plan=plan,
        teacher_family=workspace.params.encode.teacher_family,
        teacher_weights=workspace.teacher_weights(),
        student=student,
        params=params,
        data_key=data_key(clips, latents),
        costs=RunCosts(
            budget=spending.budget,
            usd_per_hour=spending.usd_per_hour,
            now_usd_per_hour=workspace.run_context.usd_per_hour()
            if workspace.run_context.usd_per_hour
            else spending.usd_per_hour,
            checkpoint_seconds=read_progress(workspace.progress_file).checkpoint_every_seconds,
            spent_usd=spending.spent_usd(),
            at=time.time(),
        ),
        quality_target=target,
    )
