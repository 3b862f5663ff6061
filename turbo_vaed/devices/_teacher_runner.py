"""Times the teacher's decoder in this very process: `turbo_vaed.devices.teacher` starts it.

Its arguments: RESULT FAMILY WEIGHTS LATENTS PLAN (JSON).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Decode clip after clip and leave the seconds of each in RESULT (JSON)."""
    result, family, weights, latents = arguments[:4]

    import numpy as np
    import torch

    from turbo_vaed.devices.timing import Plan, sample, warm_up
    from turbo_vaed.models.teachers import load_teacher

    plan = Plan(**json.loads(arguments[4]))
    torch.set_num_threads(plan.threads)
    teacher = load_teacher(family, Path(weights))
    stored, turn = np.load(latents, mmap_mode="r"), 0

    def once() -> float:
        nonlocal turn
        at = turn % len(stored)
        turn += 1
        one = torch.from_numpy(np.array(stored[at : at + 1]))
        start = time.perf_counter()
        teacher.decode(one)
        return time.perf_counter() - start

    once()  # the package, too, has had its cold run by then
    warm_up(once, plan.max_warmup)
    Path(result).write_text(json.dumps({"latency_seconds": sample(once, plan)}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
