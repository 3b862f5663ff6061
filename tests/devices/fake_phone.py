"""An Android phone that is this machine: an `adb` whose shell runs here, and a runner that has the
flags and the log of ExecuTorch's and runs `fake_program`. ADB_TROUBLE and RUNNER_TROUBLE
select how they misbehave, and the phone's clock runs CLOCK_SPEED times as fast."""

import math
import os
import shutil
import sys
from pathlib import Path

SERIAL = "R5C"
ADB = """#!{python} -IS
import os, shutil, subprocess, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments[:1] == ["-s"]:
    if arguments[1] != "R5C":
        sys.exit(f"adb: device '{{arguments[1]}}' not found")
    arguments = arguments[2:]
trouble = os.environ.get("ADB_TROUBLE", "")
verb, rest = arguments[0], arguments[1:]
pulled = Path(__file__).with_name("unplugged")
if pulled.exists():
    sys.exit("adb: device 'R5C' not found")
if trouble == "unplug" and verb == "shell" and "run.sh" in rest[0]:
    import signal, time
    running = subprocess.Popen(["sh", "-c", rest[0]], start_new_session=True)
    while not Path(rest[0].split()[1]).with_name("pid").exists():  # the program runs
        time.sleep(0.02)
    pulled.touch()
    os.killpg(running.pid, signal.SIGHUP)  # which is what adbd does
    sys.exit("error: device disconnected")
if trouble == f"hang {{verb}}":
    import time; time.sleep(600)
if trouble.startswith(f"say {{verb}} "):
    sys.exit(trouble.removeprefix(f"say {{verb}} "))
if verb == "push":
    shutil.copy(*rest)
elif verb == "pull":
    shutil.copytree(rest[0], rest[1], dirs_exist_ok=True)
elif verb == "shell":
    sys.exit(subprocess.run(["sh", "-c", rest[0]]).returncode)
"""
RUNNER = """#!{python} -IS
import os, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from fake_program import video_of
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
trouble = os.environ.get("RUNNER_TROUBLE", "")
if trouble == "crash":
    os.abort()
count = int(given["num_executions"])
if trouble == "hang":
    time.sleep(600)
if trouble == "slow" or trouble == "slow to time" and count > 1:
    time.sleep(float(os.environ["SLOW_SECONDS"]))
if trouble == "garbage":
    print("hello"); time.sleep(0.3); sys.exit(0)
latents = Path(given["inputs"]).read_bytes()
assert len(latents) == {latent_bytes}
weights = bytearray(b"1") * 20_000_000  # a peak that is seen from outside
print("I 00:00:00 executor_runner.cpp:333] Model loaded in 12.5 ms.", file=sys.stderr)
for i in range(count):
    start = time.perf_counter()
    video = video_of(Path(given["model_path"]), latents, {numbers})
    ms = (time.perf_counter() - start) * 1000
    if trouble == "unsteady":
        ms = 10.0 if os.path.exists("started") else 100.0
    print(f"I 00:00:00 x.cpp:1] Iteration {{i + 1}} of {{count}}: {{ms:.4f}} ms", file=sys.stderr)
open("started", "w").close()
with open(given["output_file"] + "-0.bin", "wb") as file:
    file.write(video)
if trouble == "grow":  # at its very end, where no look at /proc sees it
    held = bytearray(b"1") * 400_000_000
if trouble == "linger":  # for a look at /proc
    time.sleep(0.3)
"""
TOYBOX = """#!{python} -IS
import os, sys
if sys.argv[1:3] != ["time", "-v"]:
    sys.exit("toybox: Unknown command")
pid = os.spawnvp(os.P_NOWAIT, sys.argv[3], sys.argv[3:])
_, status, used = os.wait4(pid, 0)
print(f"Real time (s): 1\\nMax RSS (KiB): {{used.ru_maxrss}}\\nMajor faults: 0", file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""
GETPROP = """#!/bin/sh
case $1 in
  ro.product.manufacturer) echo Acme ;; ro.product.model) echo P1 ;;
  ro.build.version.release) echo 15 ;; ro.product.cpu.abi) echo arm64-v8a ;;
esac
"""
DATE = """#!/bin/sh
[ "$*" = +%s ] || exec {date} "$@"
echo $(($({date} +%s%3N) * ${{CLOCK_SPEED:-1}} / 1000))
"""
DUMPSYS = """#!/bin/sh
case $1 in
  thermalservice)
    echo "Thermal Status: ${HOT:-0}"
    [ "$DEGREES" ] || exit
    count=$(cat "$0.count" 2>/dev/null || echo 0)
    echo $((count + 1)) >"$0.count"
    set -- $DEGREES
    [ $count -lt $# ] && shift $count || shift $(($# - 1))
    echo "Current temperatures from HAL:"
    echo "	Temperature{mValue=$1, mType=3, mName=skin, mStatus=0}" ;;
  battery) echo " temperature: 312" ;;
esac
"""
DF = """#!/bin/sh
echo "Filesystem 1K-blocks Used Available Use% Mounted on"
echo "/dev/block/dm-5 1000 400 600 40% /data"
"""


def make_phone(folder: Path, monkeypatch, latent_shape, video_shape) -> Path:
    """Put the commands on the path; returns the runner."""
    commands = folder / "commands"
    commands.mkdir()
    runner = folder / "executor_runner"
    for path, text in (
        (commands / "adb", ADB.format(python=sys.executable)),
        (commands / "getprop", GETPROP),
        (commands / "date", DATE.format(date=shutil.which("date"))),
        (commands / "dumpsys", DUMPSYS),
        (commands / "toybox", TOYBOX.format(python=sys.executable)),
        (commands / "df", DF),
        (
            runner,
            RUNNER.format(
                python=sys.executable,
                here=str(Path(__file__).parent),
                latent_bytes=4 * math.prod(latent_shape),
                numbers=math.prod(video_shape),
            ),
        ),
    ):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return runner
