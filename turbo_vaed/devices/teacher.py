"""What a package is compared with: the teacher's decoder in PyTorch, on this host."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from turbo_vaed.devices._child import run_module
from turbo_vaed.devices.host import check_latents
from turbo_vaed.devices.measurement import check_seconds
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault
from turbo_vaed.models.teachers import describe_teacher


def measure_teacher(
    family: str,
    weights: Path,
    latents_npy: Path,
    *,
    plan: Plan,
    timeout_seconds: float,
) -> tuple[float, ...]:
    """Seconds per decode of one clip of latents: eager, fp32, in a fresh process.

    `weights` is the teacher's folder; `latents_npy` float32 (N, C, t, h, w), as for a package.

    Raises:
        UserError: the family or the latents file is not possible.
        CorruptFile: the teacher's files are missing or damaged.
        Fault: the process crashed, hung, was killed, or reported nonsense.
    """
    check_latents(latents_npy)
    describe_teacher(family, weights)
    what = f"the teacher's decoder from {weights}"
    arguments = [family, weights, latents_npy, json.dumps(asdict(plan))]
    reported = run_module(
        "turbo_vaed.devices._teacher_runner",
        [str(argument) for argument in arguments],
        threads=plan.threads,
        timeout_seconds=timeout_seconds,
        what=what,
    )
    found = reported.get("latency_seconds")
    seconds = tuple(found) if isinstance(found, list) else ()
    try:
        check_seconds("latency_seconds", seconds)
    except ValueError as error:
        raise Fault(f"{what} reported nonsense: {error}") from error
    return seconds
