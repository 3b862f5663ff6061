"""Figures and sentences for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs.money import format_usd, plain, quantise_usd
from turbo_vaed.roi.measured import is_demo_teacher

if TYPE_CHECKING:
    from turbo_vaed.report.context import ReportContext

TIMES = "\N{MULTIPLICATION SIGN}"
NEVER = "never"

CHECK_LABELS = {
    "psnr_retention": "PSNR retention",
    "psnr": "Mean PSNR",
    "ssim": "Mean SSIM",
    "ms_ssim": "Mean MS-SSIM",
    "worst_psnr": "PSNR of the worst clips",
    "flicker_ratio": "Flicker over the teacher's",
    "detail_retention": "Fine structure kept",
    "parity_psnr": "Package against PyTorch",
    "fps": "Frames a second",
    "cold_start_seconds": "Cold start",
    "peak_memory_mb": "Peak memory",
    "package_mb": "Package size",
    "latency_ratio": "Latency over the teacher's",
}
"""The gate's checks, for people."""


def check_label(name: str) -> str:
    """A check's name for people; an unknown one keeps its words."""
    return CHECK_LABELS.get(name, name.replace("_", " ").capitalize())


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as `99.1 %`; a positive share that would print as zero is `< 0.1 %`."""
    if share is None or not math.isfinite(share):
        return "unknown"
    least = 10**-digits
    if 0 < share * 100 < least / 2:
        return f"< {least:g} %"
    return f"{share * 100:.{digits}f} %"


def decibel(value: float | None) -> str:
    """dB with two decimals."""
    return "not measured" if value is None else f"{value:.2f} dB"


def seconds(value: float) -> str:
    """A duration: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def milliseconds(value_seconds: float) -> str:
    """A short duration: `131 ms`, `1.31 s`, and from ten seconds on as `seconds`."""
    if value_seconds < 1:
        return f"{value_seconds * 1000:.0f} ms"
    return f"{value_seconds:.2f} s" if value_seconds < 10 else seconds(value_seconds)


def latency(median: float, low: float, high: float) -> tuple[str, str]:
    """Seconds of a median and of its interval: `36.2 ms`, `32.4 to 41.4 ms`; in s from one on."""
    scale, unit, digits = (1000, "ms", 1) if high < 1 else (1, "s", 2)
    return (
        f"{median * scale:.{digits}f} {unit}",
        f"{low * scale:.{digits}f} to {high * scale:.{digits}f} {unit}",
    )


def size(value_bytes: int) -> str:
    """Bytes as kB or MB (1e6 bytes)."""
    return f"{value_bytes / 1e6:.1f} MB" if value_bytes >= 1e5 else f"{value_bytes / 1e3:.1f} kB"


def counted(number: int, thing: str) -> str:
    """1 worker, 2 workers."""
    return f"{count(number)} {thing}" + ("" if number == 1 else "s")


def count(value: int) -> str:
    """A count: `4,512,003`."""
    return f"{value:,}"


def million(value: int) -> str:
    """A count of parameters: `1.04 M`."""
    return f"{value / 1e6:.2f} M" if value >= 1e5 else count(value)


