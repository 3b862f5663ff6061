"""The wording of a run's report: every sentence and label that depends on the run.

Fixed text stands in the templates, the form of figures in `formatting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from turbo_vaed.config.stages import IDLE_STAGE, STAGES
from turbo_vaed.costs.money import format_usd
from turbo_vaed.devices.timing import interval_of_median
from turbo_vaed.gate.choice import reason_to_repeat, repeat_advice
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.formatting import (
    amount,
    count,
    counted,
    latency,
    measured_and_limit,
    milliseconds,
    months,
    percent,
    seconds,
)
from turbo_vaed.report.tornado import range_with_unit
from turbo_vaed.roi.inputs import INPUTS
from turbo_vaed.roi.measured import is_demo_teacher
from turbo_vaed.roi.roi import Roi

CHECK_LABELS = {
    "psnr_retention": "PSNR retention",
    "psnr": "Mean PSNR",
    "ssim": "Mean SSIM",
    "ms_ssim": "Mean MS-SSIM",
    "worst_psnr": "PSNR of the worst clips",
    "flicker_ratio": "Flicker relative to the teacher",
    "detail_retention": "Detail retention",
    "parity_psnr": "Parity with PyTorch",
    "fps": "Frames per second",
    "cold_start_seconds": "Cold start",
    "peak_memory_mb": "Peak memory",
    "package_mb": "Package size",
    "latency_ratio": "Latency relative to the teacher",
}
TONES = {"fails": "bad", "inconclusive": "warn", "passes": "good"}
"""Result of a check or verdict -> the CSS class of its colour, in the order of the table."""
SIGNS = {"fails": "✗", "inconclusive": "?", "passes": "✓"}
END_NAMES = {
    "finished": "all steps done",
    "good enough": "stopped: good enough",
    "budget": "stopped: budget",
}
"""How training ended, in a legend."""
_ENDS = {
    "good enough": "Stopped because the quality is good enough",
    "budget": "Stopped by the budget",
}


def check_label(name: str) -> str:
    """A check's name for people."""
    return CHECK_LABELS.get(name, name.replace("_", " ").capitalize())


def stage_label(name: str) -> str:
    """A stage's name for people: the ledger's other name for idle nodes is `idle`."""
    return "idle" if name == IDLE_STAGE else name


def requirement(check: Mapping[str, Any]) -> str:
    """`required ≥ 95 %`."""
    _, limit = measured_and_limit(check["measured"], check["limit"], check["unit"])
    return f"required {bound(check)} {limit}"


def bound(check: Mapping[str, Any]) -> str:
    """The sign between a measured value and its limit."""
    return "≥" if check["direction"] == "min" else "≤"


def badge(context: ReportContext) -> tuple[str, str]:
    """The verdict in a few words, and its tone."""
    if context.failure is not None:
        failure = context.failure
        tone = "warn" if failure.by_budget or failure.by_person else "bad"
        if not failure.is_begun:
            return not_begun(context), tone
        if failure.by_budget:
            return f"Stopped by budget at {failure.stage}", tone
        return f"{'Stopped' if failure.by_person else 'Failed'} at {failure.stage}", tone
    if context.verdict is None:
        return "No verdict", "warn"
    if context.verdict["result"] == "passes" and context.verdict["needs_approval"]:
        return "Passes, needs approval", "warn"
    names = {"passes": "Passes the gate", "fails": "Fails the gate", "inconclusive": "Inconclusive"}
    return names[context.verdict["result"]], TONES[context.verdict["result"]]


def not_begun(context: ReportContext) -> str:
    """`Not started`, or `Not continued` where an earlier attempt ran stages; empty of a run that
    began."""
    if context.failure is None or context.failure.is_begun:
        return ""
    before = any(row.node_seconds and row.stage in STAGES for row in context.costs.stages)
    return "Not continued" if before else "Not started"


def headline(context: ReportContext) -> str:
    """The run in a sentence or two: verdict, retention, dollars against the budget."""
    if what := not_begun(context):
        return _refused(context, what)
    costs, failure = context.costs, context.failure
    spent, budget = format_usd(costs.usd), format_usd(costs.budget_usd)
    if failure is not None and failure.by_budget:
        return f"The budget stopped the run at {failure.stage}: {spent} of {budget} was spent."
    if failure is not None:
        reached = _retained(context, "retained")
        before = f" By then {reached}." if reached else ""
        ended = "was stopped" if failure.by_person else "failed"
        return (
            f"The run {ended} at {failure.stage} after spending {spent} of its {budget} budget."
            + before
        )
    retained = _retained(context, "retains")
    if context.verdict is None or retained is None:
        return f"The run has no verdict yet. It spent {spent} of its {budget} budget."
    money = f"for {spent} of the {budget} budget"
    whole = context.customer_usd
    if whole is not None and whole > costs.usd:
        money += f" ({format_usd(whole)} including earlier runs)"
    return f"{_readiness(context, context.verdict)}: {retained}, {money}."


