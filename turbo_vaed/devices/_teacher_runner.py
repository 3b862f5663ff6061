"""Times the teacher's decoder in this very process: `turbo_vaed.devices.teacher` starts it.

Its arguments: RESULT FAMILY WEIGHTS LATENTS PLAN (JSON) DEVICE PRECISION.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.runtime import garbage

if TYPE_CHECKING:
    from torch import Tensor

    from turbo_vaed.devices.timing import Plan


def main(arguments: list[str]) -> None:
    """Decode clip after clip and leave the seconds of each, and what computed, in RESULT (JSON)."""
    result, family, weights, latents, plan_json, device, precision = arguments

    import numpy as np
    import torch

    from turbo_vaed.devices import _machine
    from turbo_vaed.devices.host import machine
    from turbo_vaed.devices.timing import Plan
    from turbo_vaed.models.teachers import load_teacher

    plan, dtype = Plan(**json.loads(plan_json)), getattr(torch, precision)
    torch.set_num_threads(plan.threads)
    teacher = load_teacher(family, Path(weights), dtype, device)
    stored = np.load(latents, mmap_mode="r")

    def clip(turn: int) -> Tensor:
        at = turn % len(stored)
        return torch.from_numpy(np.array(stored[at : at + 1])).to(device, dtype)

    is_gpu = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if is_gpu else _nothing
    before = _machine.state()
    seconds = time_decodes(teacher.decode, clip, plan, wait=wait)
    document = {
        "latency_seconds": seconds,
        "background_cpu_share": _machine.between(before, _machine.state()).background_cpu_share,
        "machine": torch.cuda.get_device_name(device) if is_gpu else machine(),
    }
    Path(result).write_text(json.dumps(document), encoding="utf-8")


def time_decodes(
    decode: Callable[[Any], object],
    clip: Callable[[int], Any],
    plan: Plan,
    *,
    wait: Callable[[], None],
) -> list[float]:
    """Seconds of each decode; `wait` returns when all that was asked of the device is computed."""
    from turbo_vaed.devices.timing import sample, warm_up

    turn = 0

    def once() -> float:
        nonlocal turn
        one = clip(turn)
        turn += 1
        wait()
        start = time.perf_counter()
        decode(one)
        wait()
        return time.perf_counter() - start

    once()  # the package, too, has had its cold run by then
    warm_up(once, plan.max_warmup)
    return sample(once, plan)


def _nothing() -> None:
    pass


if __name__ == "__main__":
    garbage.skip_last_collections()
    main(sys.argv[1:])
