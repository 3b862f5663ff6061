"""What a run measured and what params.yaml assumes, as inputs of the return on investment."""

from __future__ import annotations

import json
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

CLIPS, PACKAGE = "clip/clips.json", "gate/package/package.json"
MEASUREMENT, LATENTS = "gate/measurement.json", "encode/latents.json"
DEMO_TEACHERS = ("a96b1e26feea5637725f8b6758a74506ac0d358cbd2ad09d4e84d913f01fac23",)
"""Weights below assets/teachers that were made to try the system, by the sha256 that `encode` tells
of them: any teacher lies below that folder, a customer's too."""
_PHONES = ("adb", "device-farm")
"""Kinds of devices in params.yaml that are phones."""

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
    """The return on investment of what a run left; a document is None where it is not there.

    Args:
        latents: they tell whether the teacher is the demo's, whose seconds are no customer's.

    Raises:
        UserError: a figure was not measured; it says which, and why.
        CorruptFile: a document is not whole, or package and measurement do not belong together.
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
        absent.append("what the PoC cost (the ledger holds no charge of this customer)")
    if absent:
        raise UserError(
            f"no return on investment yet, not measured: {'; '.join(absent)}; a run that reaches "
            "its gate measures it all (turbo-vaed poc NAME)"
        )
    assert clips is not None and package is not None and measurement is not None
    assert cost is not None
    if measurement.get("package_sha256") != package.get("sha256"):
        raise CorruptFile(
            f"{MEASUREMENT} is about another package than {PACKAGE}; run the stage `gate` again"
        )
    try:
        found = _measured(clips, package, measurement, is_demo=is_demo_teacher(latents))
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise CorruptFile(
            f"{MEASUREMENT}, {PACKAGE} or {CLIPS} is not whole ({type(error).__name__}: {error}); "
            "run its stage again"
        ) from None
    measured = {one.name for one in found}
    rest = [one for one in assumed(assumptions) if one.name not in measured]
    return calculate([*found, cost, *rest])


def read_roi(work: Path, *, cost: Input | None, assumptions: RoiParams) -> Roi:
    """The return on investment of what lies in work/CUSTOMER.

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
    """Whether what `encode` left is a demo teacher's; False where that is not known."""
    return latents is not None and latents.get("teacher_sha256") in DEMO_TEACHERS


def cost_of_poc(ledger: Ledger, customer: str) -> Input | None:
    """Everything that was ever charged to the customer; None where nothing was, which is not 0.

    Not the last run alone: it may have found most of its stages done, and paid for, before.
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
                source=f"params.yaml roi.{field.name}: {one.source}",
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
    doubt = str(measurement.get("unreliable_reason") or "")
    if doubt:
        doubt = f"; THE GATE DOES NOT TRUST THESE TIMES: {doubt}"
    if is_demo:
        doubt += "; THE TEACHER IS THE DEMO'S: of a customer these times say nothing"

    def per_minute(name: str, timed: _Timed) -> Input:
        samples = [_positive(seconds) for seconds in measurement[timed.key]]
        ends: Iterable[Callable[[Sequence[Decimal]], Decimal]] = (min, statistics.median, max)
        low, likely, high = (end(samples) * timed.threads * clips_per_minute for end in ends)
        return Input(
            name=name,
            low=low,
            likely=likely,
            high=high,
            source=f"{MEASUREMENT} {timed.key}: {timed.where}, {len(samples)} runs; {clip}{doubt}",
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
    """That a second is of; 1 where it is of a GPU or a phone as a whole."""
    where: str
    """They were taken, and what they are of."""


def _teacher(measurement: Document) -> _Timed:
    """On the GPU of the gate's host, where it had one."""
    if _is_on_gpu(measurement):
        where = f"GPU s of {measurement['teacher_gpu']}, which small frames may not fill"
        return _Timed(key="teacher_gpu_latency_seconds", threads=1, where=where)
    threads = int(measurement["threads"])
    machine = measurement.get("teacher_machine")
    if machine is None and measurement["device"] == "host":  # made before the key was
        machine = measurement["machine"]
    failed = measurement.get("teacher_gpu_failed")
    where = ", ".join([
        "CPU-thread s of this host's CPU",
        f"its GPU failed ({failed})" if failed else "no GPU",
        *([f"on {machine}"] if machine else []),
        _counted(threads),
    ])  # fmt: skip
    return _Timed(key="teacher_latency_seconds", threads=threads, where=where)


def _student(measurement: Document) -> _Timed:
    """On the device of the gate."""
    device, threads = measurement["device"], int(measurement["threads"])
    machine = f"on {measurement['machine']}, {_counted(threads)}"
    if _is_of_phone(measurement):
        # A phone's seconds are what its user waits, on however many threads.
        return _Timed(key="latency_seconds", threads=1, where=f"s of the phone {device}, {machine}")
    place = "this host, no phone" if device == "host" else f"the device {device}"
    return _Timed(
        key="latency_seconds", threads=threads, where=f"CPU-thread s of {place}, {machine}"
    )


def _in_place(measurement: Document) -> list[Input]:
    """The factors that are 1, because what they lead to was measured itself."""
    found = []
    if _is_on_gpu(measurement):
        said = f"teacher_gpu: the teacher was timed on the GPU itself, {measurement['teacher_gpu']}"
        found.append(("gpu_speedup", said))
    if _is_of_phone(measurement):
        kind, device = measurement["device_kind"], measurement["device"]
        said = f"device_kind {kind}: the package was measured on the phone itself, {device}"
        found.append(("phone_speedup", said))
    return [
        Input.exact(
            name,
            Decimal(1),
            f"{MEASUREMENT} {said}; the assumption of params.yaml roi.{name} is not used",
            is_measured=True,
        )
        for name, said in found
    ]


def _is_on_gpu(measurement: Document) -> bool:
    return bool(measurement.get("teacher_gpu_latency_seconds"))


def _is_of_phone(measurement: Document) -> bool:
    """False of a measurement that does not tell its device's kind, as old ones do not."""
    kind = measurement.get("device_kind")
    return kind in _PHONES or (kind == "apple" and "iPhone" in measurement["machine"])


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _shape(found: Sequence[int]) -> tuple[int, ...]:
    if len(found) != 5 or any(type(size) is not int or size < 1 for size in found):
        raise ValueError(f"shape {found!r}; expected five sizes from 1 on")
    return tuple(found)


def _positive(value: object) -> Decimal:
    found = Decimal(str(value))
    if not found.is_finite() or found <= 0:
        raise ValueError(f"found {value!r}, expected a finite number above 0")
    return found


def _document(path: Path) -> Document | None:
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is no JSON ({error}); run its stage again") from None
    if not isinstance(document, dict):
        raise CorruptFile(f"{path} holds no JSON object; run its stage again")
    return document