def _readiness(context: ReportContext, verdict: Mapping[str, Any]) -> str:
    if verdict["result"] != "passes":
        return f"Not ready to ship, {_failed_checks(verdict)}"
    if is_demo_teacher(context.latents):
        return "Passes the gate, but with the demo's teacher, which is not for production"
    return "Ready for approval" if verdict["needs_approval"] else "Ready to ship"


def _failed_checks(verdict: Mapping[str, Any]) -> str:
    results = [check["result"] for check in verdict["checks"]]
    counts = {"failed": results.count("fails"), "inconclusive": results.count("inconclusive")}
    failed = f"{counts['failed']} of {len(results)} checks failed"
    if not counts["inconclusive"]:
        return failed
    are = "is" if counts["inconclusive"] == 1 else "are"
    if counts["failed"]:
        return f"{failed} and {counts['inconclusive']} {are} inconclusive"
    return f"{counts['inconclusive']} of {len(results)} checks {are} inconclusive"


def repeat(context: ReportContext) -> str:
    """Whether measuring again may settle an inconclusive verdict, and what to do; else empty."""
    verdict, choice = context.verdict, context.choice
    if context.failure is not None or verdict is None or choice is None:
        return ""
    not_passed = [check["name"] for check in verdict["checks"] if check["result"] != "passes"]
    reason = reason_to_repeat(verdict["result"], not_passed, choice)
    return repeat_advice(reason) if reason else ""


def _refused(context: ReportContext, what: str) -> str:
    assert context.failure is not None
    usd = context.costs.usd
    money = f"{format_usd(usd)} was spent before" if usd else "nothing was spent"
    reason = (
        "the spending limits do not allow it" if context.failure.by_budget
        else "an error occurred before its first stage"
    )  # fmt: skip
    return f"The run was {what.lower()} because {reason}; {money}."


def _retained(context: ReportContext, verb: str) -> str | None:
    found, parameters = context.retention, context.parameter_share
    if found is None or parameters is None:
        return None
    precision = str((context.verdict or {}).get("target") or "").partition("/")[2]
    packaged = f"the packaged student{precision and f' ({precision})'}"
    student = packaged if found.is_packaged else "the student before packaging"
    return (
        f"{student} {verb} {percent(found.share)} of the teacher's PSNR with "
        f"{percent(parameters, 0)} of its decoder parameters"
    )


def retention_caption(context: ReportContext) -> str:
    """Below the share of the teacher's PSNR."""
    found = context.retention
    assert found is not None, "there is no caption without a figure"
    student = "package" if found.is_packaged else "student"
    caption = f"of the teacher's PSNR, by the {student}"
    if found.psnr_db is not None and found.teacher_psnr_db is not None:
        caption = f"{student} {found.psnr_db:.2f} dB, teacher {found.teacher_psnr_db:.2f} dB"
    return caption if found.is_packaged else f"{caption}; no package was measured"


def cost_caption(context: ReportContext, node_seconds: float) -> str:
    """Below the dollars of the run; one that was refused has no budget to spend."""
    if not_begun(context):
        return "by an earlier attempt" if context.costs.usd else "no stage was run"
    return f"of {format_usd(context.costs.budget_usd)}, in {seconds(node_seconds)}"


def timed_run(measurement: Mapping[str, Any] | None) -> str:
    """What a package's latency is of."""
    on_device = (measurement or {}).get("on_device")
    return f"one run at {on_device['shape']}" if on_device else "one clip"


def device_facts(context: ReportContext) -> list[tuple[str, str]]:
    """What measured the package, how fast it was, and what disturbed it: (name, value) pairs."""
    found = context.measurement
    if found is None:
        return []
    facts = [("Device", f"{found['device']}: {found['machine']}")]
    if "latency_seconds" not in found:
        return [*facts, ("Outcome", found["reason"])]
    facts += [
        ("Runtime", f"{found['runtime']}, {counted(found['threads'], 'thread')}"),
        ("Package, one clip", f"{_timing(found)} after {found['warmup']} warm-up runs"),
    ]
    if teacher := found.get("teacher_latency_seconds"):
        own = {"latency_seconds": teacher, "confidence": found.get("confidence")}
        facts.append(("Teacher, one clip", _timing(own)))
    used = found.get("on_device") or found
    if used is not found and "latency_seconds" not in used:
        return [*facts, (f"At {used['shape']}", used["reason"])]
    if used is not found:
        facts.append((f"At {used['shape']}, as apps use it", _timing(used)))
    facts.append(("Cold start", milliseconds(used["cold_start_seconds"])))
    if shares := _background_shares(found, used):
        facts.append(("Background CPU share", shares))
    if found.get("hottest_celsius") is not None:
        throttled = ", throttled" if found.get("throttled") else ""
        heat = f"{found['coolest_celsius']:.0f} to {found['hottest_celsius']:.0f} °C{throttled}"
        facts.append(("Temperature", heat))
    if found.get("energy_joules") is not None:
        facts.append(("Energy, one clip", f"{found['energy_joules']:.3g} J"))
    return facts


