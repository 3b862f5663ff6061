"""How long a step should take where none was measured yet: the student's arithmetic, at the speed
at which its workers multiply."""

from __future__ import annotations

from typing import Any

from turbo_vaed.child import run_module
from turbo_vaed.costs.estimate import Pace
from turbo_vaed.dataset.ray_session import ray_session
from turbo_vaed.errors import Unreachable
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.fit import student_config

MOST_SHARE, LIKELY_SHARE, LEAST_SHARE = 0.6, 0.2, 0.03
"""Of the speed of large products, that training comes to: its depthwise convolutions wait for
memory. 0.20 is what the demo's student was measured at (docs/decisions.md); the others are wide."""
_FORWARD_AND_BACKWARD = 3
_PATIENCE_SECONDS = 60.0


def expected_pace(poc: Poc, settings: Settings) -> Pace | None:
    """Seconds per step by arithmetic alone, on this machine or on a cluster's workers; None where
    a cluster has no worker free within a minute. The teacher's part, a cache or a pass of it in
    every step, is not in it.

    Raises:
        UserError, CorruptFile: as `student_config`.
        Unreachable: no Ray answers.
        Fault: this machine could not be measured.
    """
    precision, most = poc.params.distill.precision, poc.params.distill.workers
    if settings.on_a_cluster:
        speed = _on_the_cluster(settings.ray_address, precision, most)
    else:
        speed = _here(precision, most)
    if speed is None:
        return None
    seconds = _FORWARD_AND_BACKWARD * forward_flops(poc) / speed
    return Pace(least=seconds / MOST_SHARE, mean=seconds / LIKELY_SHARE, most=seconds / LEAST_SHARE)


def forward_flops(poc: Poc) -> int:
    """Additions and multiplications of the student on one batch of crops; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from turbo_vaed.models import TurboVaedDecoder

    config, params = student_config(poc), poc.params
    _, *shape = config.latent_shape(params.clip.frames, params.distill.crop, params.distill.crop)
    with torch.device("meta"):
        decoder, latents = TurboVaedDecoder(config), torch.empty(params.distill.batch_size, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(latents)
    return int(counter.get_total_flops())


def _here(precision: str, most: int) -> float:
    """Of all workers that the run would have on this machine.

    Raises:
        Fault: what measures it failed.
    """
    found = run_module(  # in a process of its own: a GPU keeps what a process once asked of it
        "turbo_vaed.stages._worker_speed",
        [precision],
        threads=1,
        timeout_seconds=_PATIENCE_SECONDS,
        what="measuring this machine's speed",
    )
    return float(found["flops"]) * min(most, int(found["places"]))


def _on_the_cluster(address: str | None, precision: str, most: int) -> float | None:
    """Of all workers that the run would have there."""
    import ray

    from turbo_vaed.distill.student import worker_flops

    with ray_session(address):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        kind = "GPU" if resources.get("GPU", 0) > 0 else "CPU"
        task: Any = ray.remote(worker_flops)
        asked = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        try:
            speed: float = ray.get(
                task.options(**asked).remote(precision), timeout=_PATIENCE_SECONDS
            )
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            raise Unreachable(f"the Ray cluster could not run a task: {error}") from error
        return speed * max(1, min(most, int(resources.get(kind, 0))))
