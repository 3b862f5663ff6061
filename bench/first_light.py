"""Time set-up, `make poc` and its re-run in a fresh clone of HEAD, and the memory they take.

Run: make bench. Its last line is JSON; it is also written to bench/results/first_light.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


class PeakMemory:
    """Highest sum of the proportional set sizes of all processes that began after this, bytes.

    Ray and Prefect detach some of theirs, so descendants alone would not do: run nothing else.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._before = set(psutil.pids())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(2):
            total = 0
            for process in psutil.process_iter():
                if process.pid in self._before:
                    continue
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, FileNotFoundError):
                    continue
            self.bytes = max(self.bytes, total)


def timed(command: list[str], cwd: Path) -> tuple[float, int]:
    """Seconds that a command took, and the peak memory of everything it started."""
    began = time.monotonic()
    with PeakMemory() as peak:
        subprocess.run(command, cwd=cwd, check=True)
    return round(time.monotonic() - began, 1), peak.bytes


def main() -> None:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
        result["set_up_seconds"], _ = timed(["make", "setup"], checkout)
        result["poc_seconds"], peak = timed(["make", "poc"], checkout)
        result["poc_peak_memory_gb"] = round(peak / 1e9, 2)
        result["poc_again_seconds"], _ = timed(["make", "poc"], checkout)
        demo = checkout / "work/demo"
        evaluation = json.loads((demo / "evaluate/evaluation.json").read_text())
        history = json.loads((demo / "distill/history.json").read_text())
        measurement = json.loads((demo / "gate/measurement.json").read_text())
        figures = {p.parent.name: json.loads(p.read_text()) for p in demo.glob("*/figures.json")}
    result |= {
        "teacher_psnr_db": round(evaluation["teacher"]["psnr"]["mean"], 3),
        "student_psnr_db": round(evaluation["student"]["psnr"]["mean"], 3),
        "psnr_retention": round(evaluation["retention"]["psnr"], 4),
        "student_share_of_decoder_parameters": round(
            history["student_parameters"] / history["teacher_decoder_parameters"], 4
        ),
        "parity_psnr_db": measurement["parity_psnr_db"],
        "parity_cap_db": 100,
        "latency_ratio_to_teacher": figures["gate"].get("latency_ratio"),
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {n: version(n) for n in ("torch", "ray", "prefect", "dvc", "mlflow")},
    }
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    (results / "first_light.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
