"""Whether a measurement of a package can be trusted: quiet twice, then on a machine kept busy.

Run: python bench/measuring.py PACKAGE [--help]. Its last line is JSON, also written to
bench/results. The plan is that of params.yaml. PACKAGE is a folder that stage `export` or
`turbo-vaed poc` wrote. Quiet: two measurements should agree within 3 % of the median. Busy: a
process per processor turns round and round; the result should be refused, or its interval should
hold the quiet median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from turbo_vaed.devices import Measurement, Plan  # noqa: E402
from turbo_vaed.devices.host import machine, measure  # noqa: E402
from turbo_vaed.export import load_package  # noqa: E402
from turbo_vaed.workspace import Workspace  # noqa: E402

BURN = "while True: pass"


def once(package: Path, folder: Path) -> Measurement:
    workspace = Workspace.load(ROOT, "demo")
    latents = folder / "latents.npy"
    opened = load_package(package)
    shape = opened.io.latent_shape
    np.save(latents, np.random.default_rng(0).normal(size=(4, *shape[1:])).astype(np.float32))
    found = measure(
        opened, latents, plan=Plan.of(workspace.params.gate), out_folder=folder,
        timeout_seconds=600,
        max_background_cpu_share=workspace.params.gate.max_background_cpu_share,
    )  # fmt: skip
    assert isinstance(found, Measurement), found
    return found


def figures(found: Measurement) -> dict[str, Any]:
    latency = found.latency
    return {
        "median_seconds": latency.median,
        "interval_seconds": [latency.low, latency.high],
        "processes": found.processes,
        "background_cpu_share": found.background_cpu_share,
        "unreliable_reason": found.unreliable_reason,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/measuring.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        quiet = [once(given.package, Path(scratch)) for _ in range(2)]
        command = [sys.executable, "-c", BURN]
        others = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
        try:
            busy = once(given.package, Path(scratch))
        finally:
            for process in others:
                process.kill()
                process.wait()
    medians = [found.latency.median for found in quiet]
    document = {
        "quiet_difference": abs(medians[0] - medians[1]) / min(medians),
        "busy_is_refused": bool(busy.unreliable_reason),
        "busy_interval_holds_quiet_median": busy.latency.low <= medians[0] <= busy.latency.high,
        "quiet": [figures(found) for found in quiet],
        "busy": figures(busy),
        "target": load_package(given.package).target,
        "machine": machine(),
        "python": platform.python_version(),
    }
    given.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
