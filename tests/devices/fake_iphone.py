"""An iPhone on the fake Mac: an `xcrun devicectl` that knows the options that are asked of it and
no others, the container of an app, and an app that does what docs/on-device.md asks and runs
`fake_program`. `IPHONE_TROUBLE` selects how they misbehave."""

import sys
from pathlib import Path

from tests.devices.fake_mac import make_mac

UDID, APP = "00008150-0000AAAA", "com.example.bench"
XCRUN = """#!{python} -IS
import argparse, json, os, shutil, subprocess, sys, time
from pathlib import Path
container, trouble = Path({container!r}), os.environ.get("IPHONE_TROUBLE", "")
arguments = sys.argv[1:]
if trouble == "no xcode":
    sys.exit('xcrun: error: unable to find utility "devicectl", not a developer tool')
assert arguments[:2] == ["devicectl", "device"], arguments
verb, what = arguments[2:4]
if trouble.startswith(f"say {{what}} "):
    sys.exit("ERROR: " + trouble.removeprefix(f"say {{what}} "))
if trouble == f"hang {{what}}":
    time.sleep(600)
known = argparse.ArgumentParser(allow_abbrev=False)
known.add_argument("--device", required=True)
if verb == "copy":
    for name in ("--domain-type", "--domain-identifier", "--source", "--destination"):
        known.add_argument(name, required=True)
if (verb, what) == ("copy", "to"):
    known.add_argument("--remove-existing-content", choices=["true", "false"], default="false")
if verb == "info":
    known.add_argument("--json-output", required=True)
if (verb, what) == ("info", "apps"):
    known.add_argument("--bundle-id")
if (verb, what) == ("process", "launch"):
    known.add_argument("--console", action="store_true", required=True)
    known.add_argument("--terminate-existing", action="store_true")
    known.add_argument("--environment-variables", type=json.loads, default={{}})
    known.add_argument("app")
given = known.parse_args(arguments[4:])
if given.device != {udid!r}:
    sys.exit("ERROR: The specified device was not found. (com.apple.dt.CoreDeviceError error 1000)")
if verb == "copy":
    assert (given.domain_type, given.domain_identifier) == ("appDataContainer", {app!r})
if what == "to":
    target = container / given.destination
    if given.remove_existing_content == "true":
        shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(given.source, target)
elif what == "from":
    if trouble == "lost":
        sys.exit("ERROR: The connection to the device was lost.")
    if not (container / given.source).is_file():
        sys.exit("ERROR: The file couldn't be opened because there is no such file.")
    if os.path.exists(given.destination):  # whether the real one replaces it is not documented
        sys.exit("ERROR: The file couldn't be saved because it exists already.")
    shutil.copy(container / given.source, given.destination)
    if trouble == "garbage" and given.source.endswith(".json"):
        Path(given.destination).write_text("<html>")
    if trouble == "short frames" and given.source.endswith(".bin"):
        os.truncate(given.destination, 10)
elif what == "details":
    found = {{"hardwareProperties": {{"marketingName": "iPhone 17", "productType": "iPhone18,3"}},
             "deviceProperties": {{"osVersionNumber": "26.1"}}}}
    Path(given.json_output).write_text(json.dumps({{"result": found}}))
elif what == "apps":
    apps = [] if trouble == "no app" else [{{"bundleIdentifier": given.bundle_id}}]
    Path(given.json_output).write_text(json.dumps({{"result": {{"apps": apps}}}}))
elif what == "launch":
    assert given.app == {app!r} and given.terminate_existing
    if trouble != "another app":
        environment = {{**os.environ, **given.environment_variables}}
        subprocess.run([sys.executable, "-IS", {program!r}], cwd=container, env=environment)
    if trouble == "second crash":
        count = len(list(container.glob("launched*")))
        (container / f"launched{{count}}").touch()
"""
PROGRAM = """
import json, math, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from fake_program import video_of
trouble = os.environ.get("IPHONE_TROUBLE", "")
job = json.loads(Path(os.environ["TURBO_VAED_JOB"]).read_text())
assert job["format"] == 2, job
here = Path(os.environ["TURBO_VAED_JOB"]).parent
results = Path("Documents/turbo-vaed-results")
results.mkdir(exist_ok=True)
def leave(**found):
    name = "0" * 32 if trouble == "stale" else job["job"]
    document = {{"job": name, "machine": "iPhone18,3, iOS 26.1", "runtime": "Core ML", **found}}
    (results / os.environ["TURBO_VAED_RESULT"]).write_text(json.dumps(document))
leave(state="began")
print("compute unit", job["compute_unit"])
if trouble == "crash" or trouble == "second crash" and Path("launched0").exists():
    print("Error in declaring network."); sys.stdout.flush()
    os.abort()
def late(*_):
    leave(state="failed", reason="it took too long"); os._exit(1)
signal.signal(signal.SIGALRM, late)
signal.alarm(job["seconds"])
if trouble == "slow":
    time.sleep(600)
latents = (here / job["latents"]).read_bytes()
size = {{"float16": 2, "float32": 4}}[job["latent_dtype"]] * math.prod(job["latent_shape"])
assert len(latents) == job["clips"] * size
run = lambda i: video_of(
    here / job["program"], latents[i * size : (i + 1) * size], math.prod(job["video_shape"]),
    job["latent_dtype"], job["video_dtype"],
)
seconds = []
for i in range(job["warmup"] + job["samples"]):
    start = time.perf_counter(); run(0); seconds.append(time.perf_counter() - start)
(results / "decoded.bin").write_bytes(b"".join(run(i) for i in range(job["clips"])))
if trouble == "unsteady":
    seconds = [0.01 if Path("started").exists() else 0.1 for _ in seconds]
    Path("started").touch()
found = dict(
    cold_start_seconds=0.5, warmup=job["warmup"], latency_seconds=seconds[job["warmup"] :],
    baseline_memory_bytes=30_000_000, peak_memory_bytes=50_000_000,
    throttled=bool(os.environ.get("HOT")),
)
if trouble == "forgetful":
    del found["throttled"]
leave(state="done", **found)
"""


def make_iphone(folder: Path, monkeypatch, io) -> Path:
    """Put the commands on the path; returns the container of the app on the phone."""
    make_mac(folder, monkeypatch, io)
    container, program, xcrun = folder / "container", folder / "app.py", folder / "commands/xcrun"
    (container / "Documents").mkdir(parents=True)
    program.write_text(PROGRAM.format(here=str(Path(__file__).parent)))
    xcrun.write_text(XCRUN.format(
        python=sys.executable, container=str(container), program=str(program), udid=UDID, app=APP
    ))  # fmt: skip
    xcrun.chmod(0o755)
    return container
