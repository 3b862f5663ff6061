"""What a run measured and what params.yaml assumes, as inputs of the return on investment."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.costs import Ledger, format_usd, total_usd
from turbo_vaed.costs.roi import Roi, calculate
from turbo_vaed.costs.roi_inputs import Input
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.params import RoiParams

CLIPS, PACKAGE = "clip/clips.json", "gate/package/package.json"
MEASUREMENT = "gate/measurement.json"

Document = Mapping[str, Any]


def roi_of_run(
    *,
    clips: Document | None,
    package: Document | None,
    measurement: Document | None,
    cost: Input | None,
    assumptions: RoiParams,
) -> Roi:
    """The return on investment of what a run left; a document is None where it is not there.

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
        found = _measured(clips, package, measurement)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise CorruptFile(
            f"{MEASUREMENT}, {PACKAGE} or {CLIPS} is not whole ({type(error).__name__}: {error}); "
            "run its stage again"
        ) from None
    return calculate([*found, cost, *assumed(assumptions)])


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
    )


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


def _measured(clips: Document, package: Document, measurement: Document) -> list[Input]:
    """Per minute of video at the size that was measured, as clips that are decoded one by one."""
    _, _, frames, height, width = _shape(package["io"]["video_shape"])
    latent_values = math.prod(_shape(package["io"]["latent_shape"])[1:])
    fps = statistics.median(_positive(clip["fps"]) for clip in clips["clips"])
    clips_per_minute = 60 * fps / frames
    threads = int(measurement["threads"])
    clip = f"clips of {frames} frames at {fps.normalize():f} fps ({CLIPS}, {PACKAGE} io)"
    where = f"on {measurement['machine']}, {threads} thread{'s' if threads > 1 else ''}"

    def per_minute(name: str, key: str, who: str) -> Input:
        samples = [_positive(seconds) for seconds in measurement[key]]
        ends: Iterable[Callable[[Sequence[Decimal]], Decimal]] = (min, statistics.median, max)
        low, likely, high = (end(samples) * threads * clips_per_minute for end in ends)
        return Input(
            name=name,
            low=low,
            likely=likely,
            high=high,
            source=f"{MEASUREMENT} {key}: {who} {where}, {len(samples)} runs; {clip}",
        )

    device = measurement["device"]
    place = "this host, no phone" if device == "host" else f"the device {device}"
    return [
        per_minute(
            "teacher_seconds_per_minute", "teacher_latency_seconds", "this host's CPU, no GPU,"
        ),
        per_minute("student_seconds_per_minute", "latency_seconds", f"{place},"),
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
