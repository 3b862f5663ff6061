"""A Mac that is this machine: `ssh` and `scp` that stay here, and a Python whose coremltools runs
`fake_program`. `MAC_TROUBLE` selects how they misbehave."""

import math
import os
import sys
from pathlib import Path

HOST = "me@studio.local"
SSH = """#!{python} -IS
import os, subprocess, sys, time
arguments = [a for a in sys.argv[1:]]
while arguments[0] == "-o":
    arguments = arguments[2:]
host, command = arguments
trouble = os.environ.get("MAC_TROUBLE", "")
if trouble == "hang ssh":
    time.sleep(600)
if trouble.startswith("say ssh "):
    print(trouble.removeprefix("say ssh "), file=sys.stderr)
    sys.exit(255)
if trouble == "lost" and "_apple_runner.py" in command:
    print("Connection to studio.local closed by remote host.", file=sys.stderr)
    sys.exit(255)
sys.exit(subprocess.run(["sh", "-c", command]).returncode)
"""
SCP = """#!{python} -IS
import os, shutil, sys
from pathlib import Path
arguments = [a for a in sys.argv[1:] if a != "-rq"]
while arguments[0] == "-o":
    arguments = arguments[2:]
source, target = (a.removeprefix("{host}:") for a in arguments)
trouble = os.environ.get("MAC_TROUBLE", "")
if trouble.startswith("say scp "):
    print(trouble.removeprefix("say scp "), file=sys.stderr)
    sys.exit(1)
if Path(source).is_dir():
    shutil.copytree(source, target)
else:
    shutil.copy(source, target)
if trouble == "garbage" and source.endswith("result0.json"):
    (Path(target) / "result0.json").write_text("<html>")
"""
PYTHON = """#!{python}
import os, runpy, sys, time
trouble = os.environ.get("MAC_TROUBLE", "")
if sys.argv[1] == "-c":
    if trouble == "no coremltools":
        sys.exit("ModuleNotFoundError: No module named 'coremltools'")
    sys.exit(0)
if trouble == "crash":
    sys.exit("Error in declaring network.")
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
import numpy as np
sys.path.insert(0, {here!r})
from fake_program import video_of

class MLModel:
    def __init__(self, path, compute_units):
        print("compute unit", compute_units.name)
        self._path = Path(path)
    def get_spec(self):
        features = {{name: [SimpleNamespace(name=f"the {{name}}")] for name in ("input", "output")}}
        return SimpleNamespace(description=SimpleNamespace(**features))
    def predict(self, given):
        if trouble == "hang":
            time.sleep(600)
        if trouble == "unsteady":
            time.sleep(0.01 if os.path.exists("result0.json") else 0.1)
        latents = given["the input"]
        assert (latents.shape, latents.dtype) == ({latents}, np.float32)
        video = video_of(self._path, latents.tobytes(), {numbers})
        return {{"the output": np.frombuffer(video, np.float32).reshape({video})}}

ct = sys.modules["coremltools"] = ModuleType("coremltools")
ct.__version__, ct.models = "9.0", SimpleNamespace(MLModel=MLModel)
ct.ComputeUnit = Enum("ComputeUnit", "CPU_ONLY CPU_AND_GPU CPU_AND_NE ALL")
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SYSCTL = "#!/bin/sh\necho Apple M4 Pro\n"
SW_VERS = "#!/bin/sh\necho 26.1\n"
PMSET = '#!/bin/sh\necho " CPU_Speed_Limit = ${SPEED:-100}"\n'


def make_mac(folder: Path, monkeypatch, io) -> Path:
    """Put the commands on the path; returns the Mac's Python, for programs of that `IoSpec`."""
    commands = folder / "commands"
    commands.mkdir()
    python = folder / "python3"
    for path, text in (
        (commands / "ssh", SSH.format(python=sys.executable)),
        (commands / "scp", SCP.format(python=sys.executable, host=HOST)),
        (commands / "sysctl", SYSCTL),
        (commands / "sw_vers", SW_VERS),
        (commands / "pmset", PMSET),
        (
            python,
            PYTHON.format(
                python=sys.executable,
                here=str(Path(__file__).parent),
                latents=io.latent_shape,
                video=io.video_shape,
                numbers=math.prod(io.video_shape),
            ),
        ),
    ):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return python
