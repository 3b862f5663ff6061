"""How long a step should take where none was measured yet: the student's arithmetic, at the speed
at which the machine multiplies."""

from __future__ import annotations

import time
from typing import Any

from turbo_vaed.costs.estimate import Pace
from turbo_vaed.dataset.ray_session import ray_session
from turbo_vaed.errors import Unreachable
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.fit import student_config

MOST_SHARE, LIKELY_SHARE, LEAST_SHARE = 0.6, 0.2, 0.03
"""Of the speed of large products, that training comes to: its depthwise convolutions wait for
memory. 0.27 is what the demo's student was measured at (docs/decisions.md); the others are wide."""
_FORWARD_AND_BACKWARD = 3
_SIDE, _TRIES = 2048, 5
_PATIENCE_SECONDS = 60.0


def expected_pace(poc: Poc, settings: Settings) -> Pace | None:
    """Seconds per step by arithmetic alone, on this machine or on a cluster's workers; None where
    a cluster has no worker free within a minute. The teacher's part, a cache or a pass of it in
    every step, is not in it.

    Raises:
        UserError, CorruptFile: as `student_config`.
        Unreachable: no Ray answers.
    """
    speed = _on_the_cluster(poc, settings) if settings.on_a_cluster else multiplies_per_second()
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


def multiplies_per_second() -> float:
    """Additions and multiplications a second of a large product here: on a GPU in bfloat16 where
    there is one, else in float32 on all processors."""
    import torch

    on_gpu = torch.cuda.is_available()
    matrix = torch.ones(
        _SIDE,
        _SIDE,
        device="cuda" if on_gpu else "cpu",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
    )
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        matrix @ matrix
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * float(_SIDE) ** 3 / min(seconds)


def _on_the_cluster(poc: Poc, settings: Settings) -> float | None:
    """Of all workers that the run would have there."""
    import ray

    with ray_session(settings.ray_address):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        kind = "GPU" if resources.get("GPU", 0) > 0 else "CPU"
        workers = min(poc.params.distill.workers, int(resources.get(kind, 0)))
        asked = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        task: Any = ray.remote(multiplies_per_second)
        try:
            speed: float = ray.get(task.options(**asked).remote(), timeout=_PATIENCE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            raise Unreachable(f"the Ray cluster could not run a task: {error}") from error
    return speed * max(1, workers)
