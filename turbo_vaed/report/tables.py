"""The figures of a run's report, as the tiles and rows that the templates take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs.money import format_usd
from turbo_vaed.report import formatting, wording
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.formatting import aligned_usd, column_decimals
from turbo_vaed.report.wording import SIGNS, TONES

MOST_LISTED = 20
"""Warnings and restarts; the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One key figure."""

    name: str
    value: str = "\N{EN DASH}"
    caption: str = "not reached"
    tone: str = "absent"


def tiles(context: ReportContext) -> list[Tile]:
    """The key figures, in the order in which they are read."""
    return [_retention(context), _parameters(context), _package(context),
            _latency(context), _memory(context), _dollars(context)]  # fmt: skip


def _tone(context: ReportContext, check: str) -> str:
    found = context.check(check)
    return "" if found is None else TONES[found["result"]]


def _retention(context: ReportContext) -> Tile:
    found = context.retention
    if found is None:
        return Tile(name="PSNR retention")
    return Tile(name="PSNR retention", value=formatting.percent(found.share),
                caption=wording.retention_caption(context),
                tone=_tone(context, "psnr_retention") if found.is_packaged else "")  # fmt: skip


def _parameters(context: ReportContext) -> Tile:
    share = context.parameter_share
    if share is None or context.history is None:
        return Tile(name="Decoder size")
    student, teacher = (
        formatting.million(context.history[key])
        for key in ("student_parameters", "teacher_decoder_parameters")
    )
    return Tile(name="Decoder size", value=formatting.percent(share),
                caption=f"{student} of the teacher's {teacher} parameters", tone="")  # fmt: skip


def _package(context: ReportContext) -> Tile:
    if context.package is None:
        return Tile(name="Package")
    check = context.check("package_mb")
    return Tile(name="Package", value=formatting.size(context.package["size_bytes"]),
                caption=wording.requirement(check) if check else context.package["program"],
                tone=_tone(context, "package_mb"))  # fmt: skip


def _latency(context: ReportContext) -> Tile:
    check, measured = context.check("latency_ratio"), context.measured("latency_ratio")
    if check is None or measured is None:
        return Tile(name="Latency ratio")
    return Tile(name="Latency ratio", value=f"{measured:.2f} {formatting.TIMES}",
                caption=f"of the teacher's on this host; {wording.requirement(check)}",
                tone=_tone(context, "latency_ratio"))  # fmt: skip


def _memory(context: ReportContext) -> Tile:
    check, measured = context.check("peak_memory_mb"), context.measured("peak_memory_mb")
    if check is None or measured is None:
        return Tile(name="Peak memory")
    return Tile(name="Peak memory", value=f"{measured:,.0f} MB",
                caption=wording.requirement(check),
                tone=_tone(context, "peak_memory_mb"))  # fmt: skip


def _dollars(context: ReportContext) -> Tile:
    costs, refused = context.costs, wording.not_begun(context)
    return Tile(name="Cost of the run", value=format_usd(costs.usd),
                caption=wording.cost_caption(context, _seconds(context)),
                tone="absent" if refused else "bad" if costs.over_usd > 0 else "good")  # fmt: skip


def _seconds(context: ReportContext) -> float:
    return float(sum((row.node_seconds for row in context.costs.stages), Decimal(0)))


def budget(context: ReportContext) -> dict[str, Any] | None:
    """The bar under the headline; None of a run that may not spend what is left."""
    if wording.not_begun(context):
        return None
    costs = context.costs
    return {
        "spent": format_usd(costs.usd),
        "wasted": format_usd(costs.wasted_usd) if costs.wasted_usd else "",
        "limit": format_usd(costs.budget_usd),
        "some": costs.usd > 0,
        "share": formatting.percent(float(costs.budget_share), 2),
        "width": f"{min(1.0, float(costs.budget_share)) * 100:.2f}",
        "tone": "warn" if context.stopped_early or costs.over_usd > 0 else "",
    }


def cost(context: ReportContext) -> dict[str, Any]:
    """A row per stage, those that were reached without a charge too."""
    costs = context.costs
    most = max((row.usd for row in costs.stages), default=Decimal(0))
    decimals = column_decimals([row.usd for row in costs.stages])
    rows = [
        {
            "stage": wording.stage_label(row.stage),
            "seconds": formatting.seconds(float(row.node_seconds)),
            "usd": aligned_usd(row.usd, decimals),
            "wasted": aligned_usd(row.wasted_usd, decimals),
            "share": formatting.percent(float(row.share)),
            "width": f"{float(row.usd / most) * 100 if most else 0:.1f}",
            "wasted_width": f"{float(row.wasted_usd / row.usd) * 100:.1f}"
            if row.wasted_usd and row.usd else "",
        }
        for row in costs.stages
    ]  # fmt: skip
    left = costs.budget_usd - costs.usd
    return {
        "rows": rows,
        "reused": [stage for stage in _reached(context)
                   if stage not in {row.stage for row in costs.stages}],
        "seconds": formatting.seconds(_seconds(context)),
        "total": aligned_usd(costs.usd, decimals),
        "wasted": aligned_usd(costs.wasted_usd, decimals),
        "any_wasted": costs.wasted_usd > 0,
        "may_be_spent": not wording.not_begun(context),
        "budget": aligned_usd(costs.budget_usd, decimals),
        "left_name": "Over the budget by" if left < 0 else "Left",
        "left": aligned_usd(abs(left), decimals),
        "price": context.price,
        "old_prices": costs.old_prices,
        "estimate": _estimate(context, decimals),
    }  # fmt: skip


def _estimate(context: ReportContext, decimals: int) -> dict[str, str] | None:
    """The estimate before the run; None of a run that was refused: the refusal states its own."""
    if context.estimate is None or wording.not_begun(context):
        return None
    low, likely, high = (
        aligned_usd(Decimal(context.estimate[name]), decimals)
        for name in ("low_usd", "likely_usd", "high_usd")
    )
    return {"low": low, "likely": likely, "high": high, "basis": context.estimate["basis"]}


def _reached(context: ReportContext) -> list[str]:
    outputs = (context.validation, context.clips, context.latents, context.history,
               context.evaluation, context.package, context.verdict)  # fmt: skip
    return [stage for stage, out in zip(STAGES, outputs, strict=True) if out is not None]


def checks(context: ReportContext) -> list[dict[str, Any]]:
    """The verdict's checks, the failed ones first, then those that are not certain."""
    rows = []
    for check in (context.verdict or {}).get("checks", ()):
        measured, limit = formatting.measured_and_limit(
            check["measured"], check["limit"], check["unit"]
        )
        rows.append({
            "label": wording.check_label(check["name"]),
            "measured": measured,
            "limit": f"{wording.bound(check)} {limit}",
            "result": check["result"],
            "tone": TONES[check["result"]],
            "sign": SIGNS[check["result"]],
            "between": _between(check),
            "margin": _margin(check),
            "reason": check["reason"],
            "rationale": check["rationale"],
        })  # fmt: skip
    return sorted(rows, key=lambda row: list(TONES).index(row["result"]))


