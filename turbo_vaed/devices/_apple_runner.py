"""Measures a Core ML package on a Mac: `turbo_vaed.devices.apple` brings it and `timing.py` there.

It needs Python 3.10, numpy and coremltools. Its arguments: RESULT PACKAGE LATENTS DECODED PLAN
COMPUTE_UNIT SECONDS; after so many it ends itself. It imports nothing of the project but the file
that lies next to it.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(arguments: list[str]) -> None:
    """Leave RESULT (JSON) and DECODED (.npy, float32) behind."""
    result, package, latents, decoded = (Path(arguments[i]) for i in range(4))
    signal.alarm(int(arguments[6]))
    import coremltools as ct
    from timing import Plan, sample, warm_up  # type: ignore[import-not-found]

    plan = Plan(**json.loads(arguments[4]))
    stored = np.load(latents, mmap_mode="r")
    baseline = peak_memory_bytes()
    start = time.perf_counter()
    model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[arguments[5]])
    described = model.get_spec().description
    name, made = described.input[0].name, described.output[0].name

    def run(index: int) -> Any:
        at = index % len(stored)
        return model.predict({name: np.array(stored[at : at + 1])})[made]

    run(0)
    cold = time.perf_counter() - start
    turn = 0

    def once() -> float:
        nonlocal turn
        turn += 1
        begin = time.perf_counter()
        run(turn)
        return time.perf_counter() - begin

    warmup = warm_up(once, plan.max_warmup)
    seconds = sample(once, plan)
    peak = peak_memory_bytes()
    np.save(decoded, np.concatenate([run(i) for i in range(len(stored))]).astype(np.float32))
    document = {
        "cold_start_seconds": cold,
        "warmup": warmup,
        "latency_seconds": seconds,
        "baseline_memory_bytes": baseline,
        "peak_memory_bytes": peak,
        "throttled": throttled(),
        "coremltools": ct.__version__,
    }
    result.write_text(json.dumps(document))


def peak_memory_bytes() -> int:
    """Most resident memory of this process; macOS counts in bytes, Linux in kilobytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def throttled() -> bool | None:
    """Whether the Mac slows itself down for heat; None where it does not report it."""
    try:
        done = subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    limits = [int(found) for found in re.findall(r"CPU_Speed_Limit\s*=\s*(\d+)", done.stdout)]
    if limits:
        return min(limits) < 100
    return False if "No thermal warning level" in done.stdout else None


if __name__ == "__main__":
    main(sys.argv[1:])
