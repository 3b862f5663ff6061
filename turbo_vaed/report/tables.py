"""The figures of a report as rows and tiles that the templates take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs.money import format_usd
from turbo_vaed.report import words
from turbo_vaed.report.context import ReportContext

MOST_FILES = 200
"""A longer list of files is cut, the quarantined ones first."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One key figure."""

    name: str
    value: str = "\N{EN DASH}"
    about: str = "not reached"
    tone: str = "absent"


def tiles(context: ReportContext) -> list[Tile]:
    """The key figures, in the order in which they are read."""
    return [_retention(context), _parameters(context), _package(context),
            _latency(context), _memory(context), _dollars(context)]  # fmt: skip


TONES = {"fails": "bad", "inconclusive": "warn", "passes": "good"}
SIGNS = {"fails": "✗", "inconclusive": "?", "passes": "✓"}


def _tone(context: ReportContext, check: str) -> str:
    found = words.check_named(context.verdict, check)
    return "" if found is None else TONES[found["result"]]


def _limit(check: Mapping[str, Any]) -> str:
    bound = "at least" if check["direction"] == "min" else "at most"
    asked = words.measured_and_limit(check["measured"], check["limit"], check["unit"])[1]
    return f"{bound} {asked} asked"


def _retention(context: ReportContext) -> Tile:
    found = words.retention(context)
    if found is None:
        return Tile(name="PSNR retention")
    whose = "package" if found.is_packaged else "student"
    about = f"of the teacher's PSNR, by the {whose}"
    if found.psnr_db is not None and found.teacher_psnr_db is not None:
        about = f"{whose} {found.psnr_db:.2f} dB, teacher {found.teacher_psnr_db:.2f} dB"
    if not found.is_packaged:
        about += "; no package was measured"
    return Tile(name="PSNR retention", value=words.percent(found.share), about=about,
                tone=_tone(context, "psnr_retention") if found.is_packaged else "")  # fmt: skip


def _parameters(context: ReportContext) -> Tile:
    share = words.parameter_share(context)
    if share is None or context.history is None:
        return Tile(name="Decoder size")
    student, teacher = (context.history[key] for key in
                        ("student_parameters", "teacher_decoder_parameters"))  # fmt: skip
    about = f"{words.million(student)} of the teacher's {words.million(teacher)} parameters"
    return Tile(name="Decoder size", value=words.percent(share), about=about, tone="")


def _package(context: ReportContext) -> Tile:
    if context.package is None:
        return Tile(name="Package")
    check = words.check_named(context.verdict, "package_mb")
    about = _limit(check) if check else str(context.package["program"])
    return Tile(name="Package", value=words.size(context.package["size_bytes"]), about=about,
                tone=_tone(context, "package_mb"))  # fmt: skip


def _latency(context: ReportContext) -> Tile:
    check = words.check_named(context.verdict, "latency_ratio")
    if check is None or check["measured"] is None:
        return Tile(name="Latency ratio")
    about = f"of the teacher's on this host; {_limit(check)}"
    return Tile(name="Latency ratio", value=f"{check['measured']:.2f} {words.TIMES}", about=about,
                tone=_tone(context, "latency_ratio"))  # fmt: skip


def _memory(context: ReportContext) -> Tile:
    check = words.check_named(context.verdict, "peak_memory_mb")
    if check is None or check["measured"] is None:
        return Tile(name="Peak memory")
    return Tile(name="Peak memory", value=f"{check['measured']:,.0f} MB", about=_limit(check),
                tone=_tone(context, "peak_memory_mb"))  # fmt: skip


def _dollars(context: ReportContext) -> Tile:
    costs = context.costs
    if what := words.not_begun(context):  # no part of the budget is there to be spent
        return Tile(name="Cost of the run", value=format_usd(costs.usd), about=what.lower())
    about = f"of {format_usd(costs.budget_usd)}, in {words.seconds(_seconds(context))}"
    return Tile(name="Cost of the run", value=format_usd(costs.usd), about=about,
                tone="bad" if costs.over_usd > 0 else "good")  # fmt: skip