def amount(value: Decimal | None, unit: str = "") -> str:
    """A figure for people: dollars, whole ones from a thousand on; else four digits; or never."""
    if value is None:
        return NEVER
    if unit.startswith("USD"):
        sign = "-" if value < 0 else ""
        return f"{sign}${abs(value):,.0f}" if abs(value) >= 1000 else format_usd(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    places = max(0, 3 - value.adjusted()) if value else 0
    return plain(quantise_usd(value, Decimal(1).scaleb(-places)))


def measured_and_limit(measured: float | None, limit: float, unit: str) -> tuple[str, str]:
    """Both with their unit, and as many digits as tell on which side of the limit one is."""
    scale, sign = {"share": (100.0, " %"), "ratio": (1.0, f" {TIMES}")}.get(unit, (1.0, f" {unit}"))
    sign = sign if unit else ""
    asked = f"{limit * scale:.10g}{sign}"
    if measured is None or not math.isfinite(measured):
        return "not measured", asked
    shown = ""
    for digits in range(3 if unit == "MB" else 4, 16):
        shown = f"{measured * scale:.{digits}g}"
        if measured == limit or float(shown) != float(f"{limit * scale:.10g}"):
            break
    if "e" in shown:
        shown = f"{measured * scale:.0f}"
    return f"{shown}{sign}", asked


def check_named(verdict: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    """The check called `name` of a verdict, or None."""
    checks = (verdict or {}).get("checks", ())
    return next((check for check in checks if check["name"] == name), None)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The share of the teacher's PSNR that is kept, with both figures that it is of."""

    share: float
    is_packaged: bool
    """Kept by the package, on its device; else by the student as it was trained."""
    psnr_db: float | None
    teacher_psnr_db: float | None
    """Of the same clips."""


def retention(context: ReportContext) -> Retention | None:
    """As the gate judged the package; the student's where none was measured."""
    evaluation = context.evaluation
    teacher = None if evaluation is None else float(evaluation["teacher"]["psnr"]["mean"])
    share = _measured(context, "psnr_retention")
    if share is not None:
        own = _measured(context, "psnr")
        return Retention(share=share, is_packaged=True, psnr_db=own, teacher_psnr_db=teacher)
    if evaluation is None or evaluation["retention"]["psnr"] is None:
        return None
    return Retention(
        share=float(evaluation["retention"]["psnr"]),
        is_packaged=False,
        psnr_db=float(evaluation["student"]["psnr"]["mean"]),
        teacher_psnr_db=teacher,
    )


def _measured(context: ReportContext, name: str) -> float | None:
    check = check_named(context.verdict, name)
    return None if check is None or check["measured"] is None else float(check["measured"])


def parameter_share(context: ReportContext) -> float | None:
    """Parameters of the student over those of the teacher's decoder."""
    if context.history is None:
        return None
    history = context.history
    return float(history["student_parameters"]) / float(history["teacher_decoder_parameters"])


def badge(context: ReportContext) -> tuple[str, str]:
    """The verdict in a few words, and its tone: good, warn, bad."""
    if context.failure is not None:
        if not context.failure.is_begun:
            return not_begun(context), "warn" if context.failure.by_budget else "bad"
        if context.failure.by_budget:
            return f"Stopped by budget at {context.failure.stage}", "warn"
        return f"Failed at {context.failure.stage}", "bad"
    if context.verdict is None:
        return "No verdict", "warn"
    if context.verdict["result"] == "inconclusive":
        return "Inconclusive", "warn"
    if context.verdict["result"] != "passes":
        return "Fails the gate", "bad"
    if context.verdict["needs_approval"]:
        return "Passes, needs approval", "warn"
    return "Passes the gate", "good"


def not_begun(context: ReportContext) -> str:
    """Of a run of which no stage was begun: `Not started`; `Not continued` where one was before;
    empty of any other."""
    if context.failure is None or context.failure.is_begun:
        return ""
    before = any(row.node_seconds and row.stage in STAGES for row in context.costs.stages)
    return "Not continued" if before else "Not started"


def headline(context: ReportContext) -> str:
    """The run in one sentence: verdict, retention, dollars against the budget."""
    if what := not_begun(context):
        return _refused(context, what)
    money = f"{format_usd(context.costs.usd)} of the {format_usd(context.costs.budget_usd)} budget"
    if context.failure is not None:
        stage = context.failure.stage
        if context.failure.by_budget:
            return f"The budget stopped the run at {stage}, with {money} spent."
        kept = _kept(context, "kept")
        reached = f"; by then {kept}" if kept else ""
        return f"The run failed at {stage}, after {money}{reached}."
    kept = _kept(context, "keeps")
    if context.verdict is None or kept is None:
        return f"The run has no verdict yet, after {money}."
    passed = context.verdict["result"] == "passes"
    if passed and context.verdict["needs_approval"]:
        start = "Ready for a person's approval"
    elif passed:
        start = "Ready to ship"
    else:
        start = f"Not ready to ship, {_failed_checks(context.verdict)}"
    whole = context.customer_usd
    if whole is not None and whole > context.costs.usd:  # earlier runs paid for some of it
        money += f", {format_usd(whole)} with the runs before it"
    demo = ""
    if is_demo_teacher(context.latents):
        demo = " Its teacher is the demo's, which is not for shipping."
    return f"{start}: {kept}, for {money}.{demo}"


def _refused(context: ReportContext, what: str) -> str:
    """Of a run that was not begun. What refused it names the limit, and stands below."""
    assert context.failure is not None
    usd = context.costs.usd
    money = f"{format_usd(usd)} was charged to it before" if usd else "nothing was spent"
    why = (
        "the limits on what may be spent do not allow it"
        if context.failure.by_budget
        else "something was wrong before its first stage"
    )
    return f"The run was {what[0].lower()}{what[1:]}: {why}; {money}."


def _kept(context: ReportContext, keeps: str) -> str | None:
    """Who keeps, or kept, how much of the teacher."""
    found, parameters = retention(context), parameter_share(context)
    if found is None or parameters is None:
        return None
    precision = str((context.verdict or {}).get("target") or "").partition("/")[2]
    packaged = f"the student as packaged{precision and f' in {precision}'}"
    whose = packaged if found.is_packaged else "the student before packaging"
    return (
        f"{whose} {keeps} {percent(found.share)} of the teacher's PSNR at "
        f"{percent(parameters, 0)} of its decoder parameters"
    )


def _failed_checks(verdict: Mapping[str, Any]) -> str:
    results = [check["result"] for check in verdict["checks"]]
    failed, unsure = results.count("fails"), results.count("inconclusive")
    said = []
    if failed:
        said.append(f"{failed} of {len(results)} checks {'fails' if failed == 1 else 'fail'}")
    if unsure:
        of_all = "" if failed else f" of {len(results)} checks"
        said.append(f"{unsure}{of_all} {'is' if unsure == 1 else 'are'} inconclusive")
    return " and ".join(said)
