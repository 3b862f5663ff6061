"""The teacher's decoder, timed as the packages are: what their latency is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turbo_vaed.devices.teacher import Precision, TeacherTimes, has_gpu, measure_teacher
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault
from turbo_vaed.workspace import Workspace

TIMEOUT_SECONDS = 1800.0
"""Of one measuring process."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the teacher's decoder took on this host."""

    cpu: TeacherTimes
    gpu: TeacherTimes | None = None
    """In bfloat16, as the cloud would run it; None where this host has no GPU, or it failed."""
    gpu_failure: str = ""
    """Why the GPU has no times; no verdict depends on them."""
    max_background_cpu_share: float

    @property
    def unreliable_reason(self) -> str:
        """Why the times on the CPU are no basis for a verdict; empty where they are."""
        share = self.cpu.background_cpu_share or 0.0
        if share <= self.max_background_cpu_share:
            return ""
        return (
            f"other processes took {share:.0%} of this machine while the teacher was timed, "
            f"allowed <= {self.max_background_cpu_share:.0%}: stop them and measure again"
        )

    def to_json(self) -> dict[str, Any]:
        """Its part of measurement.json."""
        document: dict[str, Any] = {
            "teacher_latency_seconds": list(self.cpu.seconds),
            "teacher_machine": self.cpu.machine,
            "teacher_background_cpu_share": self.cpu.background_cpu_share,
        }
        if self.gpu_failure:
            document["teacher_gpu_failed"] = self.gpu_failure
        if self.gpu is not None:
            document["teacher_gpu_latency_seconds"] = list(self.gpu.seconds)
            document["teacher_gpu"] = self.gpu.machine
        return document


def time_teacher(workspace: Workspace, latents_npy: Path) -> Baseline:
    """Time the teacher's decoder on the CPU, and on the GPU where this host has one.

    Raises:
        CorruptFile: the teacher's files are missing or damaged.
        Fault: the process on the CPU crashed, hung, was killed, or sent an invalid report.
    """
    allowed = workspace.params.gate.max_background_cpu_share
    cpu = _time(workspace, latents_npy, "cpu", "float32")
    if (cpu.background_cpu_share or 0.0) > allowed:  # once more: the others may be gone
        cpu = _time(workspace, latents_npy, "cpu", "float32")
    baseline = Baseline(cpu=cpu, max_background_cpu_share=allowed)
    if not has_gpu():
        return baseline
    try:
        return replace(baseline, gpu=_time(workspace, latents_npy, "cuda", "bfloat16"))
    except Fault as error:
        # The last line is the cause; the lines above it are paths of this machine.
        return replace(baseline, gpu_failure=str(error).splitlines()[-1][-300:])


def _time(
    workspace: Workspace, latents_npy: Path, device: str, precision: Precision
) -> TeacherTimes:
    params = workspace.params
    plan = Plan.of(params.gate)
    # A teacher is slow, and its time is only compared with: a few samples are enough. A GPU is
    # fast, and its clock takes a while to rise.
    plan = replace(
        plan,
        max_warmup=plan.max_warmup if device == "cuda" else min(2, plan.max_warmup),
        max_samples=min(plan.min_samples, plan.max_samples),
    )
    return measure_teacher(
        params.encode.teacher_family,
        workspace.teacher_weights(),
        latents_npy,
        plan=plan,
        timeout_seconds=TIMEOUT_SECONDS,
        device=device,
        precision=precision,
    )
