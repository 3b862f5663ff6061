"""The inputs of a return on investment from what a run measured and the configuration assumes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.config.schema import RoiParams
from turbo_vaed.costs import Ledger, format_usd, total_usd
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.roi.inputs import Input
from turbo_vaed.roi.roi import Roi, calculate
from turbo_vaed.runtime.files import read_json

CLIPS, PACKAGE = "clip/clips.json", "gate/package/package.json"
MEASUREMENT, LATENTS = "gate/measurement.json", "encode/latents.json"
DEMO_TEACHERS = ("a96b1e26feea5637725f8b6758a74506ac0d358cbd2ad09d4e84d913f01fac23",)
"""SHA-256 of the weights below assets/teachers that were made to try the system. The folder alone
does not identify them: a customer's teacher lies below it, too."""
_PHONES = ("adb", "device-farm")
"""Kinds of devices that are phones."""

Document = Mapping[str, Any]


def roi_of_run(
    *,
    clips: Document | None,
    package: Document | None,
    measurement: Document | None,
    cost: Input | None,
    assumptions: RoiParams,
    latents: Document | None = None,
) -> Roi:
    """The return on investment from a run's documents; None is one that was not made.

    Args:
        latents: latents.json, which has the digest of the teacher's weights: a demo teacher's times
            are marked as such.

    Raises:
        UserError: a figure was not measured; the message names it and the reason.
        CorruptFile: a document is damaged, or package and measurement do not belong together.
    """
    absent = [
        f"{what} ({where} was not made)"
        for document, what, where in (
            (clips, "the videos' frame rate", CLIPS),
            (package, "the package", PACKAGE),
            (measurement, "the seconds of teacher and student", MEASUREMENT),
        )
        if document is None
    ]
    if measurement is not None and not measurement.get("teacher_latency_seconds"):
        absent.append(f"the seconds of the teacher (no teacher_latency_seconds in {MEASUREMENT})")
    if cost is None:
        absent.append("the cost of the PoC (the ledger has no charge of this customer)")
    if absent:
        raise UserError(
            f"no return on investment yet, not measured: {'; '.join(absent)}; a run that reaches "
            "its gate measures it all (turbo-vaed poc NAME)"
        )
    assert clips is not None and package is not None and measurement is not None
    assert cost is not None
    if measurement.get("package_sha256") != package.get("sha256"):
        raise CorruptFile(
            f"{MEASUREMENT} and {PACKAGE} belong to different packages; run the stage `gate` again"
        )
    try:
        found = _measured(clips, package, measurement, is_demo=is_demo_teacher(latents))
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise CorruptFile(
            f"{MEASUREMENT}, {PACKAGE} or {CLIPS} is damaged ({type(error).__name__}: {error}); "
            "run its stage again"
        ) from None
    measured = {one.name for one in found}
    rest = [one for one in assumed(assumptions) if one.name not in measured]
    return calculate([*found, cost, *rest])


def read_roi(work: Path, *, cost: Input | None, assumptions: RoiParams) -> Roi:
    """The return on investment of the documents in work/CUSTOMER.

    Raises:
        UserError, CorruptFile: as `roi_of_run`.
    """
    return roi_of_run(
        clips=_document(work / CLIPS),
        package=_document(work / PACKAGE),
        measurement=_document(work / MEASUREMENT),
        cost=cost,
        assumptions=assumptions,
        latents=_document(work / LATENTS),
    )


def is_demo_teacher(latents: Document | None) -> bool:
    """Whether latents.json names a demo teacher's weights; False where there is none."""
    return latents is not None and latents.get("teacher_sha256") in DEMO_TEACHERS


def cost_of_poc(ledger: Ledger, customer: str) -> Input | None:
    """Everything that was ever charged to the customer; None, which is not 0, without a charge.

    Not the last run alone: earlier runs may have paid for most of its stages.
    """
    charges = ledger.grouped(customer=customer)
    if not charges:
        return None
    runs = len({charge.run for charge in charges})
    wasted = total_usd(charge.amount_usd for charge in charges if charge.useful == "wasted")
    return Input.exact(
        "poc_usd",
        total_usd(charge.amount_usd for charge in charges),
        f"ledger: all charges of the customer, {runs} run{'s' if runs > 1 else ''}, "
        f"{format_usd(wasted)} of it wasted",
    )


def assumed(assumptions: RoiParams) -> list[Input]:
    """The section `roi` of a customer's params, each with its key and its source."""
    found = []
    for field in fields(assumptions):
        one = getattr(assumptions, field.name)
        found.append(
            Input(
                name=field.name,
                low=one.low,
                likely=one.likely,
                high=one.high,
                source=f"roi.{field.name}: {one.source}",
            )
        )
    return found


