"""The return on investment: what decoding on phones saves, against what the PoC and it cost.

Every input is a range (low, likely, high), measured or assumed, with its source (`inputs`).
`Case` holds every formula, `calculate` evaluates it over the ranges. Nothing is discounted, taxed
or inflated. Money is Decimal, USD; MB and GB are 1e6 and 1e9 bytes.

Today the cloud decodes every minute and sends video. With the student a share of the minutes is
sent as latents and decoded on phones; the rest stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext

from turbo_vaed.errors import UserError
from turbo_vaed.roi.inputs import INPUTS, Input

_CONTEXT = Context(prec=50, traps=[InvalidOperation, DivisionByZero, Overflow])
_SECONDS_PER_HOUR, _SECONDS_PER_MINUTE, _MONTHS_PER_YEAR = Decimal(3600), Decimal(60), Decimal(12)
_MEGA, _GIGA, _MEGA_PER_GIGA = Decimal("1e6"), Decimal("1e9"), Decimal(1000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One value for every input, and all that follows; `calculate` makes them."""

    teacher_seconds_per_minute: Decimal
    """Seconds that the teacher takes for a minute of video at `clip_megapixels`: of one CPU thread,
    or of a GPU, where `gpu_speedup` is 1."""
    student_seconds_per_minute: Decimal
    """The same of the student, in the phone's runtime: of one CPU thread, or of a phone, where
    `phone_speedup` is 1."""
    clip_megapixels: Decimal
    latent_values_per_minute: Decimal
    """Numbers in the latents of a minute of video at `clip_megapixels`."""
    package_bytes: Decimal
    poc_usd: Decimal
    minutes_per_month: Decimal
    device_share: Decimal
    frame_megapixels: Decimal
    gpu_speedup: Decimal
    phone_speedup: Decimal
    gpu_usd_per_hour: Decimal
    egress_usd_per_gb: Decimal
    video_mb_per_minute: Decimal
    latent_bytes_per_value: Decimal
    devices: Decimal
    downloads_per_device_year: Decimal
    integration_usd: Decimal
    horizon_months: Decimal

    @property
    def scale(self) -> Decimal:
        """frame_megapixels / clip_megapixels: a convolution's work, and latents, grow with the
        pixels of a frame."""
        return self.frame_megapixels / self.clip_megapixels

    @property
    def gpu_seconds_per_minute(self) -> Decimal:
        """GPU s per video minute = teacher_seconds_per_minute x scale / gpu_speedup."""
        return self.teacher_seconds_per_minute * self.scale / self.gpu_speedup

    @property
    def gpu_usd_per_minute(self) -> Decimal:
        """USD per video minute = gpu_seconds_per_minute x gpu_usd_per_hour / 3600."""
        return self.gpu_seconds_per_minute * self.gpu_usd_per_hour / _SECONDS_PER_HOUR

    @property
    def latent_mb_per_minute(self) -> Decimal:
        """MB per video minute = latent_values_per_minute x scale x latent_bytes_per_value / 1e6."""
        return self.latent_values_per_minute * self.scale * self.latent_bytes_per_value / _MEGA

    @property
    def egress_usd_per_minute(self) -> Decimal:
        """USD more per video minute, below 0 where latents are smaller than the video.

        (latent_mb_per_minute - video_mb_per_minute) / 1000 x egress_usd_per_gb.
        """
        more_mb = self.latent_mb_per_minute - self.video_mb_per_minute
        return more_mb / _MEGA_PER_GIGA * self.egress_usd_per_gb

    @property
    def saving_usd_per_minute(self) -> Decimal:
        """USD per minute decoded on a phone = gpu_usd_per_minute - egress_usd_per_minute."""
        return self.gpu_usd_per_minute - self.egress_usd_per_minute

    @property
    def downloads_usd_per_month(self) -> Decimal:
        """USD per month = devices x downloads_per_device_year / 12 x package_bytes / 1e9 x
        egress_usd_per_gb."""
        per_month = self.devices * self.downloads_per_device_year / _MONTHS_PER_YEAR
        return per_month * self.package_bytes / _GIGA * self.egress_usd_per_gb

    @property
    def monthly_saving_usd(self) -> Decimal:
        """USD per month = minutes_per_month x device_share x saving_usd_per_minute -
        downloads_usd_per_month. Below 0 where phones cost more than they save."""
        minutes = self.minutes_per_month * self.device_share
        return minutes * self.saving_usd_per_minute - self.downloads_usd_per_month

    @property
    def once_usd(self) -> Decimal:
        """USD once = poc_usd + integration_usd."""
        return self.poc_usd + self.integration_usd

    @property
    def payback_months(self) -> Decimal | None:
        """Months = once_usd / monthly_saving_usd; None, never, where nothing is saved."""
        saving = self.monthly_saving_usd
        return self.once_usd / saving if saving > 0 else None

    @property
    def break_even_minutes_per_month(self) -> Decimal | None:
        """Minutes per month at which value_usd is 0; None, never, where no minute saves anything.

        (once_usd / horizon_months + downloads_usd_per_month) / (device_share x
        saving_usd_per_minute).
        """
        per_minute = self.device_share * self.saving_usd_per_minute
        if per_minute <= 0:
            return None
        return (self.once_usd / self.horizon_months + self.downloads_usd_per_month) / per_minute

    @property
    def value_usd(self) -> Decimal:
        """USD over the horizon = horizon_months x monthly_saving_usd - once_usd."""
        return self.horizon_months * self.monthly_saving_usd - self.once_usd

    @property
    def phone_realtime(self) -> Decimal:
        """Video seconds that a phone decodes per second = 60 x phone_speedup /
        (student_seconds_per_minute x scale).

        No part of the money: below 1 a phone cannot show the video while it decodes it.
        """
        return (
            _SECONDS_PER_MINUTE * self.phone_speedup / self.student_seconds_per_minute / self.scale
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """One computed figure, from its smallest value to its largest; None is never, the largest."""

    name: str
    """A property of Case."""
    label: str
    unit: str
    low: Decimal | None
    likely: Decimal | None
    high: Decimal | None
    formula: str


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The value over the horizon at both ends of one input, all others likely."""

    name: str
    at_low_usd: Decimal
    at_high_usd: Decimal

    @property
    def swing_usd(self) -> Decimal:
        """From one end to the other, 0 or more."""
        return abs(self.at_high_usd - self.at_low_usd)


@dataclass(frozen=True, kw_only=True)
class Roi:
    """The whole calculation."""

    inputs: tuple[Input, ...]
    """In the order of INPUTS."""
    results: tuple[Result, ...]
    sensitivities: tuple[Sensitivity, ...]
    """Of every input, the largest swing first."""
    likely: Case

    def input(self, name: str) -> Input:
        """The input called `name`."""
        return next(one for one in self.inputs if one.name == name)

    def result(self, name: str) -> Result:
        """The result called `name`."""
        return next(one for one in self.results if one.name == name)


_RESULTS: Mapping[str, tuple[str, str, str]] = {
    "gpu_usd_per_minute": (
        "GPU time saved", "USD per minute",
        "teacher s x frame / measured frame / GPU speedup x USD per hour / 3600",
    ),
    "egress_usd_per_minute": (
        "Egress added", "USD per minute",
        "(latents x frame / measured frame x bytes / 1e6 - video MB) / 1000 x USD per GB",
    ),
    "downloads_usd_per_month": (
        "Cost of downloads", "USD per month",
        "devices x downloads / 12 x package bytes / 1e9 x USD per GB",
    ),
    "monthly_saving_usd": (
        "Monthly saving", "USD per month",
        "minutes x share x (GPU saved - egress added) - downloads",
    ),
    "payback_months": ("Payback", "months", "(PoC + integration) / monthly saving"),
    "break_even_minutes_per_month": (
        "Break-even volume", "minutes per month",
        "((PoC + integration) / horizon + downloads) / (share x (GPU saved - egress added))",
    ),
    "value_usd": (
        "Value over the horizon", "USD", "horizon x monthly saving - (PoC + integration)",
    ),
    "phone_realtime": (
        "Speed on a phone", "times real time",
        "60 x phone speedup / (student s x frame / measured frame)",
    ),
}  # fmt: skip
"""Property of Case -> label, unit, formula; the order of the table."""


def calculate(inputs: Iterable[Input]) -> Roi:
    """Every result with its smallest and largest value within the ranges, and the sensitivities.

    The ends of a result are its exact ends over all combinations of inputs within their ranges:
    everything at its worst at once, and at its best. (Every result is monotone in each input while
    the others stand, so its ends lie at ends of ranges.)

    Raises:
        UserError: an input is missing (what was not measured is not 0) or given twice.
    """
    found = _complete(inputs)
    with localcontext(_CONTEXT):
        likely = Case(**{name: one.likely for name, one in found.items()})
        cases = [likely, *_corners(found)]
        results = tuple(
            Result(
                name=name,
                label=label,
                unit=unit,
                low=min((getattr(case, name) for case in cases), key=_never_last),
                likely=getattr(likely, name),
                high=max((getattr(case, name) for case in cases), key=_never_last),
                formula=formula,
            )
            for name, (label, unit, formula) in _RESULTS.items()
        )
        return Roi(
            inputs=tuple(found.values()),
            results=results,
            sensitivities=_sensitivities(likely, found),
            likely=likely,
        )


def _complete(inputs: Iterable[Input]) -> dict[str, Input]:
    """By name, in the order of INPUTS."""
    given: dict[str, Input] = {}
    for one in inputs:
        if one.name in given:
            raise UserError(f"ROI: {one.name} is given twice")
        given[one.name] = one
    missing = [name for name in INPUTS if name not in given]
    unmeasured = [name for name in missing if INPUTS[name].kind == "measured"]
    unassumed = [name for name in missing if INPUTS[name].kind == "assumed"]
    reasons = [f"not measured: {', '.join(unmeasured)}"] if unmeasured else []
    reasons += [f"not assumed: {', '.join(unassumed)}"] if unassumed else []
    if reasons:
        raise UserError(f"no ROI: {'; '.join(reasons)}; an unknown input is not 0")
    return {name: given[name] for name in INPUTS}


def _never_last(value: Decimal | None) -> Decimal:
    return Decimal("Infinity") if value is None else value


def _corners(inputs: Mapping[str, Input]) -> Iterator[Case]:
    """The cases among which the ends of all results lie.

    Inputs that are better at one end whatever the others stand at their better ends together, or
    at their worse ones together; of the rest every combination is tried.
    """
    either = [n for n, one in inputs.items()
              if INPUTS[n].better == "either" and one.low != one.high]  # fmt: skip
    ends = list(itertools.product(*((inputs[n].low, inputs[n].high) for n in either)))
    for is_better in (True, False):
        fixed = {
            name: one.high if (INPUTS[name].better == "high") == is_better else one.low
            for name, one in inputs.items()
        }
        for chosen in ends:
            yield Case(**fixed | dict(zip(either, chosen, strict=True)))


def _sensitivities(likely: Case, inputs: Mapping[str, Input]) -> tuple[Sensitivity, ...]:
    rows = [
        Sensitivity(
            name=name,
            at_low_usd=replace(likely, **{name: one.low}).value_usd,
            at_high_usd=replace(likely, **{name: one.high}).value_usd,
        )
        for name, one in inputs.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.swing_usd))