def _seconds(context: ReportContext) -> float:
    return float(sum((row.node_seconds for row in context.costs.stages), Decimal(0)))


def budget(context: ReportContext) -> dict[str, Any] | None:
    """The bar under the headline; None of a run that may not spend what is left."""
    if words.not_begun(context):
        return None
    costs = context.costs
    return {
        "spent": format_usd(costs.usd),
        "wasted": format_usd(costs.wasted_usd) if costs.wasted_usd else "",
        "limit": format_usd(costs.budget_usd),
        "some": costs.usd > 0,
        "share": words.percent(float(costs.budget_share), 2),
        "width": f"{min(1.0, float(costs.budget_share)) * 100:.2f}",
        "tone": "warn" if context.stopped_early or costs.over_usd > 0 else "",
    }


def cost(context: ReportContext) -> dict[str, Any]:
    """A row per stage, those that were reached without a charge too."""
    costs = context.costs
    most = max((row.usd for row in costs.stages), default=Decimal(0))
    places = _places([row.usd for row in costs.stages])
    rows = [
        {
            "stage": row.stage,
            "seconds": words.seconds(float(row.node_seconds)),
            "usd": _aligned(row.usd, places),
            "wasted": _aligned(row.wasted_usd, places),
            "share": words.percent(float(row.share)),
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
        "seconds": words.seconds(_seconds(context)),
        "total": _aligned(costs.usd, places),
        "wasted": _aligned(costs.wasted_usd, places),
        "any_wasted": costs.wasted_usd > 0,
        "may_be_spent": not words.not_begun(context),
        "budget": _aligned(costs.budget_usd, places),
        "left_name": "Over the budget by" if left < 0 else "Left",
        "left": _aligned(abs(left), places),
        "price": context.price,
        "old_prices": costs.old_prices,
        "estimate": _estimated(context, places),
    }  # fmt: skip


def _estimated(context: ReportContext, places: int) -> str:
    """What was said before the run, beside what it came to; "" where nothing was, or where the run
    was not begun: what refused it tells its own estimate."""
    if context.estimate is None or words.not_begun(context):
        return ""
    low, likely, high = (
        _aligned(Decimal(context.estimate[name]), places)
        for name in ("low_usd", "likely_usd", "high_usd")
    )
    return (
        f"Estimated before the run at {likely} ({low} to {high}), {context.estimate['basis']}; "
        f"it came to {_aligned(context.costs.usd, places)}."
    )


def _places(amounts: Sequence[Decimal]) -> int:
    """Decimals that show two digits of the smallest amount that is not zero, 2 to 6."""
    least = min((amount for amount in amounts if amount > 0), default=Decimal(1))
    return min(6, max(2, 1 - least.adjusted()))


def _aligned(amount: Decimal, places: int) -> str:
    """Dollars with a fixed number of decimals, so that a column reads down."""
    return f"${amount:,.{places}f}"


def _reached(context: ReportContext) -> list[str]:
    outputs = (context.validation, context.clips, context.latents, context.history,
               context.evaluation, context.package, context.verdict)  # fmt: skip
    return [stage for stage, out in zip(STAGES, outputs, strict=True) if out is not None]


def checks(context: ReportContext) -> list[dict[str, Any]]:
    """The verdict's checks, the failed ones first, then those that are not certain."""
    rows = []
    for check in (context.verdict or {}).get("checks", ()):
        measured, limit = words.measured_and_limit(check["measured"], check["limit"], check["unit"])
        sign = "≥" if check["direction"] == "min" else "≤"
        rows.append({
            "label": words.check_label(check["name"]),
            "measured": measured,
            "limit": f"{sign} {limit}",
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
        words.measured_and_limit(check[end], check["limit"], check["unit"])[0]
        for end in ("low", "high")
    )
    return f"{low} to {high}"


def _margin(check: Mapping[str, Any]) -> str:
    """How far from its limit, and on which side: `+1.5 dB`."""
    margin = check.get("margin")
    if margin is None:
        return ""
    shown, _ = words.measured_and_limit(abs(margin), check["limit"], check["unit"])
    return f"{'+' if margin >= 0 else '-'}{shown}"


def quality(context: ReportContext) -> dict[str, Any] | None:
    """Teacher, student and what the device put out, on the test clips."""
    found = context.evaluation
    if found is None:
        return None
    worst = f"worst {words.percent(found['worst_share'], 0)}"
    phone = (context.measurement or {}).get("quality")
    sources = [("Teacher", found["teacher"]), ("Student", found["student"])]
    sources += [("Package", phone)] if phone else []
    rows = []
    for key, name, digits, unit in (
        ("psnr", "PSNR", 2, " dB"), ("ssim", "SSIM", 4, ""), ("ms_ssim", "MS-SSIM", 4, ""),
        ("detail", "Fine structure", 4, ""), ("flicker", "Flicker (less is better)", 4, ""),
    ):  # fmt: skip
        if not all(key in source for _, source in sources):
            continue  # clips of one frame have no flicker, older runs no detail
        figures = [
            f"{source[key][which]:.{digits}f}{unit}"
            for which in ("mean", "worst")
            for _, source in sources
        ]
        kept = found["retention"].get(key)
        rows.append((name, [*figures, "" if kept is None else words.percent(kept)]))
    columns = [f"{who}, {which}" for which in ("mean", worst) for who, _ in sources]
    return {
        "columns": [*columns, "Student keeps"],
        "rows": rows,
        "clips": len(found["clips"]),
    }


def data(context: ReportContext) -> dict[str, Any] | None:
    """Files, split and expectations."""
    if context.validation is None:
        return None
    found = context.validation
    quarantined = len(found["quarantined"])
    lead = f"{found['files']} files, {found['ok']} used, {quarantined} quarantined."
    if quarantined:
        lead += " A quarantined file takes no part in training or in any figure."
    ordered = sorted(context.manifest, key=lambda row: (row["status"] == "ok", row["path"]))
    return {
        "lead": lead,
        "files": [_file(row) for row in ordered[:MOST_FILES]],
        "files_left_out": max(0, len(ordered) - MOST_FILES),
        "split": None if context.clips is None else _split(context.clips),
        "expectations": [
            {
                "name": row["name"].replace("_", " "),
                "column": row["column"],
                "severity": row["severity"],
                "expected": _plain(row["expected"]),
                "observed": _plain(row["observed"]),
                "met": row["success"],
                "tone": "good" if row["success"]
                else "bad" if row["severity"] == "critical" else "warn",
            }
            for row in found["expectations"]
        ],
    }  # fmt: skip


def _file(row: Mapping[str, Any]) -> dict[str, Any]:
    ok = row["status"] == "ok"
    picture, rate = "", row.get("fps")
    if row.get("width") and row.get("height"):
        picture = f"{row['width']:.0f} {words.TIMES} {row['height']:.0f}"
        picture += f", {rate:.4g} fps" if rate else ""
        picture += f", {row['codec']}" if row.get("codec") else ""
    return {
        "path": row["path"],
        "ok": ok,
        "picture": picture,
        "frames": "" if row.get("frames") is None else f"{row['frames']:.0f}",
        "length": "" if row.get("seconds") is None else words.seconds(row["seconds"]),
        "size": words.size(row["bytes"]),
        "reason": row.get("reason") or "",
    }


def _split(clips: Mapping[str, Any]) -> dict[str, Any]:
    how = {
        "source": "Split by source video: no video has clips in two parts.",
        "time": "Split by time inside each video, with a gap between the parts.",
    }
    counts = clips["counts"]
    said = how.get(clips["split_by"], f"Split by {clips['split_by']}.")
    side = f"{clips['size']} {words.TIMES} {clips['size']}"
    shape = f"Clips of {clips['frames']} frames of {side} pixels."
    return {
        "parts": [{"name": name, "count": counts[name]} for name in ("train", "val", "test")],
        "said": f"{said} Why: {clips['split_reason']}. {shape}",
        "counts": ", ".join(f"{counts[name]} {name}" for name in ("train", "val", "test")),
    }


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
