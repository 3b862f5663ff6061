"""Stage `distill`: latents and clips in, a student decoder and its history out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from turbo_vaed.cluster.session import worker_session
from turbo_vaed.costs import check_start
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.events import recorded_jobs
from turbo_vaed.distill.history import write_curves, write_student
from turbo_vaed.distill.progress import ProgressRecorder, report_preparation
from turbo_vaed.distill.shared_log import shared_log
from turbo_vaed.distill.teacher_targets import prepare_teacher_targets
from turbo_vaed.errors import TurboVaedError
from turbo_vaed.gate.early_stop import early_stop_target
from turbo_vaed.planning.history import pace_key, save_pace
from turbo_vaed.planning.pricing import spending_of
from turbo_vaed.planning.training_job import (
    aligned_student,
    run_costs,
    shared_limit_usd,
    teacher_targets_spec,
    training_job,
)
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

STAGE_VERSION = 2
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Distil the customer's student within what is left of the run's budget.

    Raises:
        BudgetRefused: the price is unknown, or the budget does not cover the teacher's targets.
        UserError: params that do not fit the teacher, the clips or the cluster.
        CorruptFile: clips, latents or the teacher are missing or damaged.
        Fault: the workers failed too often; another run resumes from the last checkpoint.
    """
    settings = Settings.from_environment(workspace.root)
    spending = spending_of(workspace, settings, "distill")
    start = check_start(
        spending.budget, spent_usd=spending.spent_usd(), usd_per_hour=spending.usd_per_hour
    )
    print(start.reason, flush=True)
    student = aligned_student(workspace)
    spec = teacher_targets_spec(workspace, student, settings)
    checkpoints = workspace.work / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    shared = settings.shared_checkpoints(workspace.customer)
    storage, token = shared or str(checkpoints), workspace.run_context.token
    with (
        workspace.writing("distill") as folder,
        worker_session(settings),
        shared_log(workspace.progress_file, shared, token=token) as copy_log_soon,
    ):
        jobs_before = recorded_jobs(workspace.progress_file)
        with report_preparation(workspace.progress_file) as report_progress:
            plan = prepare_teacher_targets(
                spec,
                workspace.params.distill,
                batch_size=workspace.params.encode.batch_size,
                ray_address=settings.ray_address,
                spending=spending,
                report_progress=report_progress,
            )
            target = early_stop_target(
                workspace,
                spec,
                ray_address=settings.ray_address,
                spending=spending,
                report_progress=report_progress,
            )
        job = training_job(workspace, student, spec, plan, target, spending, settings)
        with ProgressRecorder(
            workspace.progress_file,
            job=job.name,
            steps=job.params.steps,
            usd_per_hour=job.costs.now_usd_per_hour,
            run_context=workspace.run_context,
            on_checkpoint=copy_log_soon,
        ) as recorder:
            done = train.distill(
                job,
                storage=storage,
                on_event=recorder.on_event,
                costs=run_costs(workspace, settings, spending, recorder),
                token=token,
            )
        summary = recorder.summary() | {
            "pace_key": pace_key(workspace.params.distill, settings),
            "limited_to_usd": shared_limit_usd(workspace),
        }
        history = write_student(
            done.checkpoint,
            job,
            folder,
            progress_file=workspace.progress_file,
            summary=summary,
        )
        write_curves(history["steps"], folder)
        save_pace(workspace, history)
    _remove_stale_checkpoints(done, jobs_before - {job.name}, storage, checkpoints)
    return _figures(history)


def _remove_stale_checkpoints(
    done: train.Distilled, stale_jobs: set[str], storage: str, folder: Path
) -> None:
    """Remove checkpoints that no run resumes from: other students', and of a finished one all but
    the last, which shows that it is finished. A run that its budget or its quality stopped may
    resume, with a larger budget or other limits."""
    try:
        if done.checkpoint.stopped == "finished":
            done.store.clear(before=done.checkpoint.step)
        for job in stale_jobs:
            Store(f"{storage}/{job}", token=done.store.token).clear()
    except (TurboVaedError, OSError) as error:  # the student is there and paid for
        print(f"checkpoints that are no longer needed remain: {error}", flush=True)
    for name in (train.RAY, *stale_jobs):
        shutil.rmtree(folder / name, ignore_errors=True)


def _figures(history: dict[str, Any]) -> dict[str, object]:
    ours, teachers = history["student_parameters"], history["teacher_decoder_parameters"]
    steps = history["steps"]
    return {
        "stopped": history["stopped"],
        "reason": history["reason"],
        "steps": f"{history['steps_done']} of {history['steps_planned']}",
        "best_val_psnr_db": round(history["best_val_psnr"], 2),
        "best_step": history["best_step"],
        "student_parameters": ours,
        "of_teacher_decoder": round(ours / teachers, 4),
        "seconds_per_step": round(steps[-1]["step_seconds"], 3) if steps else None,
        "restarts": len(history["restarts"]),
        "warnings": len(history["warnings"]),
    }
