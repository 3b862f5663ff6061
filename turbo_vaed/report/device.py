"""The box of the device: what measured the package, how fast it was, and what disturbed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_vaed.devices.timing import interval_of_median
from turbo_vaed.report import words
from turbo_vaed.report.context import ReportContext


def facts(context: ReportContext) -> list[tuple[str, str]]:
    """What measured the package, and how fast it was: (name, value) pairs."""
    found = context.measurement
    if found is None:
        return []
    if "latency_seconds" not in found:
        return [("Device", f"{found['device']}: {found['machine']}"), ("Outcome", found["reason"])]
    facts = [
        ("Device", f"{found['device']}: {found['machine']}"),
        ("Runtime", f"{found['runtime']}, {words.counted(found['threads'], 'thread')}"),
        ("Package, one clip", _timed(found) + f", after {found['warmup']} warm-up runs"),
    ]
    if teacher := found.get("teacher_latency_seconds"):
        own = {"latency_seconds": teacher, "confidence": _confidence(found)}
        facts.append(("Teacher, one clip", _timed(own)))
    used = found.get("on_device") or found
    if used is not found and "latency_seconds" not in used:
        return [*facts, (f"At {used['shape']}", used["reason"])]
    if used is not found:
        facts.append((f"At {used['shape']}, as apps use it", _timed(used)))
    facts.append(("Cold start", words.milliseconds(used["cold_start_seconds"])))
    if others := _others(found, used):
        facts.append(("Other processes took", others))
    if found.get("hottest_celsius") is not None:
        slowed = ", slowed itself down" if found.get("throttled") else ""
        heat = f"{found['coolest_celsius']:.0f} to {found['hottest_celsius']:.0f} °C{slowed}"
        facts.append(("Heat", heat))
    if found.get("energy_joules") is not None:
        facts.append(("Energy, one clip", f"{found['energy_joules']:.3g} J"))
    return facts


def measured_at(context: ReportContext) -> str:
    """On what, and in pictures of which size, times and memory were measured, as a sentence; ""
    where they were not."""
    found, clips = context.measurement, context.clips
    if found is None or "latency_seconds" not in found:
        return ""
    used = found.get("on_device") or found
    shape = used.get("shape")
    if shape is None and clips is not None:
        shape = "x".join(str(clips[name]) for name in ("frames", "size", "size"))
    return (
        f"Times and memory are those of {found['machine']} with "
        f"{words.counted(found['threads'], 'thread')}, in pictures of {shape or 'one size'} "
        "(frames, height, width); larger ones take longer."
    )


def _timed(found: Mapping[str, Any]) -> str:
    """The median as the gate and the table of packages have it, and where it lies."""
    samples, confidence = found["latency_seconds"], _confidence(found)
    if "median_latency_seconds" in found:  # of several processes: no median of all their runs
        median, interval = found["median_latency_seconds"], found["latency_interval_seconds"]
    else:
        own = interval_of_median(samples, confidence)
        median, interval = own.median, (own.low, own.high)
    middle, between = words.latency(median, *interval)
    runs = words.counted(len(samples), "run")
    processes = len(found.get("seconds_by_process") or ())
    if processes > 1:
        runs += f" in {processes} processes"
    return f"median {middle} ({between} at {words.percent(confidence, 0)}), {runs}"


def _confidence(found: Mapping[str, Any]) -> float:
    """Of the interval; old measurements, whose intervals are computed here, name none."""
    return float(found.get("confidence") or 0.95)


def _others(found: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """What other processes took of the machine, and while what ran; "" where it is not known."""
    shares = [("the package was timed", found.get("background_cpu_share"))]
    if used is not found:
        shares.append((f"it was timed at {used['shape']}", used.get("background_cpu_share")))
    shares.append(("the teacher was timed", found.get("teacher_background_cpu_share")))
    return ", ".join(
        f"{words.percent(share)} while {what}" for what, share in shares if share is not None
    )
