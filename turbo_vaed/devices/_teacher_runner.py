"""Times the teacher's decoder in this very process: `turbo_vaed.devices.teacher` starts it.

Its arguments: RESULT FAMILY WEIGHTS LATENTS THREADS WARMUP SAMPLES.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Decode clip after clip and leave the seconds of each in RESULT (JSON)."""
    result, family, weights, latents = arguments[:4]
    threads, warmup, samples = (int(a) for a in arguments[4:])

    import numpy as np
    import torch

    from turbo_vaed.models.teachers import load_teacher

    torch.set_num_threads(threads)
    teacher = load_teacher(family, Path(weights))
    stored = np.load(latents, mmap_mode="r")
    latency_seconds = []
    for i in range(1 + warmup + samples):  # the package, too, has had its cold run by then
        at = i % len(stored)
        one = torch.from_numpy(np.array(stored[at : at + 1]))
        start = time.perf_counter()
        teacher.decode(one)
        seconds = time.perf_counter() - start
        if i > warmup:
            latency_seconds.append(seconds)
    Path(result).write_text(json.dumps({"latency_seconds": latency_seconds}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