def _between(check: Mapping[str, Any]) -> str:
    if check["low"] is None:
        return ""
    low, high = (
        formatting.measured_and_limit(check[end], check["limit"], check["unit"])[0]
        for end in ("low", "high")
    )
    return f"{low} to {high}"


def _margin(check: Mapping[str, Any]) -> str:
    """How far from its limit, and on which side: `+1.5 dB`."""
    margin = check.get("margin")
    if margin is None:
        return ""
    size, _ = formatting.measured_and_limit(abs(margin), check["limit"], check["unit"])
    return f"{'+' if margin >= 0 else '-'}{size}"


def quality(context: ReportContext) -> dict[str, Any] | None:
    """Teacher, student and what the device put out, on the test clips."""
    found = context.evaluation
    if found is None:
        return None
    worst = f"worst {formatting.percent(found['worst_share'], 0)}"
    phone = (context.measurement or {}).get("quality")
    sources = [("Teacher", found["teacher"]), ("Student", found["student"])]
    sources += [("Package", phone)] if phone else []
    rows = []
    for key, name, digits, unit in (
        ("psnr", "PSNR", 2, " dB"), ("ssim", "SSIM", 4, ""), ("ms_ssim", "MS-SSIM", 4, ""),
        ("detail", "Detail", 4, ""), ("flicker", "Flicker (less is better)", 4, ""),
    ):  # fmt: skip
        if not all(key in source for _, source in sources):
            continue  # clips of one frame have no flicker, older runs no detail
        figures = [
            f"{source[key][which]:.{digits}f}{unit}"
            for which in ("mean", "worst")
            for _, source in sources
        ]
        share = found["retention"].get(key)
        rows.append((name, [*figures, "" if share is None else formatting.percent(share)]))
    columns = [f"{who}, {which}" for which in ("mean", worst) for who, _ in sources]
    return {
        "columns": [*columns, "Student's retention"],
        "rows": rows,
        "clips": len(found["clips"]),
    }


def training(context: ReportContext) -> dict[str, Any] | None:
    """How the student was trained, and what went wrong; None where distillation was not reached."""
    history = context.history
    if history is None:
        return None
    price, restarts = history["usd_per_tenth_db"], history["restarts"]
    return {
        "done": formatting.count(history["steps_done"]),
        "planned": formatting.count(history["steps_planned"]),
        "workers": formatting.counted(history["workers"], "worker"),
        "precision": history["precision"],
        "start": history["start"],
        "best_step": history["best_step"],
        "losses": ", ".join(f"{name} {weight:g}" for name, weight in history["recipe"].items()),
        "targets": history["targets"],
        "last_tenth_db": "" if price is None else format_usd(Decimal(price)),
        "interruptions": wording.interruptions(restarts) if restarts else "",
        "end": wording.training_end(history),
        "warnings": history["warnings"][:MOST_LISTED],
        "warnings_left_out": max(0, len(history["warnings"]) - MOST_LISTED),
        "restarts": [
            {**restart, "lost": wording.interruptions([restart])}
            for restart in restarts[:MOST_LISTED]
        ],
        "restarts_left_out": max(0, len(restarts) - MOST_LISTED),
    }
