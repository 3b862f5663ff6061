"""The quality at which distillation may stop early: what the gate requires, on validation clips."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from turbo_vaed.config.schema import UseCase
from turbo_vaed.costs import Spending
from turbo_vaed.distill.job import QualityTarget
from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec
from turbo_vaed.distill.validation import TeacherQuality, teacher_quality
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.gate.evidence import LEAST_DETAIL, LEAST_FLICKER
from turbo_vaed.gate.judge import least_psnr_db
from turbo_vaed.workspace import Workspace

_MEASURING = "measuring the teacher on validation clips"


def early_stop_target(
    workspace: Workspace,
    spec: TeacherTargetsSpec,
    *,
    ray_address: str | None,
    spending: Spending,
    report_progress: Callable[[str, int, int], None],
) -> QualityTarget | None:
    """The target of a run, for which the teacher is measured on the validation clips.

    None where `distill.stop_psnr_margin_db` is not set, or the budget does not cover measuring.

    Args:
        report_progress: called with what is being done, and how many of how many clips are done.

    Raises: as `teacher_quality`, but for the budget.
    """
    margin_db = workspace.params.distill.stop_psnr_margin_db
    if margin_db is None:
        return None
    try:
        teacher = teacher_quality(
            spec,
            batch_size=workspace.params.encode.batch_size,
            ray_address=ray_address,
            check_budget=lambda seconds: spending.require(seconds, _MEASURING),
            report_progress=partial(report_progress, _MEASURING),
        )
    except BudgetRefused as refusal:
        print(f"no early stop: {refusal}", flush=True)
        return None
    target = quality_target(
        workspace.params.thresholds,
        teacher,
        margin_db=margin_db,
        worst_share=workspace.params.evaluate.worst_share,
    )
    limits = ", ".join(
        f"{name} {'<=' if name == 'flicker' else '>='} {limit:.4g}"
        for name, limit in target.limits.items()
    )
    print(f"early stop at validation PSNR >= {target.rationale}, {limits}", flush=True)
    return target


def quality_target(
    thresholds: UseCase, teacher: TeacherQuality, *, margin_db: float, worst_share: float
) -> QualityTarget:
    """The gate's thresholds as limits of the means over the validation clips.

    Args:
        thresholds: of the use case.
        teacher: measured on the validation clips.
        margin_db: added to the limits of mean and worst PSNR.
        worst_share: of the clips, for the worst PSNR.
    """
    required = least_psnr_db(thresholds, teacher.psnr)
    share = f"{thresholds.min_psnr_retention:g} of the teacher's {teacher.psnr:.2f} dB here"
    by = share if required > thresholds.min_psnr else f"min_psnr, more than {share}"
    limits = {
        "ssim": thresholds.min_ssim,
        "ms_ssim": thresholds.min_ms_ssim,
        "worst_psnr": thresholds.min_worst_psnr + margin_db,
        # The gate's check is a ratio of means, so these are limits of the student's mean.
        "detail": thresholds.min_detail_retention * max(teacher.detail, LEAST_DETAIL),
    }
    if teacher.flicker is not None:
        limits["flicker"] = thresholds.max_flicker * max(teacher.flicker, LEAST_FLICKER)
    return QualityTarget(
        psnr=required + margin_db,
        rationale=f"{required + margin_db:.2f} dB (required by the gate: {required:.2f} dB, {by}; "
        f"margin: {margin_db:g} dB)",
        limits=limits,
        worst_share=worst_share,
    )
