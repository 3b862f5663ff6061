"""The charts of a report: training, quality over steps and dollars, quality per clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from turbo_vaed.costs.money import format_usd
from turbo_vaed.distill.events import spent_in_all
from turbo_vaed.report.charts import Axis, Drawing, Series, line_chart, smoothed
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.wording import END_NAMES


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart with its legend: (tone, name) pairs."""

    title: str
    legend: Sequence[tuple[str, str]]
    svg: Drawing


def curves(context: ReportContext) -> list[Curve]:
    """The charts that the reached stages allow, at most five."""
    found: list[Curve | None] = []
    if context.history is not None:
        steps = context.history["steps"]
        found += [
            _loss(steps),
            _other_losses(steps),
            _quality(context.history, steps),
            _dollars(context.history, steps),
        ]
    if context.evaluation is not None:
        found.append(_per_clip(context.evaluation["clips"]))
    return [curve for curve in found if curve is not None]


def _drawn(
    title: str, description: str, x: Axis, y: Axis, series: Sequence[Series]
) -> Curve | None:
    svg = line_chart(title=title, description=description, x=x, y=y, series=series)
    if svg is None:
        return None
    legend = {s.tone: s.name for s in series if s.x and not s.faint}
    return Curve(title=title, legend=list(legend.items()), svg=svg)


def _loss(steps: Sequence[Mapping[str, Any]]) -> Curve | None:
    window = _window(steps)
    parts = {
        "loss": ("loss", "phone"),
        "loss_source": ("L1 to the source", "other"),
        "loss_teacher": ("L1 to the teacher", "teacher"),
    }
    series = [_smoothed(steps, key, name, tone) for key, (name, tone) in parts.items()]
    raw = [row for row in steps if row.get("loss") is not None]
    if window > 1:
        series.append(Series(name="loss", x=_column(raw, "step"), y=_column(raw, "loss"),
                             tone="phone", faint=True))  # fmt: skip
    return _drawn(
        "Training loss", _smoothing(steps), Axis(label="step"), Axis(label="loss"), series
    )


def _other_losses(steps: Sequence[Mapping[str, Any]]) -> Curve | None:
    """Parts of another unit than pixels, as they are, without their weights."""
    parts = {
        "loss_perceptual": ("perceptual", "third"),
        "loss_feature": ("features", "other"),
        "loss_adversarial": ("adversarial", "phone"),
        "loss_discriminator": ("discriminator", "teacher"),
    }
    series = [_smoothed(steps, key, name, tone) for key, (name, tone) in parts.items()]
    return _drawn(
        "Parts of the loss", _smoothing(steps), Axis(label="step"),
        Axis(label="part, without weight"), series,
    )  # fmt: skip


def _window(steps: Sequence[Mapping[str, Any]]) -> int:
    return max(1, len(steps) // 40)


def _smoothing(steps: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a long run are thinned, so a mean over rows is not one over so many steps."""
    last = steps[-1]["step"] if steps else 0
    rows = "steps" if last == len(steps) else f"of {len(steps)} recorded steps"
    return f"{last} steps; drawn as the mean over {_window(steps)} {rows}."


def _smoothed(steps: Sequence[Mapping[str, Any]], key: str, name: str, tone: str) -> Series:
    rows = [row for row in steps if row.get(key) is not None]
    y = smoothed(_column(rows, key), _window(steps))
    return Series(name=name, x=_column(rows, "step"), y=y, tone=tone)


def _validated(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in steps if row.get("val_psnr") is not None]


def _quality(history: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Curve | None:
    rows = _validated(steps)
    best = [row for row in rows if row["step"] == history.get("best_step")]
    series = [
        Series(name="student", x=_column(rows, "step"), y=_column(rows, "val_psnr"), tone="phone",
               dots=True),
        Series(name="best checkpoint", x=_column(best, "step"), y=_column(best, "val_psnr"),
               tone="other", line=False, dots=True),
    ]  # fmt: skip
    listed = ", ".join(f"{row['val_psnr']:.2f} dB at step {row['step']}" for row in rows[-6:])
    return _drawn(
        "Quality while training", listed, Axis(label="step"),
        Axis(label="validation PSNR", unit="dB"), series,
    )  # fmt: skip


def _dollars(history: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Curve | None:
    """With the PSNR that is enough, where one was set, and the place where training ended."""
    rows = [row for row in _validated(steps) if row.get("spent_usd") is not None]
    by_run = [Decimal(row["spent_usd"]) for row in rows]
    in_all = spent_in_all(by_run)
    spent = [float(usd) for usd in in_all]  # places in a drawing, not sums
    quality = _column(rows, "val_psnr")
    series = [Series(name="student", x=spent, y=quality, tone="phone", dots=True)]
    target = history.get("target_psnr")
    if rows and target is not None:
        ends = [spent[0], spent[-1]]
        series.append(Series(name="target PSNR", x=ends, y=[target, target], tone="required"))
    series.append(
        Series(name=END_NAMES.get(history["stopped"], "end"), x=spent[-1:],
               y=quality[-1:], tone="third", line=False, dots=True)
    )  # fmt: skip
    listed = ", ".join(
        f"{row['val_psnr']:.2f} dB for {format_usd(usd)}"
        for row, usd in list(zip(rows, in_all, strict=True))[-6:]
    )
    label = "spent by the run" + (" and those before it" if in_all != by_run else "")
    return _drawn(
        "Quality against dollars", listed, Axis(label=label, unit="USD"),
        Axis(label="validation PSNR", unit="dB"), series,
    )  # fmt: skip


def _per_clip(clips: Sequence[Mapping[str, Any]]) -> Curve | None:
    ranked = sorted(clips, key=lambda clip: -clip["teacher"]["psnr"])
    place = list(range(1, len(ranked) + 1))
    series = [
        Series(name=name, x=place, y=[clip[name]["psnr"] for clip in ranked], tone=tone,
               line=False, dots=True, radius=radius)  # of the same PSNR both are seen
        for name, tone, radius in (("teacher", "teacher", 5.5), ("student", "phone", 3.5))
    ]  # fmt: skip
    listed = f"{len(ranked)} test clips, from the teacher's best to its worst."
    return _drawn(
        "Test clips", listed, Axis(label="test clip, by the teacher's PSNR"),
        Axis(label="PSNR", unit="dB"), series,
    )  # fmt: skip


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(row[key]) for row in rows]
