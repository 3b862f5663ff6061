"""Whether a run takes its next step, the one place where training meets dollars: the budget comes
first, then whether the student is good enough, by its target or by what more quality costs.

Good enough is a pure function of the validations in a run's checkpoints, so that a resumed run
decides as one that was never interrupted. The target depends on their quality alone, that of the
best EMA. The price of quality depends on dollars, that is on measured time: on another machine, or
a busier one, a run may stop at another validation for it.

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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import decide, per_second
from turbo_vaed.costs.money import format_usd
from turbo_vaed.distill.events import VALIDATIONS
from turbo_vaed.distill.job import Job, QualityTarget, RunCosts

GOOD_ENOUGH, OUT_OF_BUDGET = "good enough", "budget"
"""How a run ends that stops before its last step."""
INTERRUPTED = "interrupted"
"""How it ends for now where somebody stops it: the next run resumes from its checkpoint."""
EARLY_SHARE = 0.1
"""Of the planned steps: the price of quality does not count before."""
_UNKNOWN_STEP_SECONDS = 2.0
_MOST = 60
"""Validations that a trend is taken from; more are thinned, for the pairs are their square."""

Rows = Sequence[Mapping[str, Any]]
"""Of steps, those that a checkpoint holds."""
Curve = Sequence[tuple[Decimal, float]]
"""USD of the training and PSNR in dB, of each validation."""


@dataclass(frozen=True, kw_only=True)
class StopDecision:
    """Whether a run takes its next step."""

    stopped: str = ""
    """How the run ends, `budget`, `good enough` or `interrupted`; empty: it goes on."""
    reason: str = ""
    """Of a stop, in words."""
    warnings: tuple[tuple[str, str], ...] = ()
    """Kind and text."""
    costs: Mapping[str, str] = field(default_factory=dict)
    """USD up to now, for the row of the last step: `spent_usd` by the run, and `training_usd` by
    the steps alone, those of the runs that it goes on from included."""
    checkpoint_seconds: float = math.inf
    """Between two checkpoints where `checkpoint_every` is auto."""


class Stopping:
    """Decides before each step, on rank 0.

    Args:
        job: with what the run has cost when it was handed over.
        warned: kinds of the warnings that the run has had before.
        latest_costs: what the run has cost since, None where there is no news.
        is_interrupted: whether somebody has asked it to stop.
    """

    def __init__(
        self,
        job: Job,
        *,
        warned: Iterable[str] = (),
        latest_costs: Callable[[], RunCosts | None] = lambda: None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._job, self._costs, self._latest_costs = job, job.costs, latest_costs
        self._is_interrupted = is_interrupted
        self._warned = set(warned)
        self._training_usd = Decimal(0)
        self._counted_at: float | None = None

    def __call__(self, history: Rows, *, best_psnr: float, validate_seconds: float) -> StopDecision:
        """The decision on the next step.

        Args:
            history: rows of the steps before, of a resumed run too.
            best_psnr: dB, of the best EMA on the validation clips, the start's included.
            validate_seconds: what the last validation took.
        """
        self._costs = self._latest_costs() or self._costs
        spent_usd = self._costs.spent_by_now()
        costs = {
            "spent_usd": f"{spent_usd:.8f}",
            "training_usd": f"{self._trained(history):.12f}",
        }
        stopped, reason, warnings = self._decide(spent_usd, history, best_psnr, validate_seconds)
        return StopDecision(
            stopped=stopped,
            reason=reason,
            warnings=tuple(warnings),
            costs=costs,
            checkpoint_seconds=self._costs.checkpoint_seconds,
        )

    def _decide(
        self, spent_usd: Decimal, history: Rows, best_psnr: float, validate_seconds: float
    ) -> tuple[str, str, list[tuple[str, str]]]:
        costs, warnings = self._costs, []
        if self._is_interrupted():
            return INTERRUPTED, "Ctrl-C, or a signal", []
        if costs.refusal:
            return OUT_OF_BUDGET, costs.refusal, []
        seconds = [row["step_seconds"] for row in history[-10:]] or [_UNKNOWN_STEP_SECONDS]
        # After the step a validation may follow, or the one of a stop; then a checkpoint.
        budget = decide(
            costs.budget,
            spent_usd=spent_usd,
            rate_usd_per_second=per_second(costs.usd_per_hour),
            next_step_seconds=2 * (max(seconds) + validate_seconds),
        )
        if budget.stop:
            return OUT_OF_BUDGET, budget.reason, []
        # Once: a month's limit moves with what others spend. A budget that was raised warns anew.
        if budget.action != "warn":
            self._warned.discard("budget")
        elif "budget" not in self._warned:
            warnings.append(("budget", budget.reason))
        if not history or "val_psnr" in history[-1]:
            found = good_enough(self._job, history, best_psnr=best_psnr)
            if found is not None:
                return GOOD_ENOUGH, found.reason, warnings
            lacks = lacking(self._job, history, best_psnr=best_psnr)
            if lacks is not None and "not good enough" not in self._warned:
                warnings.append(("not good enough", lacks))
        self._warned.update(kind for kind, _ in warnings)
        return "", "", warnings

    def _trained(self, history: Rows) -> Decimal:
        """USD of the steps: their time at today's price, without what an interruption took."""
        now = time.monotonic()
        if self._counted_at is None:
            self._training_usd = Decimal(history[-1].get("training_usd", 0) if history else 0)
        else:
            price = per_second(self._costs.now_usd_per_hour)
            self._training_usd += Decimal(now - self._counted_at) * price
        self._counted_at = now
        return self._training_usd


