"""The budget's policy on 10,000 random markets: how long the replay takes, and what it comes to.

Run: python bench/simulate.py [--help]. Its last line is JSON, also written to bench/results.
`seconds` is the command `turbo-vaed cost simulate` as a person runs it; `ratio_vs_one_process` is
against the same in one process. Every seed must keep every budget, or the bench fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.decode import cpu_name  # noqa: E402
from turbo_vaed.costs.simulate import simulate, summary  # noqa: E402


def run_command(traces: int, seed: int) -> tuple[float, dict[str, Any]]:
    """Seconds and figures of `turbo-vaed cost simulate`."""
    command = [sys.executable, "-m", "turbo_vaed.cli", "cost", "simulate", "--traces", str(traces),
               "--seed", str(seed), "--format", "json"]  # fmt: skip
    start = time.perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return time.perf_counter() - start, found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--traces", type=int, default=10_000)
    arguments.add_argument("--seeds", type=int, default=2, help="1 to so many")
    arguments.add_argument("--out", type=Path, default=ROOT / "bench/results/simulate.json")
    given = arguments.parse_args()
    seconds, by_seed = [], {}
    for seed in range(1, given.seeds + 1):
        took, by_seed[str(seed)] = run_command(given.traces, seed)
        seconds.append(took)
        assert by_seed[str(seed)]["overspent"] == 0, f"seed {seed} passed a budget"
    start = time.perf_counter()
    alone = summary(simulate(given.traces, 1, processes=1))
    one_process = time.perf_counter() - start
    assert alone == by_seed["1"], "the number of processes changes nothing"
    result = {
        "seconds": round(min(seconds), 2),
        "one_process_seconds": round(one_process, 2),
        "ratio_vs_one_process": round(one_process / min(seconds), 2),
        "seeds": by_seed,
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {"numpy": version("numpy")},
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
