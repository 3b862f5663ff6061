"""How long a run should take where none was measured yet: the FLOPs of student and teacher, at the
speed of the workers.

A GPU keeps the memory that a process once used on it, so this machine is timed in a process of its
own: `python -m turbo_vaed.planning.flops RESULT PRECISION [PRECISION ...]`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config.stages import STAGES
from turbo_vaed.dataset.clip_store import read_description
from turbo_vaed.dataset.manifest import list_files
from turbo_vaed.errors import Unreachable
from turbo_vaed.models.teachers import teacher_flops
from turbo_vaed.planning.compatibility import student_config
from turbo_vaed.planning.history import Pace, Timing
from turbo_vaed.runtime import garbage
from turbo_vaed.runtime.isolated import run_module
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

MOST_SHARE, LIKELY_SHARE, LEAST_SHARE = 0.6, 0.2, 0.03
"""The share of a worker's speed with large products that training reaches, for its depthwise
convolutions wait for memory: 0.20 was measured with the demo's student (docs/decisions.md), and the
range around it is wide."""
_FORWARD_AND_BACKWARD = 3
_PATIENCE_SECONDS = 60.0
_TEACHER_PRECISION = "fp32"
"""Of the teacher's passes over the clips."""


@dataclass(frozen=True, kw_only=True)
class _Workers:
    """FLOP/s of one worker, and how many workers there is room for."""

    student: float
    teacher: float
    count: int


def expected_timing(
    workspace: Workspace, settings: Settings, stages: Collection[str] = STAGES
) -> Timing | None:
    """The time of a run by arithmetic alone, on this machine or on a cluster's workers; None where
    a cluster has no free worker within a minute.

    Args:
        stages: that the run goes through.

    Raises:
        UserError, CorruptFile: as `student_config`.
        DataRefused: there is no video.
        Unreachable: no Ray answers.
        Fault: this machine could not be measured.
    """
    step, (encoding, targets) = step_flops(workspace), teacher_work(workspace, stages)
    workers = _workers(settings, workspace.params.distill.precision)
    if workers is None:
        return None
    used = min(workspace.params.distill.workers, workers.count)
    return Timing(
        pace=_range(step / (workers.student * used)),
        once=_range((encoding / workers.count + targets / used) / workers.teacher),
    )


def expected_pace(workspace: Workspace, settings: Settings) -> Pace | None:
    """As `expected_timing`, for the student's steps alone; it needs no videos.

    Raises: as `expected_timing`.
    """
    step = step_flops(workspace)
    workers = _workers(settings, workspace.params.distill.precision)
    if workers is None:
        return None
    return _range(step / (workers.student * min(workspace.params.distill.workers, workers.count)))


def _range(seconds: float) -> Pace:
    """The time of work that takes so many seconds at the full speed of large products."""
    return Pace(least=seconds / MOST_SHARE, mean=seconds / LIKELY_SHARE, most=seconds / LEAST_SHARE)


def step_flops(workspace: Workspace) -> int:
    """FLOPs of the student in a step, counted without computing anything.

    Raises:
        UserError, CorruptFile: as `student_config`.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from turbo_vaed.models import TurboVaedDecoder

    config, params = student_config(workspace), workspace.params
    _, *shape = config.latent_shape(params.clip.frames, params.distill.crop, params.distill.crop)
    with torch.device("meta"):
        decoder, latents = TurboVaedDecoder(config), torch.empty(params.distill.batch_size, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(latents)
    return _FORWARD_AND_BACKWARD * int(counter.get_total_flops())


def teacher_work(workspace: Workspace, stages: Collection[str] = STAGES) -> tuple[float, float]:
    """FLOPs of the teacher in `encode`, and for the student's targets: in one pass over the train
    clips, or in every step where that is less.

    Args:
        stages: that the run goes through.

    Raises:
        UserError, CorruptFile: as `teacher_flops`.
        DataRefused: there is no video.
    """
    params, distill = workspace.params, workspace.params.distill
    wants_teacher = distill.weight_teacher > 0 or distill.weight_feature > 0
    if "encode" not in stages and not wants_teacher:
        return 0, 0
    size, clips = params.clip.size, clip_count(workspace, is_cut="clip" not in stages)
    one = teacher_flops(
        params.encode.teacher_family, workspace.teacher_weights(), params.clip.frames, size, size
    )
    test_share = 1 - params.clip.train_share - params.clip.val_share
    encoding = clips * (one.encode + test_share * one.decode) if "encode" in stages else 0
    cached = clips * params.clip.train_share * one.decode
    samples = distill.steps * distill.batch_size
    recomputed = samples * (distill.crop / size) ** 2 * one.decode
    by_mode = {"cache": cached, "recompute": recomputed, "auto": min(cached, recomputed)}
    return encoding, by_mode[distill.teacher_targets] if wants_teacher else 0


def clip_count(workspace: Workspace, *, is_cut: bool) -> int:
    """How many clips were cut, or before that the most: as if every file were a long enough video.

    Raises:
        CorruptFile: the description of the clips is damaged.
        UserError, DataRefused: there is no file.
    """
    if is_cut:
        return len(read_description(workspace.folder("clip") / "clips.json")["clips"])
    return len(list_files(workspace.source)) * workspace.params.clip.clips_per_video


def _workers(settings: Settings, precision: str) -> _Workers | None:
    if settings.on_a_cluster:
        return _workers_of_cluster(settings.ray_address, precision)
    found = run_module(
        "turbo_vaed.planning.flops",
        [precision, _TEACHER_PRECISION],
        threads=1,
        timeout_seconds=_PATIENCE_SECONDS,
        what="measuring this machine's speed",
    )
    student, teacher = map(float, found["flops"])
    return _Workers(student=student, teacher=teacher, count=int(found["workers"]))


def _workers_of_cluster(address: str | None, precision: str) -> _Workers | None:
    """None where no worker is free within a minute.

    Raises:
        Unreachable: no Ray answers.
    """
    import ray

    from turbo_vaed.distill.student import worker_flops

    with ray_session(address):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        kind = "GPU" if resources.get("GPU", 0) > 0 else "CPU"
        task: Any = ray.remote(worker_flops)
        options = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        try:
            student, teacher = ray.get(
                task.options(**options).remote(precision, _TEACHER_PRECISION),
                timeout=_PATIENCE_SECONDS,
            )
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            raise Unreachable(f"the Ray cluster could not run a task: {error}") from error
    return _Workers(student=student, teacher=teacher, count=max(1, int(resources.get(kind, 0))))


def _time_this_machine(result: Path, precisions: list[str]) -> None:
    """Write the FLOP/s of a worker on this machine, and how many workers there is room for."""
    import torch

    from turbo_vaed.distill.student import worker_flops

    count = torch.cuda.device_count() or os.cpu_count() or 1
    found = {"flops": worker_flops(*precisions), "workers": count}
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    garbage.skip_last_collections()
    _time_this_machine(Path(sys.argv[1]), sys.argv[2:])
