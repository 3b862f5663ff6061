"""A job that takes seconds, over the toy data of the distillation's tests."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path

from tests.distill.conftest import STUDENT
from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Budget
from turbo_vaed.distill.job import Job, RunCosts, data_key
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan

USD_PER_HOUR = Decimal("3.6")
"""A millidollar a second."""
STEPS, CHECKPOINT_EVERY = 60, 10


def make_job(folder: Path, *, workers: int = 1, steps: int = STEPS) -> Job:
    """The job over the data that `write_toy_data` wrote in `folder`."""
    clips, latents, targets = (folder / name for name in ("clip", "encode", "targets"))
    return Job(
        clips=str(clips),
        latents=str(latents),
        targets=str(targets),
        plan=TeacherTargetsPlan(blocks=(), reconstruction=True, mode="cache", reason="a toy"),
        teacher_family="none",
        teacher_weights=folder,
        student=STUDENT,
        params=DistillParams(
            student="own",
            start="random",
            steps=steps,
            batch_size=2,
            micro_batch=2,
            crop=16,
            workers=workers,
            min_workers=1,
            optimizer="muon",
            learning_rate=2e-5,  # a step more or less shows, the rounding of two workers hardly
            betas=(0.9, 0.95),
            weight_decay=0.0,
            warmup_share=0.1,
            ema_decay=0.9,
            weight_source=1.0,
            weight_teacher=0.5,
            perceptual="none",
            perceptual_weights=None,
            weight_perceptual=0.0,
            weight_feature=0.0,
            weight_adversarial=0.0,
            adversarial_start=0,
            teacher_targets="auto",
            compile="off",
            checkpoint_every=CHECKPOINT_EVERY,
            keep_checkpoints=3,
            validate_every=20,
            precision="fp32",
            seed=1,
        ),
        data_key=data_key(clips, latents),
        costs=RunCosts(
            budget=Budget.plan(
                run_usd=Decimal(100), warn_share=1.0, reserve_seconds=0, usd_per_hour=USD_PER_HOUR
            ),
            usd_per_hour=USD_PER_HOUR,
            spent_usd=Decimal(0),
            now_usd_per_hour=USD_PER_HOUR,
            checkpoint_seconds=60.0,
            at=time.time(),
        ),
    )