def measurement_conditions(context: ReportContext) -> str:
    """The machine and frame size of all times and memory; empty where there are none."""
    found, clips = context.measurement, context.clips
    if found is None or "latency_seconds" not in found:
        return ""
    shape = (found.get("on_device") or found).get("shape")
    if shape is None and clips is not None:
        shape = "x".join(str(clips[name]) for name in ("frames", "size", "size"))
    of_shape = f", for clips of {shape} (frames, height, width)" if shape else ""
    return (
        f"Times and memory were measured on {found['machine']} with "
        f"{counted(found['threads'], 'thread')}{of_shape}; larger frames take longer."
    )


def _timing(found: Mapping[str, Any]) -> str:
    """The median and its interval, as the gate and the table of packages have them."""
    samples, confidence = found["latency_seconds"], float(found.get("confidence") or 0.95)
    if "median_latency_seconds" in found:  # of several processes: no median of all their runs
        median, interval = found["median_latency_seconds"], found["latency_interval_seconds"]
    else:
        own = interval_of_median(samples, confidence)
        median, interval = own.median, (own.low, own.high)
    middle, between = latency(median, *interval)
    processes = len(found.get("seconds_by_process") or ())
    runs = counted(len(samples), "run") + (f" in {processes} processes" if processes > 1 else "")
    return f"median {middle} ({percent(confidence, 0)} interval {between}), {runs}"


def _background_shares(found: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    shares = [("the package was timed", found.get("background_cpu_share"))]
    if used is not found:
        shares.append((f"it was timed at {used['shape']}", used.get("background_cpu_share")))
    shares.append(("the teacher was timed", found.get("teacher_background_cpu_share")))
    return ", ".join(
        f"{percent(share)} while {what}" for what, share in shares if share is not None
    )


def training_end(history: Mapping[str, Any]) -> str:
    """Why training ended where it did."""
    planned = count(history["steps_planned"])
    if history["stopped"] == "finished":
        return f"All {planned} planned steps were done."
    how = _ENDS.get(history["stopped"], f"Stopped ({history['stopped']})")
    reason = (history.get("reason") or "no reason was recorded").rstrip(".")
    return f"{how}, after {count(history['steps_done'])} of {planned} planned steps: {reason}."


def interruptions(restarts: Sequence[Mapping[str, Any]]) -> str:
    """What restarts cost."""
    usd = sum((Decimal(restart["usd"]) for restart in restarts), Decimal(0))
    return (
        f"{counted(sum(restart['lost_steps'] for restart in restarts), 'step')} recomputed, "
        f"{seconds(sum(restart['seconds'] for restart in restarts))} and {format_usd(usd)} wasted"
    )


def return_on_investment(roi: Roi) -> str:
    """What it saves per month, when it pays back, and which input matters most."""
    likely, saving = roi.likely, roi.result("monthly_saving_usd")

    def usd(value: Decimal | None) -> str:
        return amount(value, "USD")

    horizon = f"{amount(likely.horizon_months)} months"
    spread = f"{usd(saving.low)} to {usd(saving.high)}"
    if likely.payback_months is None:
        start = (
            f"Costs {usd(-likely.monthly_saving_usd)} a month more than today and never pays back: "
            f"each minute saves {usd(likely.gpu_usd_per_minute)} of GPU time and adds "
            f"{usd(likely.egress_usd_per_minute)} of egress (monthly saving {spread})."
        )
    elif likely.value_usd < 0:
        start = (
            f"Saves {usd(likely.monthly_saving_usd)} a month ({spread}) but pays back only in "
            f"{months(likely.payback_months)}, after the horizon of {horizon}."
        )
    else:
        start = (
            f"Saves {usd(likely.monthly_saving_usd)} a month ({spread}), pays back in "
            f"{months(likely.payback_months)} and is worth {usd(likely.value_usd)} after {horizon}."
        )
    most = roi.sensitivities[0]
    hinge = "No input has a range that changes this."
    if most.swing_usd:
        label = INPUTS[most.name].label
        hinge = f"It depends most on “{label}” ({range_with_unit(roi, most.name)})."
    return " ".join([start, hinge, *_too_slow(roi)])


def _too_slow(roi: Roi) -> list[str]:
    """Where a phone cannot show the video while it decodes it."""
    speed = roi.likely.phone_realtime
    if speed >= 1:
        return []
    is_measured = roi.input("phone_speedup").kind == "measured"
    phone = "the measured phone" if is_measured else "a phone as assumed"
    return [
        f"But {phone} decodes at {amount(speed)} times real time: video has to be decoded before "
        "it is played, or the frame or the student has to be smaller."
    ]
