"""What a customer's return on investment assumes, as params.yaml holds it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from turbo_vaed.config.types import STRICT, Money


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Assumption:
    """What a person believes of a figure: the least, the likely one and the most, and why."""

    low: Annotated[Money, Field(ge=0)]
    likely: Annotated[Money, Field(ge=0)]
    high: Annotated[Money, Field(ge=0)]
    source: Annotated[str, Field(min_length=1)]

    def __post_init__(self) -> None:
        if not self.low <= self.likely <= self.high:
            raise ValueError(
                f"low {self.low}, likely {self.likely}, high {self.high}: none may be larger than "
                "the next"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoiParams:
    """What a customer's return on investment assumes; no stage reads it. See docs/roi.md."""

    minutes_per_month: Assumption
    """Of video, decoded in the cloud today."""
    device_share: Assumption
    """Of those minutes, decoded on phones that can run the package."""
    frame_megapixels: Assumption
    """Of the product's video."""
    gpu_speedup: Assumption
    """One GPU of the cloud over one CPU thread of the host that measured the teacher; not used
    where that host timed it on a GPU of its own."""
    phone_speedup: Assumption
    """A phone over one CPU thread of the host that measured the student; not used where the gate
    measured on a phone."""
    gpu_usd_per_hour: Assumption
    egress_usd_per_gb: Assumption
    video_mb_per_minute: Assumption
    """What is sent per minute today, encoded."""
    latent_bytes_per_value: Assumption
    """Of the latents as they would be sent."""
    devices: Assumption
    downloads_per_device_year: Assumption
    integration_usd: Assumption
    """Once."""
    horizon_months: Assumption

    def __post_init__(self) -> None:
        for name in ("frame_megapixels", "gpu_speedup", "phone_speedup", "horizon_months"):
            if getattr(self, name).low == 0:
                raise ValueError(f"{name}.low is 0; it must be more")
        if self.device_share.high > 1:
            raise ValueError(f"device_share.high is {self.device_share.high}; a share is at most 1")
