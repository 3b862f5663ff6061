"""ExecuTorch's `executor_runner` on Android: what is brought there, and what it leaves.

Flags and lines are those of examples/portable/executor_runner of ExecuTorch 1.x, built with the
log of PAL `posix`, which goes to stderr. The script limits the time itself, so that it ends
also where the cable was pulled.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from turbo_vaed.devices import _heat, host
from turbo_vaed.devices.device import RAW_DTYPES
from turbo_vaed.devices.measurement import DECODED_NAME, NOT_REPORTED, Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.export.package import Package

RUNTIMES = ("executorch-xnnpack",)
RUNNER, SCRIPT = "executor_runner", "run.sh"

_LOADED = re.compile(r"Model loaded in ([0-9.]+) ms")
_ITERATION = re.compile(r"Iteration (\d+) of (\d+): ([0-9.]+) ms")
REPEATS = 2
TIMEOUT_CODE, LATE_CODE = 124, 123
"""Of a process that took too long; and where all of them together did."""
WEEK_SECONDS = 7 * 86_400.0

HEAT_SECONDS = 5
"""Between looks at a program that is timed: each takes some hundredths of a second of one core."""
_SCRIPT = """\
cd "$(dirname "$0")" || exit 90
rm -f code heat failed.log memory.new timed* clip*  # of a round before
trap 'kill -9 $runner $pid 2>/dev/null' HUP TERM EXIT
timer= until=$(($(date +%s) + {whole}))
toybox time -v true 2>&1 | grep -q "Max RSS" && timer="toybox time -v"
heat() {{
  {{ echo "{mark}"; dumpsys thermalservice; dumpsys battery; }} >>heat 2>/dev/null
  look=$(($(date +%s) + {heat_seconds}))
}}
one() {{
  rm -f pid
  flags="--model_path={program} --inputs=$3 --output_file=$1 --num_executions=$2 \
--cpu_threads={threads} --print_output=none"
  if [ "$timer" ]; then
    $timer sh -c 'echo $$ >pid; exec ./executor_runner "$@" 2>&1' sh $flags \
>$1.log 2>$1.rss </dev/null &
  else
    ./executor_runner $flags >$1.log 2>&1 </dev/null &
    echo $! >pid
  fi
  pid=$! runner=
  end=$(($(date +%s) + {seconds})) stopped={timeout}
  [ $end -le $until ] || {{ end=$until; stopped={late}; }}
  while kill -0 $pid 2>/dev/null; do
    [ -s pid ] && read runner <pid
    if [ -z "$timer" ] && [ "$runner" ]; then
      grep VmHWM /proc/$runner/status >memory.new 2>/dev/null
      [ -s memory.new ] && mv memory.new $1.memory
    fi
    now=$(date +%s)
    if [ $now -ge $end ]; then kill -9 $runner $pid; wait $pid; echo $stopped >code; exit 0; fi
    [ "$4" ] && [ $now -ge $look ] && heat
    sleep 0.1
  done
  wait $pid; code=$?
  runner= pid=
  echo $code >code
  [ $code -eq 0 ] || {{ mv $1.log failed.log; exit 0; }}
}}
{runs}
"""


def executions(plan: Plan) -> int:
    """Of one timed process: the cold one, the warm-up, the samples; the runner cannot adapt."""
    return 1 + plan.max_warmup + plan.max_samples


def script(package: Package, plan: Plan, clips: int, seconds: float, whole_seconds: float) -> str:
    """For /system/bin/sh in the folder of runner, program and inputs; leaves `code`, the runner's
    exit code, the log and peak memory of each process, what it put out, and how hot it was before,
    between and after the timed ones, and every few seconds while one runs."""
    timed = [f"one timed{i} {executions(plan)} in0.bin watched; heat" for i in range(REPEATS)]
    decoded = [f"one clip{i} 1 in{i}.bin" for i in range(clips)]
    return _SCRIPT.format(
        program=package.program,
        threads=plan.threads,
        seconds=max(1, int(seconds)),
        whole=int(whole_seconds),
        timeout=TIMEOUT_CODE,
        late=LATE_CODE,
        mark=_heat.MARK,
        heat_seconds=HEAT_SECONDS,
        runs="\n".join(["heat", *timed, *decoded]),
    )


def check_runner(runner: Path, device: str) -> None:
    """Raises UserError where it is not there."""
    if not runner.is_file():
        raise UserError(f"{runner}: no such runner; turbo-vaed devices probe {device}")


HOW_TO_GET_THE_RUNNER = (
    "build executor_runner of ExecuTorch 1.x for the phone, with EXECUTORCH_BUILD_XNNPACK and "
    "EXECUTORCH_ENABLE_LOGGING"
)


def write_inputs(
    package: Package,
    latents_npy: Path,
    plan: Plan,
    folder: Path,
    *,
    timeout_seconds: float,
    whole_seconds: float = WEEK_SECONDS,
) -> int:
    """Write each clip of latents, and the script, into `folder`; how many clips there are.

    Args:
        timeout_seconds: of each process.
        whole_seconds: of all of them together.
    """
    import numpy as np

    io = package.io
    clips = host.check_latents(latents_npy, io.latent_shape)
    latents = np.load(latents_npy, mmap_mode="r")
    for i in range(clips):
        data = latents[i].astype(RAW_DTYPES[io.latent_dtype]).tobytes()
        (folder / f"in{i}.bin").write_bytes(data)
    (folder / SCRIPT).write_text(script(package, plan, clips, timeout_seconds, whole_seconds))
    return clips


@dataclass(frozen=True, kw_only=True)
class Phone:
    """Which phone it was, for a person."""

    name: str
    machine: str


def read_outputs(
    folder: Path, phone: Phone, package: Package, plan: Plan, clips: int, out_folder: Path
) -> Measurement | Failed:
    """What the script left in `folder`; the clips' frames become `out_folder/decoded.npy`.

    Raises:
        Fault: something is missing, or is not what the runner would leave.
    """
    common = {
        "device": phone.name,
        "machine": phone.machine,
        "runtime": f"executor_runner ({package.runtime})",
        "package_sha256": package.sha256,
    }
    code = _text(folder / "code").strip()
    if not code.isdigit():
        raise Fault(f"{phone.name} left no exit code of the runner, found {code!r}")
    if code != "0":
        last = _text(folder / "failed.log").strip()[-500:] or "none"
        how = {
            str(TIMEOUT_CODE): "was stopped, it took too long",
            str(LATE_CODE): "was stopped: all runs together took longer than the device's job "
            "allows",
        }.get(code, f"failed with exit code {code}")
        return Failed(**common, reason=f"the runner {how}; its last words: {last}")
    out_folder.mkdir(parents=True, exist_ok=True)
    _decoded(folder, package, clips, out_folder / DECODED_NAME)
    runs, heat = [], asdict(_heat.read_heat(_text(folder / "heat")))
    for i in range(REPEATS):
        cold, seconds, peak = read_timed(folder, f"timed{i}", plan)
        try:
            found = Measurement.from_json({
                **common,
                "threads": plan.threads, "warmup": plan.max_warmup,
                "confidence": plan.confidence, "seconds_by_process": [seconds],
                "frames": package.io.video_shape[2], "cold_start_seconds": cold,
                "peak_memory_bytes": peak, "baseline_memory_bytes": None, "clips": clips,
                **NOT_REPORTED, **heat,
            })  # fmt: skip
        except ValueError as error:
            raise Fault(f"{phone.name} sent an invalid report: {error}") from error
        runs.append(found)
    return host.joined(runs, plan, 1.0)


def _decoded(folder: Path, package: Package, clips: int, path: Path) -> None:
    """Put the clips' frames together in one .npy.

    Raises:
        Fault: a clip is missing, or has not the size that the package promises.
    """
    import numpy as np

    shape, dtype = package.io.video_shape[1:], np.dtype(RAW_DTYPES[package.io.video_dtype])
    size = int(np.prod(shape)) * dtype.itemsize
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(clips, *shape))
    for i in range(clips):
        made = folder / f"clip{i}-0.bin"
        found = made.stat().st_size if made.is_file() else 0
        if found != size:
            path.unlink()
            raise Fault(f"the device put out {found} bytes for clip {i}, {size} were expected")
        out[i] = np.fromfile(made, dtype=dtype).reshape(shape)
    out.flush()


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
            f"the phone's runner reported {len(found)} runs, expected {count}; it has to be "
            "executor_runner of ExecuTorch 1.x with logging on "
            f"(EXECUTORCH_ENABLE_LOGGING, PAL posix); its log: {log[-500:] or 'nothing'}"
        )
    peak = _peak_bytes(folder, name)
    seconds = [float(ms) / 1000 for _, _, ms in found]
    cold = float(loaded[1]) / 1000 + seconds[0]
    return cold, seconds[1 + plan.max_warmup :], peak


def _peak_bytes(folder: Path, name: str) -> int:
    """Most resident memory of one process: what the kernel counted until its end where the phone's
    `time -v` reports it, else the last VmHWM, which misses what came in its last 0.1 s.

    Raises:
        Fault: neither is there.
    """
    at_end = re.search(r"Max RSS \(KiB\): (\d+)", _text(folder / f"{name}.rss"))
    polled = re.search(r"VmHWM:\s+(\d+) kB", _text(folder / f"{name}.memory"))
    kib = [int(found[1]) for found in (at_end, polled) if found is not None]
    if not kib:
        raise Fault(
            "the phone reported no peak memory of the runner: its toybox has no `time -v`, and the "
            "program ended within 0.1 s, before /proc could be read"
        )
    return max(kib) * 1024


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
