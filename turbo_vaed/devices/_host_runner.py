"""Runs one ExecuTorch program in this very process: `turbo_vaed.devices.host` starts it.

Its arguments: RESULT PROGRAM LATENTS DECODED THREADS WARMUP SAMPLES. It knows of no model:
what it loads beyond the runtime (PyTorch, whose tensors the runtime's bindings take) is the
baseline that the memory figures are read against.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Measure, decode, and leave RESULT (JSON) and DECODED (.npy) behind."""
    result, program, latents, decoded = (Path(a) for a in arguments[:4])
    threads, warmup, samples = (int(a) for a in arguments[4:])

    import numpy as np
    import torch

    # The bindings themselves: `executorch.runtime` also loads the exporter, 13 s of imports.
    from executorch.extension.pybindings import (  # type: ignore[import-untyped, unused-ignore]
        _C as executorch,
    )

    executorch._unsafe_reset_threadpool(threads)
    if (found := executorch._threadpool_get_thread_count()) != threads:
        raise RuntimeError(f"the runtime has {found} threads, {threads} were asked for")
    stored = np.load(latents, mmap_mode="r")

    def clip(index: int) -> torch.Tensor:
        at = index % len(stored)
        return torch.from_numpy(np.array(stored[at : at + 1]))

    first = clip(0)
    baseline = peak_memory_bytes()
    start = time.perf_counter()
    loaded = executorch._load_program(
        str(program), program_verification=executorch.Verification.InternalConsistency
    )
    method = loaded.load_method("forward")
    method([first])
    cold_start_seconds = time.perf_counter() - start

    latency_seconds = []
    for i in range(warmup + samples):
        one = clip(i)
        start = time.perf_counter()
        method([one])
        seconds = time.perf_counter() - start
        if i >= warmup:
            latency_seconds.append(seconds)

    with decoded.open("wb") as stream:
        # Clip by clip: neither the output nor a mapping of it may count as the decoder's memory.
        for i in range(len(stored)):
            (video,) = method([clip(i)])
            if i == 0:
                header = {"descr": "<f4", "fortran_order": False}
                shape = (len(stored), *video.shape[1:])
                np.lib.format.write_array_header_1_0(stream, {**header, "shape": shape})
            stream.write(video.numpy().astype("<f4", copy=False).tobytes())
    document = {
        "cold_start_seconds": cold_start_seconds,
        "latency_seconds": latency_seconds,
        "baseline_memory_bytes": baseline,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    result.write_text(json.dumps(document), encoding="utf-8")


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
