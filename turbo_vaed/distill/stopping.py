"""Whether a run takes its next step: the budget comes first, then whether its student is good
enough, by what is asked of it or by what more of it costs.

Good enough is a pure function of the validations that a run keeps in its checkpoints, so that a
resumed run decides as one that was never interrupted. The target depends on the quality in them
alone, that of the best EMA. The price of quality depends on dollars, that is on measured time: on
another machine, or a busier one, a run may stop at another validation for it.

The price is that of the trend (Theil-Sen): the median of the slopes between all pairs of the last
third of the validations, and at least `VALIDATIONS` of them. Of so many, one that is off by any
amount takes part in less than half of the pairs, so that it cannot stop a run by itself. The
running best, which a report's price is taken from, would: after one lucky validation it stands
still. The trend has to cost too much twice in a row, which quarters the false stops of a noise
that is as large as the gain from one validation to the next (docs/decisions.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import decide, per_second
from turbo_vaed.costs.money import format_usd
from turbo_vaed.distill.job import Job, QualityTarget
from turbo_vaed.distill.outlook import VALIDATIONS

GOOD_ENOUGH = "good enough"
"""How a run ended that stopped by itself before its last step."""
CONTINUE, ENOUGH, OUT_OF_BUDGET = 0, 1, 2
STOPPED = {ENOUGH: GOOD_ENOUGH, OUT_OF_BUDGET: "budget"}
"""How a run ends by such an answer."""
EARLY_SHARE = 0.1
"""Of the planned steps: the price of quality is not looked at before."""
_MOST = 60
"""Validations that a trend is taken from; more are thinned, for the pairs are their square."""

Curve = Sequence[tuple[Decimal, float]]
"""USD of the training and PSNR in dB, of each validation."""


class _Figure(NamedTuple):
    """Of a validation, `val_NAME` in the row of its step; how it is said."""

    what: str
    unit: str = ""
    is_most: bool = False
    """Its limit is the most that is allowed, and not the least."""
    by: str = ""
    """How the limit comes about, where it is not the gate's own."""


_FIGURES = {
    "ssim": _Figure("SSIM"),
    "ms_ssim": _Figure("MS-SSIM"),
    "worst_psnr": _Figure("PSNR of the worst clips", " dB", by=" (with the margin)"),
    "detail": _Figure("detail", by=" (a share of the teacher's)"),
    "flicker": _Figure("flicker", is_most=True, by=" (a multiple of the teacher's)"),
}


class Enough(NamedTuple):
    """Why a student is good enough."""

    kind: Literal["target", "marginal cost"]
    reason: str
    """In words, with figures."""


class Answer(NamedTuple):
    """To whether the next step is taken."""

    stop: int
    """`CONTINUE`, `ENOUGH` or `OUT_OF_BUDGET`."""
    reason: str
    """Of a stop, in words."""
    warning: str
    """Once the warning share of the budget is spent."""


def next_step(
    job: Job, history: Sequence[Mapping[str, Any]], *, best_psnr: float, validate_seconds: float
) -> Answer:
    """Whether the budget holds another step, and the student is not good enough without it.

    Args:
        history, best_psnr: as `good_enough` takes them; it is asked after a validation only.
        validate_seconds: what the last one took.
    """
    if job.costs.refusal:
        return Answer(OUT_OF_BUDGET, job.costs.refusal, "")
    steps = [row["step_seconds"] for row in history[-10:]] or [2.0]
    # After the step a validation may follow, or the one of a stop; then a checkpoint.
    decision = decide(
        job.costs.budget,
        spent_usd=job.costs.spent_by_now(),
        rate_usd_per_second=per_second(job.costs.usd_per_hour),
        next_step_seconds=2 * (max(steps) + validate_seconds),
    )
    if decision.stop:
        return Answer(OUT_OF_BUDGET, decision.reason, "")
    if not history or "val_psnr" in history[-1]:
        found = good_enough(job, history, best_psnr=best_psnr)
        if found is not None:
            return Answer(ENOUGH, found.reason, "")
    return Answer(CONTINUE, "", decision.reason if decision.action == "warn" else "")


def good_enough(
    job: Job, history: Sequence[Mapping[str, Any]], *, best_psnr: float
) -> Enough | None:
    """Whether a run may stop where it stands; None where it is to go on.

    Args:
        history: a row of each step.
        best_psnr: dB, of the best EMA on the validation clips.
    """
    limit = job.params.stop_usd_per_tenth_db
    return enough(
        curve(history, job.params) if limit is not None else (),
        best_psnr=best_psnr,
        best=_best(history, best_psnr),
        target=job.quality_target,
        usd_per_tenth_db=limit,
    )


