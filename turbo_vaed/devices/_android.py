"""ExecuTorch's `executor_runner` on Android: the script that runs it, and what it prints.

Flags and lines are those of examples/portable/executor_runner of ExecuTorch 1.x, built with the
log of PAL `posix`, which goes to stderr. The script limits the time itself, so that it ends
also where the cable was pulled.
"""

from __future__ import annotations

import re
from pathlib import Path

from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault
from turbo_vaed.export.package import Package

_LOADED = re.compile(r"Model loaded in ([0-9.]+) ms")
_ITERATION = re.compile(r"Iteration (\d+) of (\d+): ([0-9.]+) ms")
REPEATS = 2
TIMEOUT_CODE = 124

_SCRIPT = """\
cd "$(dirname "$0")" || exit 90
trap 'kill -9 $pid 2>/dev/null' HUP TERM EXIT
one() {{
  ./executor_runner --model_path={program} --inputs=$3 --output_file=$1 --num_executions=$2 \
--cpu_threads={threads} --print_output=none >$1.log 2>&1 </dev/null &
  pid=$!
  end=$(($(date +%s) + {seconds}))
  while kill -0 $pid 2>/dev/null; do
    grep VmHWM /proc/$pid/status >memory.new 2>/dev/null
    [ -s memory.new ] && mv memory.new $1.memory
    if [ $(date +%s) -ge $end ]; then kill -9 $pid; wait $pid; echo {timeout} >code; exit 0; fi
    sleep 0.1
  done
  wait $pid; code=$?
  echo $code >code
  [ $code -eq 0 ] || {{ mv $1.log failed.log; exit 0; }}
}}
{runs}
"""


def executions(plan: Plan) -> int:
    """Of one timed process: the cold one, the warm-up, the samples; the runner cannot adapt."""
    return 1 + plan.max_warmup + plan.max_samples


def script(package: Package, plan: Plan, clips: int, seconds: float) -> str:
    """For /system/bin/sh in the folder of runner, program and inputs; leaves `code`, the runner's
    exit code, the log and peak memory of each process, and what it put out."""
    timed = [f"one timed{i} {executions(plan)} in0.bin" for i in range(REPEATS)]
    decoded = [f"one clip{i} 1 in{i}.bin" for i in range(clips)]
    return _SCRIPT.format(
        program=package.program,
        threads=plan.threads,
        seconds=max(1, int(seconds)),
        timeout=TIMEOUT_CODE,
        runs="\n".join(timed + decoded),
    )


def read_timed(folder: Path, name: str, plan: Plan) -> tuple[float, list[float], int]:
    """Cold start in seconds, seconds of the samples, and peak memory in bytes, of one process.

    Raises:
        Fault: it printed something else.
    """
    log = _text(folder / f"{name}.log")
    loaded, found = _LOADED.search(log), _ITERATION.findall(log)
    count = executions(plan)
    if loaded is None or [int(i) for i, _, _ in found] != list(range(1, count + 1)):
        raise Fault(
            f"the phone's runner told of {len(found)} runs, {count} were asked for; it has to be "
            "executor_runner of ExecuTorch 1.x with logging on "
            f"(EXECUTORCH_ENABLE_LOGGING, PAL posix); it said: {log[-500:] or 'nothing'}"
        )
    memory = re.search(r"VmHWM:\s+(\d+) kB", _text(folder / f"{name}.memory"))
    if memory is None:
        raise Fault("the phone told no peak memory of the runner: it ended within 0.1 s")
    seconds = [float(ms) / 1000 for _, _, ms in found]
    cold = float(loaded[1]) / 1000 + seconds[0]
    return cold, seconds[1 + plan.max_warmup :], int(memory[1]) * 1024


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
