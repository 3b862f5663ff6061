"""What a customer's return on investment assumes: `roi` of finance.yaml."""

from __future__ import annotations

from decimal import Decimal
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


def _assume(low: str, likely: str, high: str, source: str) -> Assumption:
    return Assumption(low=Decimal(low), likely=Decimal(likely), high=Decimal(high), source=source)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoiParams:
    """What a customer's return on investment assumes; no stage reads it. See docs/roi.md."""

    minutes_per_month: Assumption = _assume(
        "10000", "100000", "1000000", "assumption, ask the customer"
    )
    """Of video, decoded in the cloud today."""
    device_share: Assumption = _assume(
        "0.4", "0.7", "0.9", "assumption, ask the customer; their analytics know the models"
    )
    """Of those minutes, decoded on phones that can run the package."""
    frame_megapixels: Assumption = _assume(
        "0.41", "0.92", "2.07", "assumption, ask the customer; 480p, 720p, 1080p"
    )
    """Of the product's video."""
    gpu_speedup: Assumption = _assume(
        "340",
        "700",
        "2100",
        "assumption, run the gate on the customer's GPU; three published teachers at 512x512 "
        "run 690 to 820 times as fast on a GPU (arXiv 2508.09136) as on one EPYC thread "
        "(bench/results/decode.json, teacher_fp32, 2 threads, halved, by pixels), and 1,960 "
        "to 2,110 times on an H200 (bench/results/decode_gpu.json, bfloat16, 714.3, 30.2 and "
        "30.4 fps); low if threads do not add up",
    )
    """One GPU of the cloud over one CPU thread of the host that measured the teacher; not used
    where that host timed it on a GPU of its own."""
    phone_speedup: Assumption = _assume(
        "20",
        "40",
        "70",
        "assumption, time the package on the customer's phones; three published students at "
        "512x512 run 37 to 72 times as fast on an iPhone 16 Pro (arXiv 2508.09136) as on one "
        "EPYC thread (bench/results/decode.json, fp32, 2 threads, halved); low for a mid-"
        "range phone",
    )
    """A phone over one CPU thread of the host that measured the student; not used where the gate
    measured on a phone."""
    gpu_usd_per_hour: Assumption = _assume(
        "0.8",
        "2.0",
        "4.0",
        "assumption, see the customer's bill; on-demand lists of 2026, L4, A100, H100",
    )
    egress_usd_per_gb: Assumption = _assume(
        "0.02",
        "0.085",
        "0.09",
        "assumption, see the customer's bill; large contracts, CloudFront, EC2 to the internet",
    )
    video_mb_per_minute: Assumption = _assume(
        "7.5", "22.5", "45", "assumption, ask the customer; 1, 3 and 6 Mbit/s"
    )
    """What is sent per minute today, encoded."""
    latent_bytes_per_value: Assumption = _assume(
        "0.5", "1", "2", "assumption, try it with the student; 4 bits, 8 bits, float16"
    )
    """Of the latents as they would be sent."""
    devices: Assumption = _assume("5000", "20000", "100000", "assumption, ask the customer")
    downloads_per_device_year: Assumption = _assume(
        "1", "2", "6", "assumption, ask the customer how often the app is updated"
    )
    integration_usd: Assumption = _assume(
        "10000",
        "30000",
        "80000",
        "assumption, ask the customer; two, six and sixteen weeks of an app engineer",
    )
    """Once."""
    horizon_months: Assumption = _assume(
        "24", "36", "48", "assumption, ask whoever signs; three years"
    )

    def __post_init__(self) -> None:
        for name in ("frame_megapixels", "gpu_speedup", "phone_speedup", "horizon_months"):
            if getattr(self, name).low == 0:
                raise ValueError(f"{name}.low is 0; it must be more")
        if self.device_share.high > 1:
            raise ValueError(f"device_share.high is {self.device_share.high}; a share is at most 1")
