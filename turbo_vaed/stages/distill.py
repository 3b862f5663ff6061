"""Stage `distill`: latents and clips in, a student decoder and its history out."""

from __future__ import annotations

import time
from decimal import Decimal

from turbo_vaed.costs import Budget, check_start
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.fit import student_config
from turbo_vaed.stages.prices import price_of


def run(poc: Poc) -> dict[str, object]:
    """Distil the customer's student inside what is left of the run's budget."""
    from turbo_vaed.dataset.ray_session import ray_session
    from turbo_vaed.distill import train
    from turbo_vaed.distill.loop import Job

    params = poc.params
    student = student_config(poc)
    settings = Settings.from_environment(poc.root)
    price = price_of(params, settings, "distill")
    budget = Budget.plan(
        run_usd=params.budget.run_usd,
        warn_share=params.budget.warn_share,
        reserve_seconds=params.budget.reserve_seconds,
        usd_per_hour=price.usd_per_hour,
    )
    spent = poc.tracker.spent_usd() if poc.tracker.spent_usd else Decimal(0)
    print(check_start(budget, spent_usd=spent, usd_per_hour=price.usd_per_hour).reason, flush=True)
    checkpoints = poc.work / "checkpoints"
    job = Job(
        clips=poc.folder("clip"),
        latents=poc.folder("encode"),
        student=student,
        params=params.distill,
        budget=budget,
        usd_per_hour=price.usd_per_hour,
        spent_usd=spent,
        started_at=time.time(),
        progress_file=checkpoints / "progress.jsonl",
    )
    with poc.writing("distill") as folder, ray_session(settings.ray_address):
        done = train.distill(job, storage=checkpoints)
        history = train.write_student(done, job, folder)
    train.clean(checkpoints)
    steps = history["steps"]
    return {
        "stopped": history["stopped"],
        "steps": f"{history['steps_done']} of {history['steps_planned']}",
        "best_val_psnr_db": round(history["best_val_psnr"], 2),
        "best_step": history["best_step"],
        "student_parameters": history["student_parameters"],
        "of_teacher_decoder": round(
            history["student_parameters"] / history["teacher_decoder_parameters"], 4
        ),
        "seconds_per_step": round(steps[-1]["step_seconds"], 3) if steps else None,
    }
