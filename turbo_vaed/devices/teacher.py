"""What a package is compared with: the teacher's decoder in PyTorch, on this host; and on its GPU,
which is what the cloud decodes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from turbo_vaed.devices.host import check_latents
from turbo_vaed.devices.measurement import check_seconds
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault
from turbo_vaed.models.teachers import describe_teacher
from turbo_vaed.runtime.isolated import run_module

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TeacherTimes:
    """What the teacher's decoder took."""

    machine: str
    """Processor and system, or the GPU, for a person."""
    seconds: tuple[float, ...]
    """Per decode of one clip."""
    background_cpu_share: float | None = None
    """Of all processors' time meanwhile: what other processes took; None where it is unknown."""


def has_gpu() -> bool:
    """Whether this host has a GPU that PyTorch computes on with CUDA."""
    import torch

    return torch.cuda.is_available()


def measure_teacher(
    family: str,
    weights: Path,
    latents_npy: Path,
    *,
    plan: Plan,
    timeout_seconds: float,
    device: str = "cpu",
    precision: Precision = "float32",
) -> TeacherTimes:
    """Seconds per decode of one clip of latents, eager, in a fresh process.

    `weights` is the teacher's folder; `latents_npy` float32 (N, C, t, h, w), as for a package;
    `device` as PyTorch names it. What a GPU has still to compute counts.

    Raises:
        UserError: the family or the latents file is not possible.
        CorruptFile: the teacher's files are missing or damaged.
        Fault: the process crashed, hung, was killed, or sent an invalid report.
    """
    check_latents(latents_npy)
    describe_teacher(family, weights)
    what = f"the teacher's decoder from {weights} on {device}"
    arguments = [family, weights, latents_npy, json.dumps(asdict(plan)), device, precision]
    reported = run_module(
        "turbo_vaed.devices._teacher_runner",
        [str(argument) for argument in arguments],
        threads=plan.threads,
        timeout_seconds=timeout_seconds,
        what=what,
    )
    found, machine = reported.get("latency_seconds"), reported.get("machine")
    others = reported.get("background_cpu_share")
    seconds = tuple(found) if isinstance(found, list) else ()
    try:
        check_seconds("latency_seconds", seconds)
    except ValueError as error:
        raise Fault(f"{what} sent an invalid report: {error}") from error
    if not isinstance(machine, str) or not machine:
        raise Fault(f"{what} sent an invalid report: machine: found {machine!r}, expected its name")
    return TeacherTimes(machine=machine, seconds=seconds, background_cpu_share=others)
