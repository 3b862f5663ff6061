"""How long a run should take where none was measured yet: what student and teacher compute, at the
speed at which the workers multiply."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs.estimate import Pace
from turbo_vaed.dataset.clip_store import read_description
from turbo_vaed.dataset.manifest import list_files
from turbo_vaed.errors import Unreachable
from turbo_vaed.models.teachers import teacher_flops
from turbo_vaed.planning.compatibility import student_config
from turbo_vaed.runtime.isolated import run_module
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

MOST_SHARE, LIKELY_SHARE, LEAST_SHARE = 0.6, 0.2, 0.03
"""Of the speed of large products, that training comes to: its depthwise convolutions wait for
memory. 0.20 is what the demo's student was measured at (docs/decisions.md); the others are wide."""
_FORWARD_AND_BACKWARD = 3
_PATIENCE_SECONDS = 60.0
_TEACHER_PRECISION = "fp32"
"""That the passes of the teacher over the clips are made in."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Of a run on so many workers as it would have."""

    pace: Pace
    """Seconds per step of the student."""
    once: Pace
    """Seconds of the teacher: encoding, and what the student is trained towards."""


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """Additions and multiplications a second of one worker, and how many there are room for."""

    student: float
    teacher: float
    places: int


def expected(
    workspace: Workspace, settings: Settings, stages: Collection[str] = STAGES
) -> Expected | None:
    """By arithmetic alone, on this machine or on a cluster's workers; None where a cluster has no
    worker free within a minute.

    Args:
        stages: that the run will go through.

    Raises:
        UserError, CorruptFile: as `student_config`.
        DataRefused: there is no video.
        Unreachable: no Ray answers.
        Fault: this machine could not be measured.
    """
    step, (encoding, targets) = step_flops(workspace), teacher_work(workspace, stages)
    speed = _speed(workspace, settings)
    if speed is None:
        return None
    workers = min(workspace.params.distill.workers, speed.places)
    return Expected(
        pace=_range(step / (speed.student * workers)),
        once=_range((encoding / speed.places + targets / workers) / speed.teacher),
    )


def expected_pace(workspace: Workspace, settings: Settings) -> Pace | None:
    """As `expected`, the student's steps alone; it asks for no video.

    Raises: as `expected`.
    """
    step, speed = step_flops(workspace), _speed(workspace, settings)
    if speed is None:
        return None
    return _range(step / (speed.student * min(workspace.params.distill.workers, speed.places)))


def _speed(workspace: Workspace, settings: Settings) -> _Speed | None:
    precision = workspace.params.distill.precision
    if settings.on_a_cluster:
        return _on_the_cluster(settings.ray_address, precision)
    return _here(precision)


def _range(seconds: float) -> Pace:
    """Of what would take so many seconds at the full speed of large products."""
    return Pace(least=seconds / MOST_SHARE, mean=seconds / LIKELY_SHARE, most=seconds / LEAST_SHARE)


def step_flops(workspace: Workspace) -> int:
    """Additions and multiplications of the student in a step; nothing is computed.

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
    """What the teacher adds and multiplies in `encode`, and for what the student is trained
    towards: in a pass over the train clips, or in every step where that is less.

    Args:
        stages: that the run will go through.

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
    """That were cut, or before it at most: as if every file were a long enough video.

    Raises:
        CorruptFile: what was cut is not described.
        UserError, DataRefused: there is no file.
    """
    if is_cut:
        return len(read_description(workspace.folder("clip") / "clips.json")["clips"])
    return len(list_files(workspace.source)) * workspace.params.clip.clips_per_video


def _here(precision: str) -> _Speed:
    """Of this machine.

    Raises:
        Fault: what measures it failed.
    """
    found = run_module(  # in a process of its own: a GPU keeps what a process once asked of it
        "turbo_vaed.planning._worker_speed",
        [precision, _TEACHER_PRECISION],
        threads=1,
        timeout_seconds=_PATIENCE_SECONDS,
        what="measuring this machine's speed",
    )
    student, teacher = map(float, found["flops"])
    return _Speed(student=student, teacher=teacher, places=int(found["places"]))


def _on_the_cluster(address: str | None, precision: str) -> _Speed | None:
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
        asked = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        try:
            student, teacher = ray.get(
                task.options(**asked).remote(precision, _TEACHER_PRECISION),
                timeout=_PATIENCE_SECONDS,
            )
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            raise Unreachable(f"the Ray cluster could not run a task: {error}") from error
        return _Speed(student=student, teacher=teacher, places=max(1, int(resources.get(kind, 0))))
