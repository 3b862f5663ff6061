"""A Mac that is this machine: `ssh` and `scp` that stay here, and a Python whose Core ML is our
interpreter of its programs where `MAC_IS_REAL` is set. `MAC_TROUBLE` selects how they misbehave."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
from pathlib import Path
import numpy as np

if os.environ.get("MAC_IS_REAL"):
    import coremltools as ct
    from turbo_vaed.export.mil import open_mlpackage
else:  # what is tried is what becomes of the runner
    from enum import Enum
    from types import ModuleType, SimpleNamespace
    ct = sys.modules["coremltools"] = ModuleType("coremltools")
    ct.__version__, ct.models = "0", SimpleNamespace()
    ct.ComputeUnit = Enum("ComputeUnit", "CPU_ONLY CPU_AND_GPU CPU_AND_NE ALL")
    feature = SimpleNamespace(name="x")
    spec = SimpleNamespace(description=SimpleNamespace(input=[feature], output=[feature]))
    ct.utils = SimpleNamespace(load_spec=lambda path: spec)
    open_mlpackage = lambda path: lambda latents: np.zeros({video}, np.float32)

class MLModel:
    def __init__(self, path, compute_units):
        print("compute unit", compute_units.name)
        self._run, self._spec = open_mlpackage(Path(path)), ct.utils.load_spec(path)
    def get_spec(self):
        return self._spec
    def predict(self, given):
        if trouble == "hang":
            time.sleep(600)
        if trouble == "unsteady":
            time.sleep(0.01 if os.path.exists("result0.json") else 0.1)
        (latents,) = given.values()
        return {{self._spec.description.output[0].name: self._run(latents)}}

ct.models.MLModel = MLModel
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SYSCTL = "#!/bin/sh\necho Apple M4 Pro\n"
SW_VERS = "#!/bin/sh\necho 26.1\n"
PMSET = '#!/bin/sh\necho " CPU_Speed_Limit = ${SPEED:-100}"\n'


def make_mac(folder: Path, monkeypatch, video_shape) -> Path:
    """Put the commands on the path; returns the Mac's Python."""
    commands = folder / "commands"
    commands.mkdir()
    python = folder / "python3"
    for path, text in (
        (commands / "ssh", SSH.format(python=sys.executable)),
        (commands / "scp", SCP.format(python=sys.executable, host=HOST)),
        (commands / "sysctl", SYSCTL),
        (commands / "sw_vers", SW_VERS),
        (commands / "pmset", PMSET),
        (python, PYTHON.format(python=sys.executable, video=video_shape)),
    ):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return python