def lacking(job: Job, history: Sequence[Mapping[str, Any]], *, best_psnr: float) -> str | None:
    """What a student lacks whose PSNR is enough, in words with figures; None where there is no
    such student, it lacks nothing, or its other figures are not known. Arguments as of
    `good_enough`."""
    target = job.quality_target
    if target is None or not best_psnr >= target.psnr:
        return None
    best = _best(history, best_psnr)
    if any(f"val_{name}" not in best for name in target.limits):
        return None
    _, missed = _compared(target, best)
    return f"{_reached(target, best_psnr)}; but {'; '.join(missed)}" if missed else None


def _best(history: Sequence[Mapping[str, Any]], best_psnr: float) -> Mapping[str, Any]:
    """The row of the best EMA; without figures where it is the start, which no history has."""
    return next((row for row in history if row.get("val_psnr") == best_psnr), {})


def _reached(target: QualityTarget, best_psnr: float) -> str:
    return f"validation PSNR {best_psnr:.2f} dB reaches {target.rationale}"


def _compared(target: QualityTarget, best: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Which of the limits are met, and which are not, in words with figures. One whose figure is
    not known is not met."""
    met: list[str] = []
    missed: list[str] = []
    for name, limit in target.limits.items():
        figure, value = _FIGURES[name], float(best.get(f"val_{name}", math.nan))
        if math.isnan(value):
            missed.append(f"{figure.what} is not known")
            continue
        is_met = value <= limit if figure.is_most else value >= limit
        does, does_not = ("keeps to", "is above") if figure.is_most else ("reaches", "is below")
        (met if is_met else missed).append(
            f"{figure.what} {value:.4g}{figure.unit} {does if is_met else does_not} "
            f"{limit:.4g}{figure.unit}{figure.by}"
        )
    return met, missed


def enough(
    validations: Curve,
    *,
    best_psnr: float,
    best: Mapping[str, Any],
    target: QualityTarget | None,
    usd_per_tenth_db: Decimal | None,
) -> Enough | None:
    """The target is looked at first, then the price.

    Args:
        validations: those that count, in order.
        best_psnr: dB, of the student that would be handed over. It needs no smoothing: it is what
            this student has on these clips, and the margin is for others.
        best: its other figures, `val_NAME` each; one that is not known is not enough.
        target: None where no quality is enough.
        usd_per_tenth_db: the limit; None where no price is too high.
    """
    if target is not None and best_psnr >= target.psnr:
        met, missed = _compared(target, best)
        if not missed:
            return Enough("target", "; ".join((_reached(target, best_psnr), *met)))
    if usd_per_tenth_db is None or len(validations) <= VALIDATIONS:
        return None
    found = [trend(validations[:-1]), trend(validations)]
    if not all(slope is not None and slope * usd_per_tenth_db * 10 < 1 for slope in found):
        return None
    slope, recent = found[-1], len(_recent(validations))
    by, limit = f"by the trend of the last {recent} validations", format_usd(usd_per_tenth_db)
    if slope is None or slope <= 0:
        said = f"{by} more dollars bring nothing; the limit is {limit} per 0.1 dB"
    else:
        price = format_usd(1 / slope / 10)
        said = f"{by} another 0.1 dB costs {price}, more than the limit of {limit}"
    return Enough("marginal cost", said)


def curve(
    history: Sequence[Mapping[str, Any]], params: DistillParams
) -> list[tuple[Decimal, float]]:
    """The validations that a price of quality is taken from: those of the whole recipe, after its
    first steps.

    Their dollars are those of the steps themselves (`step_usd`): what an interruption took is no
    price of quality, nor is what another run has spent.
    """
    first = max(EARLY_SHARE, params.warmup_share) * params.steps
    if params.weight_adversarial > 0:  # PSNR is another one from there on
        first = max(first, params.adversarial_start)
    usd, found = Decimal(0), []
    for row in history:
        usd += Decimal(row.get("step_usd", 0))
        psnr = row.get("val_psnr", math.nan)
        if row["step"] > first and math.isfinite(psnr):
            found.append((usd, float(psnr)))
    return found


def trend(validations: Curve) -> Decimal | None:
    """dB per USD of the last validations; None where they are less than two, or cost nothing."""
    recent = _recent(validations)
    slopes = [
        Decimal(psnr - before) / (usd - earlier)
        for place, (usd, psnr) in enumerate(recent)
        for earlier, before in recent[:place]
        if usd > earlier
    ]
    return statistics.median(slopes) if slopes else None


def _recent(validations: Curve) -> Curve:
    """The last third, thinned to `_MOST`, the last one among them."""
    recent = validations[-max(VALIDATIONS, len(validations) // 3) :]
    return recent[::-1][:: math.ceil(len(recent) / _MOST) or 1][::-1]
