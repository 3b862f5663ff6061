"""What a run leaves for a return on investment, made up, and the examples of docs/roi.md."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests import configs
from turbo_vaed.config import load
from turbo_vaed.config.schema import RoiParams
from turbo_vaed.costs import Charge
from turbo_vaed.roi.inputs import Input
from turbo_vaed.roi.measured import roi_of_run
from turbo_vaed.roi.roi import Roi, calculate

ROOT = Path(__file__).parents[2]
COST = Input.exact("poc_usd", Decimal("1.25"), "ledger: 1 run")
LATENTS = {"ltx": (128, 3, 32, 41_900_000), "hunyuan": (16, 5, 8, 40_690_000)}
"""Channels, frames of 17, compression in space; weights of the published student."""
HAND = {
    "teacher_seconds_per_minute": "6000",
    "student_seconds_per_minute": "30",
    "clip_megapixels": "0.25",
    "latent_values_per_minute": "5000000",
    "package_bytes": "50000000",
    "poc_usd": "95",
    "minutes_per_month": "20000",
    "device_share": "0.5",
    "frame_megapixels": "1",
    "gpu_speedup": "600",
    "phone_speedup": "40",
    "gpu_usd_per_hour": "3.60",
    "egress_usd_per_gb": "0.10",
    "video_mb_per_minute": "30",
    "latent_bytes_per_value": "2",
    "devices": "1200",
    "downloads_per_device_year": "4",
    "integration_usd": "10000",
    "horizon_months": "36",
}
"""An example that was calculated by hand."""


def exact(**changes: str) -> list[Input]:
    """Its inputs, some at another value; none has a range."""
    values = HAND | changes
    return [Input.exact(name, Decimal(value), "by hand") for name, value in values.items()]


def shipped_assumptions() -> RoiParams:
    """Those of tests/configs."""
    return load.load(configs.FOLDER, "demo").roi


def documents() -> dict[str, dict[str, Any]]:
    """clips, package and measurement: clips of 9 frames at 25 fps, 64 x 64."""
    return {
        "clips": {"clips": [{"fps": 25.0}] * 3},
        "package": {
            "sha256": "a", "size_bytes": 4_310_220,
            "io": {"latent_shape": [1, 32, 3, 8, 8], "video_shape": [1, 3, 9, 64, 64]},
        },
        "measurement": {
            "package_sha256": "a", "device": "host", "machine": "x86_64, 2 cores", "threads": 1,
            "latency_seconds": [0.131, 0.128, 0.135, 0.129, 0.142],
            "teacher_latency_seconds": [0.311, 0.308, 0.322, 0.310, 0.309],
        },
    }  # fmt: skip


def of_bench(name: str, assumptions: RoiParams) -> Roi:
    """The examples of docs/roi.md: the recorded benchmark's seconds, the shipped assumptions."""
    bench = json.loads((ROOT / "bench/results/decode.json").read_text())
    seconds, frames, side = (bench[name][key] for key in ("seconds", "frames", "side"))
    channels, times, compression, weights = LATENTS[name]
    return roi_of_run(
        clips={"clips": [{"fps": 25.0}]},
        package={
            "sha256": "a",
            "size_bytes": 4 * weights,
            "io": {
                "latent_shape": [1, channels, times, *[side // compression] * 2],
                "video_shape": [1, 3, frames, side, side],
            },
        },
        measurement={
            "package_sha256": "a",
            "device": "host",
            "machine": bench["cpu"],
            "threads": bench["threads"],
            "latency_seconds": [seconds["fp32"]],
            "teacher_latency_seconds": [seconds["teacher_fp32"]],
        },
        cost=Input.exact("poc_usd", Decimal(95), "published"),
        assumptions=assumptions,
    )


def exactly(roi: Roi, **likely: str) -> Roi:
    """The same without ranges, some inputs at another value."""
    return calculate(
        Input.exact(one.name, Decimal(likely.get(one.name, str(one.likely))), one.source)
        for one in roi.inputs
    )


def charge(run: str, customer: str, usd: str, useful: str = "useful") -> Charge:
    """Of one run."""
    start = datetime(2026, 11, 24, tzinfo=UTC)
    return Charge(
        run=run, customer=customer, stage="distill", resource="node", market="local",
        quantity=Decimal(10), unit="node-second", unit_price_usd=Decimal(usd) / 10,
        amount_usd=Decimal(usd), started_at=start, ended_at=start + timedelta(seconds=10),
        useful=useful, price_source="test",  # type: ignore[arg-type]
    )  # fmt: skip
