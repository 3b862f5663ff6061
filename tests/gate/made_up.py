"""A use case, and evidence that passes it."""

from __future__ import annotations

from typing import Any

from turbo_vaed.config.schema import UseCase
from turbo_vaed.gate import Evidence

LIMITS: dict[str, float] = {
    "min_psnr_retention": 0.95,
    "min_psnr": 22.0,
    "min_ssim": 0.6,
    "min_ms_ssim": 0.8,
    "min_worst_psnr": 16.0,
    "max_flicker": 3.0,
    "min_detail_retention": 0.8,
    "min_parity": 40,
    "min_fps": 24,
    "max_cold_start_seconds": 5.0,
    "max_peak_memory_mb": 1500,
    "max_package_mb": 40,
    "max_latency_ratio": 1.0,
}


def use_case(**changed: Any) -> UseCase:
    """The limits above, but for those that are changed."""
    rationale = {name: f"{name} is required" for name in LIMITS}
    rest = {"needs_approval": False, "choose": "fastest", "rationale": rationale}
    return UseCase(**{**LIMITS, **rest, **changed})


def evidence(**changed: Any) -> Evidence:
    """What passes, exact, but for what is changed."""
    good: dict[str, Any] = {
        "psnr_db": 28.0,
        "ssim": 0.8,
        "ms_ssim": 0.9,
        "worst_psnr_db": 20.0,
        "teacher_psnr_db": 28.5,
        "flicker_ratio": 1.2,
        "detail_retention": 0.97,
        "parity_psnr_db": 90.0,
        "cold_start_seconds": 0.2,
        "peak_memory_bytes": 400e6,
        "package_bytes": 4e6,
        "latency_seconds": 0.05,
        "teacher_latency_seconds": 0.2,
        "intervals": {},
        "confidence": 0.95,
        "unknown": {},
        "broken": "",
    }
    found = {**good, **changed}
    seconds = found["latency_seconds"]
    return Evidence(**{"fps": None if seconds is None else 9 / seconds, **found})
