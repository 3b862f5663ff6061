"""Runs one program in this very process: `turbo_vaed.devices.host` starts it.

Its arguments: RESULT RUNTIME PROGRAM LATENTS DECODED PLAN; the plan is JSON, `null` to decode
and measure nothing. It knows of no model: what it loads beyond the runtime is the baseline that
the memory figures are read against.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from turbo_vaed.devices._runtimes import Run


def main(arguments: list[str]) -> None:
    """Measure, decode, and leave RESULT (JSON) and DECODED (.npy) behind."""
    result, program, latents, decoded = (Path(arguments[i]) for i in (0, 2, 3, 4))
    runtime, plan = arguments[1], json.loads(arguments[5])

    import numpy as np

    from turbo_vaed.devices._runtimes import open_program, prepare

    prepare(runtime)
    stored = np.load(latents, mmap_mode="r")

    def clip(index: int) -> NDArray[np.float32]:
        at = index % len(stored)
        return np.array(stored[at : at + 1])

    first = clip(0)
    baseline = peak_memory_bytes()
    start = time.perf_counter()
    run = open_program(runtime, program, 1 if plan is None else plan["threads"])
    run(first)
    cold_start_seconds = time.perf_counter() - start
    document: dict[str, Any] = {} if plan is None else _measure(run, clip, plan)
    _decode(run, clip, len(stored), decoded)
    document |= {
        "cold_start_seconds": cold_start_seconds,
        "baseline_memory_bytes": baseline,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    result.write_text(json.dumps(document), encoding="utf-8")


def _measure(
    run: Run, clip: Callable[[int], NDArray[np.float32]], arguments: dict[str, Any]
) -> dict[str, Any]:
    from turbo_vaed.devices import _machine
    from turbo_vaed.devices.timing import Plan, sample, warm_up

    plan, turn = Plan(**arguments), 0

    def once() -> float:
        nonlocal turn
        one = clip(turn)
        turn += 1
        start = time.perf_counter()
        run(one)
        return time.perf_counter() - start

    warmup = warm_up(once, plan.max_warmup)
    before = _machine.state()
    seconds = sample(once, plan)
    meanwhile = asdict(_machine.between(before, _machine.state()))
    return {"warmup": warmup, "latency_seconds": seconds, **meanwhile}


def _decode(
    run: Run, clip: Callable[[int], NDArray[np.float32]], clips: int, decoded: Path
) -> None:
    """Clip by clip: neither the output nor a mapping of it may count as the decoder's memory."""
    import numpy as np

    with decoded.open("wb") as stream:
        for i in range(clips):
            video = run(clip(i))
            if i == 0:
                header = {"descr": "<f4", "fortran_order": False}
                shape = (clips, *video.shape[1:])
                np.lib.format.write_array_header_1_0(stream, {**header, "shape": shape})
            stream.write(video.astype("<f4", copy=False).tobytes())


def peak_memory_bytes() -> int:
    """Most resident memory of this process since it began to run this program.

    On Linux from VmHWM: ru_maxrss keeps the parent's peak from before the exec, so that a big
    parent would be taken for a big decoder.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except FileNotFoundError:  # macOS, where ru_maxrss is in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
