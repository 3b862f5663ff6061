"""The inputs of a return on investment: each a range, measured or assumed, with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from turbo_vaed.errors import UserError

Kind = Literal["measured", "assumed"]
Better = Literal["high", "low", "either"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """An input's name for people, its unit, and the values that it may have."""

    label: str
    unit: str
    kind: Kind
    """The usual kind; an assumed quantity may have been measured all the same."""
    better: Better
    """The end of the range that is better for the customer whatever the other inputs are; `either`
    where those decide, or where it has no part in the money."""
    is_positive: bool = False
    most: Decimal | None = None


INPUTS: Mapping[str, Quantity] = {
    "teacher_seconds_per_minute": Quantity(
        label="Teacher, per video minute", unit="s", kind="measured", better="high"
    ),
    "student_seconds_per_minute": Quantity(
        label="Student, per video minute", unit="s", kind="measured", better="either",
        is_positive=True,
    ),
    "clip_megapixels": Quantity(
        label="Frame that was measured", unit="megapixels", kind="measured", better="either",
        is_positive=True,
    ),
    "latent_values_per_minute": Quantity(
        label="Latents, per video minute", unit="values", kind="measured", better="low"
    ),
    "package_bytes": Quantity(label="Package", unit="bytes", kind="measured", better="low"),
    "poc_usd": Quantity(label="Cost of the PoC", unit="USD", kind="measured", better="low"),
    "minutes_per_month": Quantity(
        label="Minutes decoded", unit="per month", kind="assumed", better="either"
    ),
    "device_share": Quantity(
        label="Share decoded on phones", unit="of the minutes", kind="assumed", better="either",
        most=Decimal(1),
    ),
    "frame_megapixels": Quantity(
        label="Frame of the product", unit="megapixels", kind="assumed", better="either",
        is_positive=True,
    ),
    "gpu_speedup": Quantity(
        label="GPU against one CPU thread", unit="times", kind="assumed", better="low",
        is_positive=True,
    ),
    "phone_speedup": Quantity(
        label="Phone against one CPU thread", unit="times", kind="assumed", better="either",
        is_positive=True,
    ),
    "gpu_usd_per_hour": Quantity(
        label="GPU in the cloud", unit="USD per hour", kind="assumed", better="high"
    ),
    "egress_usd_per_gb": Quantity(
        label="Egress", unit="USD per GB", kind="assumed", better="either"
    ),
    "video_mb_per_minute": Quantity(
        label="Video sent today", unit="MB per minute", kind="assumed", better="high"
    ),
    "latent_bytes_per_value": Quantity(
        label="Latents as sent", unit="bytes per value", kind="assumed", better="low"
    ),
    "devices": Quantity(
        label="Devices", unit="with the app", kind="assumed", better="low"
    ),
    "downloads_per_device_year": Quantity(
        label="Package downloads", unit="per device and year", kind="assumed", better="low"
    ),
    "integration_usd": Quantity(
        label="Integration into the app", unit="USD once", kind="assumed", better="low"
    ),
    "horizon_months": Quantity(
        label="Horizon", unit="months", kind="assumed", better="either", is_positive=True
    ),
}  # fmt: skip
"""Every input of the calculation, the measured ones first."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """The range of one input, and its source.

    Raises:
        UserError: an unknown name, a value that is not a finite Decimal of 0 or more, a range
            that is not low <= likely <= high, or one that the quantity does not allow.
    """

    name: str
    """A key of INPUTS."""
    low: Decimal
    likely: Decimal
    high: Decimal
    source: str
    """The file and field of the run, or the key and the source that it names."""
    is_measured: bool = False
    """Of a quantity that is otherwise assumed."""

    @property
    def kind(self) -> Kind:
        """Whether it was measured or is assumed."""
        return "measured" if self.is_measured else INPUTS[self.name].kind

    def __post_init__(self) -> None:
        if self.name not in INPUTS:
            raise UserError(f"ROI: unknown input {self.name!r}; allowed: {', '.join(INPUTS)}")
        for end in ("low", "likely", "high"):
            value = getattr(self, end)
            if not isinstance(value, Decimal) or not value.is_finite() or value < 0:
                raise UserError(
                    f"ROI: {self.name}.{end} is {value!r}; expected a finite Decimal of 0 or more"
                )
        if not self.low <= self.likely <= self.high:
            raise UserError(
                f"ROI: {self.name} is low {self.low}, likely {self.likely}, high {self.high}; "
                "none may be larger than the next"
            )
        quantity = INPUTS[self.name]
        if quantity.is_positive and self.low == 0:
            raise UserError(f"ROI: {self.name}.low is 0; expected more than 0")
        if quantity.most is not None and self.high > quantity.most:
            raise UserError(
                f"ROI: {self.name}.high is {self.high}; expected at most {quantity.most}"
            )
        if not self.source:
            raise UserError(f"ROI: {self.name} has no source; name one")

    @classmethod
    def exact(cls, name: str, value: Decimal, source: str, *, is_measured: bool = False) -> Input:
        """One value that is known."""
        return cls(
            name=name, low=value, likely=value, high=value, source=source, is_measured=is_measured
        )