def _measured(
    clips: Document, package: Document, measurement: Document, *, is_demo: bool
) -> list[Input]:
    """Per minute of video at the size that was measured, as clips that are decoded one by one."""
    _, _, frames, height, width = _shape(package["io"]["video_shape"])
    latent_values = math.prod(_shape(package["io"]["latent_shape"])[1:])
    fps = statistics.median(_positive(clip["fps"]) for clip in clips["clips"])
    clips_per_minute = 60 * fps / frames
    clip = f"clips of {frames} frames at {fps.normalize():f} fps ({CLIPS}, {PACKAGE} io)"
    # `distrust` in measurements of earlier versions.
    reason = str(measurement.get("unreliable_reason") or measurement.get("distrust") or "")
    warning = f"; UNRELIABLE TIMES: {reason}" if reason else ""
    if is_demo:
        warning += "; DEMO TEACHER: a customer's times will differ"

    def per_minute(name: str, timed: _Timed) -> Input:
        samples = [_positive(seconds) for seconds in measurement[timed.key]]
        ends: Iterable[Callable[[Sequence[Decimal]], Decimal]] = (min, statistics.median, max)
        low, likely, high = (end(samples) * timed.threads * clips_per_minute for end in ends)
        return Input(
            name=name,
            low=low,
            likely=likely,
            high=high,
            source=f"{MEASUREMENT} {timed.key}: {timed.where}, {len(samples)} runs; "
            f"{clip}{warning}",
        )

    return [
        per_minute("teacher_seconds_per_minute", _teacher(measurement)),
        per_minute("student_seconds_per_minute", _student(measurement)),
        *_in_place(measurement),
        Input.exact(
            "clip_megapixels",
            Decimal(height * width) / 10**6,
            f"{PACKAGE} io.video_shape: {width} x {height}",
        ),
        Input.exact(
            "latent_values_per_minute",
            latent_values * clips_per_minute,
            f"{PACKAGE} io.latent_shape: {latent_values:,} a clip; {clip}",
        ),
        Input.exact("package_bytes", Decimal(int(package["size_bytes"])), f"{PACKAGE} size_bytes"),
    ]


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """Seconds of a decoder per clip."""

    key: str
    """Of measurement.json."""
    threads: int
    """CPU threads that were busy; 1 for a GPU or a phone as a whole."""
    where: str
    """The machine, and the unit of a second there."""


def _teacher(measurement: Document) -> _Timed:
    """On the GPU of the gate's host, where it has one."""
    if _is_on_gpu(measurement):
        where = f"GPU seconds on {measurement['teacher_gpu']}, which small frames may not fill"
        return _Timed(key="teacher_gpu_latency_seconds", threads=1, where=where)
    threads = int(measurement["threads"])
    machine = measurement.get("teacher_machine")
    if machine is None and measurement["device"] == "host":  # made before the key was
        machine = measurement["machine"]
    failed = measurement.get("teacher_gpu_failed")
    where = ", ".join([
        "CPU-thread seconds on the host",
        f"whose GPU failed ({failed})" if failed else "which has no GPU",
        *([str(machine)] if machine else []),
        _counted(threads),
    ])  # fmt: skip
    return _Timed(key="teacher_latency_seconds", threads=threads, where=where)


def _student(measurement: Document) -> _Timed:
    """On the device of the gate."""
    device, threads = measurement["device"], int(measurement["threads"])
    machine = f"{measurement['machine']}, {_counted(threads)}"
    if _is_of_phone(measurement):
        # A user waits for the phone, however many threads it uses.
        return _Timed(
            key="latency_seconds", threads=1, where=f"seconds on the phone {device}, {machine}"
        )
    place = "the host, which is no phone" if device == "host" else f"the device {device}"
    return _Timed(
        key="latency_seconds", threads=threads, where=f"CPU-thread seconds on {place}, {machine}"
    )


def _in_place(measurement: Document) -> list[Input]:
    """Factors of 1 where the GPU or the phone itself was measured."""
    found = []
    if _is_on_gpu(measurement):
        gpu = measurement["teacher_gpu"]
        found.append(("gpu_speedup", f"teacher_gpu: the teacher was timed on a GPU, {gpu}"))
    if _is_of_phone(measurement):
        kind, device = measurement["device_kind"], measurement["device"]
        source = f"device_kind {kind}: the package was measured on a phone, {device}"
        found.append(("phone_speedup", source))
    return [
        Input.exact(
            name,
            Decimal(1),
            f"{MEASUREMENT} {source}; roi.{name} is not used",
            is_measured=True,
        )
        for name, source in found
    ]


def _is_on_gpu(measurement: Document) -> bool:
    return bool(measurement.get("teacher_gpu_latency_seconds"))


def _is_of_phone(measurement: Document) -> bool:
    """False without the device's kind, which old measurements lack."""
    kind = measurement.get("device_kind")
    return kind in _PHONES or (kind == "apple" and "iPhone" in measurement["machine"])


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _shape(found: Sequence[int]) -> tuple[int, ...]:
    if len(found) != 5 or any(type(size) is not int or size < 1 for size in found):
        raise ValueError(f"shape {found!r}; expected five sizes of 1 or more")
    return tuple(found)


def _positive(value: object) -> Decimal:
    found = Decimal(str(value))
    if not found.is_finite() or found <= 0:
        raise ValueError(f"found {value!r}, expected a finite number above 0")
    return found


def _document(path: Path) -> Document | None:
    return read_json(path, remedy="run its stage again") if path.is_file() else None