class Enough(NamedTuple):
    """Why a student is good enough."""

    kind: Literal["target", "marginal cost"]
    reason: str
    """In words, with figures."""


class _Figure(NamedTuple):
    """One that a target limits, `val_NAME` in the row of its step."""

    label: str
    unit: str = ""
    is_most: bool = False
    """Its limit is the most that is allowed, and not the least."""
    remark: str = ""
    """How the limit comes about, where it is not the gate's own."""


_FIGURES = {
    "ssim": _Figure("SSIM"),
    "ms_ssim": _Figure("MS-SSIM"),
    "worst_psnr": _Figure("PSNR of the worst clips", " dB", remark=" (with the margin)"),
    "detail": _Figure("detail", remark=" (a share of the teacher's)"),
    "flicker": _Figure("flicker", is_most=True, remark=" (a multiple of the teacher's)"),
}


def good_enough(job: Job, history: Rows, *, best_psnr: float) -> Enough | None:
    """Whether a run may stop where it stands; None where it is to go on.

    Args:
        history: rows of its validated steps at least.
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


def lacking(job: Job, history: Rows, *, best_psnr: float) -> str | None:
    """What a student lacks although its PSNR is enough, in words with figures; None where it is
    not, nothing is missing, or its other figures are not known. Arguments as of `good_enough`."""
    target = job.quality_target
    if target is None or not best_psnr >= target.psnr:
        return None
    best = _best(history, best_psnr)
    if any(f"val_{name}" not in best for name in target.limits):
        return None
    _, missed = _compared(target, best)
    return f"{_psnr(target, best_psnr)}; but {'; '.join(missed)}" if missed else None


def _best(history: Rows, best_psnr: float) -> Mapping[str, Any]:
    """The row of the best EMA; without figures where it is the start, which no history has."""
    return next((row for row in history if row.get("val_psnr") == best_psnr), {})


def _psnr(target: QualityTarget, best_psnr: float) -> str:
    return f"validation PSNR {best_psnr:.2f} dB, required >= {target.rationale}"


def _compared(target: QualityTarget, best: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The limits that are met and those that are missed, in words. An unknown figure misses."""
    met: list[str] = []
    missed: list[str] = []
    for name, limit in target.limits.items():
        figure, value = _FIGURES[name], float(best.get(f"val_{name}", math.nan))
        is_met = value <= limit if figure.is_most else value >= limit
        measured = "unknown" if math.isnan(value) else f"{value:.4g}{figure.unit}"
        (met if is_met else missed).append(
            f"{figure.label} {measured}, required {'<=' if figure.is_most else '>='} "
            f"{limit:.4g}{figure.unit}{figure.remark}"
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
    """By the target first, then by the price.

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
            return Enough("target", "; ".join((_psnr(target, best_psnr), *met)))
    if usd_per_tenth_db is None or len(validations) <= VALIDATIONS:
        return None
    slopes = [trend(validations[:-1]), trend(validations)]
    if not all(slope is not None and slope * usd_per_tenth_db * 10 < 1 for slope in slopes):
        return None
    slope, recent = slopes[-1], len(_recent(validations))
    basis, limit = f"by the trend of the last {recent} validations", format_usd(usd_per_tenth_db)
    if slope is None or slope <= 0:
        reason = f"{basis} further spending brings no gain; the limit is {limit} per 0.1 dB"
    else:
        price = format_usd(1 / slope / 10)
        reason = f"{basis} another 0.1 dB costs {price}, more than the limit of {limit}"
    return Enough("marginal cost", reason)


def curve(history: Rows, params: DistillParams) -> list[tuple[Decimal, float]]:
    """The validations that a price of quality is taken from: those of the whole recipe, after its
    first steps.

    Their dollars are those of the steps themselves (`training_usd`): what an interruption took is
    no price of quality, nor is what another run has spent.
    """
    first = max(EARLY_SHARE, params.warmup_share) * params.steps
    if params.weight_adversarial > 0:  # PSNR is another one from there on
        first = max(first, params.adversarial_start)
    return [
        (Decimal(row.get("training_usd", 0)), float(row["val_psnr"]))
        for row in history
        if row["step"] > first and math.isfinite(row.get("val_psnr", math.nan))
    ]


def trend(validations: Curve) -> Decimal | None:
    """dB per USD of the last validations; None where they are less than two, or cost nothing."""
    recent = _recent(validations)
    slopes = [
        Decimal(psnr - before) / (usd - earlier)
        for i, (usd, psnr) in enumerate(recent)
        for earlier, before in recent[:i]
        if usd > earlier
    ]
    return statistics.median(slopes) if slopes else None


def _recent(validations: Curve) -> Curve:
    """The last third, thinned to `_MOST`, the last one among them."""
    recent = validations[-max(VALIDATIONS, len(validations) // 3) :]
    return recent[::-1][:: math.ceil(len(recent) / _MOST) or 1][::-1]
