"""DVC as the flow drives it, with the real DVC and small stages: what is stale, what a stage's end
means, and that a stage is interrupted before it is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from flows import dvc, outputs, runs
from tests import configs
from turbo_vaed.config import pipeline
from turbo_vaed.costs.db import engine
from turbo_vaed.distill.history import write_curves
from turbo_vaed.errors import Fault, Refused, TurboVaedError, UserError
from turbo_vaed.runtime import files
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

ENDS = """\
import sys
from turbo_vaed.metering.outcome import recorded
from turbo_vaed import errors
class OnlyHere(errors.BudgetRefused): pass
print("error: a library says so", file=sys.stderr)
with recorded():
    raise {error}
"""


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvc")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    return root


@pytest.fixture
def root(tmp_path: Path, initialised: Path) -> Path:
    """A checkout that DVC knows, without a pipeline."""
    shutil.copytree(initialised, tmp_path, dirs_exist_ok=True)
    return tmp_path


def add_stage(root: Path, name: str, **stage: object) -> None:
    path = pipeline.folder(root, "tiny") / "dvc.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = yaml.safe_load(path.read_text()) if path.is_file() else {"stages": {}}
    made["stages"][name] = {"wdir": "../..", **stage}
    path.write_text(yaml.safe_dump(made))


def run(root: Path, stage: str, *, seconds: float = 60, force: bool = False) -> None:
    dvc.reproduce(root, "tiny", stage, environment={}, timeout_seconds=seconds, force=force)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("errors.DataRefused('too dark')", "DataRefused", "clip: too dark"),
        (
            "errors.CorruptFile('w.bin\\nis cut')",
            "CorruptFile",
            "clip: w.bin\nis cut",
        ),
        ("OnlyHere('month')", "BudgetRefused", "clip: month"),
        ("KeyError('x')", "Fault", "clip: KeyError: 'x'"),
    ],
)
def test_a_stage_ends_in_the_error_that_it_raised(root, error, kind, message):
    """Whatever else is on its stderr: a library there begins a line with `error:`."""
    (root / "stage.py").write_text(ENDS.format(error=error))
    add_stage(root, "clip", cmd=f"{sys.executable} stage.py")
    with pytest.raises(TurboVaedError) as raised:
        run(root, "clip")
    assert (type(raised.value).__name__, str(raised.value)) == (kind, message)


def test_a_killed_stage_is_a_fault_and_an_old_outcome_is_ignored(root):
    (root / "stage.py").write_text(ENDS.format(error="errors.UserError('an old mistake')"))
    add_stage(root, "clip", cmd=f"{sys.executable} stage.py")
    with pytest.raises(UserError):
        run(root, "clip")
    assert json.loads((root / "work/tiny/outcome/clip.json").read_text())["error"] == "UserError"
    add_stage(root, "clip", cmd="echo error: from a library >&2; kill -9 $$")
    with pytest.raises(Fault) as raised:
        run(root, "clip")
    assert type(raised.value) is not UserError and "from a library" in str(raised.value)


def test_a_stage_by_hand_writes_no_outcome(root, monkeypatch):
    from turbo_vaed.metering.outcome import recorded

    monkeypatch.chdir(root)
    before = set(root.rglob("*"))
    with recorded() as figures:
        figures["clips"] = 1
    assert set(root.rglob("*")) == before


STAGE = """\
import pathlib, time
pathlib.Path("started").touch()
try:
    time.sleep(100)
except KeyboardInterrupt:
    pathlib.Path("booked").touch()
    raise
"""


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["shell", "nohup"])
def interrupts(request):
    """What a flow that was started so does with interrupts, and hands on to its children."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_stage_that_takes_too_long_is_interrupted_and_named(root):
    (root / "stage.py").write_text(STAGE)
    add_stage(root, "slow", cmd=f"{sys.executable} stage.py", deps=["stage.py"])
    assert dvc.status(root, "tiny", ("slow",)).changed == ["slow"]
    with pytest.raises(Fault, match=r"slow took more than 3 s"):
        run(root, "slow", seconds=3)
    assert (root / "started").exists()
    assert (root / "booked").exists()


def test_a_stage_that_has_ended_is_not_stopped_while_dvc_waits_for_its_lock(root):
    """As where another customer's folder is hashed at that moment: the work would be lost."""
    waits = "from turbo_vaed.metering.outcome import recorded\nimport time\nwith recorded(): pass\n"
    (root / "stage.py").write_text(waits + "time.sleep(4)\nopen('out', 'w').close()\n")
    add_stage(root, "brief", cmd=f"{sys.executable} stage.py", outs=["out"])
    run(root, "brief", seconds=2)
    assert dvc.status(root, "tiny", ("brief",)).changed == []


def test_a_stage_may_wait_for_its_ledger_before_it_is_killed():
    """For the slice that is being written, and for its last one."""
    assert dvc._INTERRUPT_SECONDS > 2 * engine.BUSY_SECONDS


@pytest.mark.parametrize(("busy_times", "ends_well"), [(2, True), (10**6, False)])
def test_files_that_a_killed_run_still_uses_are_waited_for(monkeypatch, busy_times, ends_well):
    monkeypatch.setattr(dvc, "_BUSY_SECONDS", 0.2)
    tries = []

    def call(answer):
        tries.append(answer)
        if len(tries) <= busy_times:
            raise Refused("busy")
        return answer

    if ends_well:
        assert dvc._again_while_busy(call)("done") == "done" and len(tries) == 3
        return
    with pytest.raises(Refused, match="busy"):
        dvc._again_while_busy(call)("done")


def test_one_flow_at_a_time_for_a_customer(tmp_path):
    with (
        runs.customer_lock(tmp_path, "acme"),
        pytest.raises(Refused, match="another run for acme"),
        runs.customer_lock(tmp_path, "acme"),
    ):
        pass
    with runs.customer_lock(tmp_path, "acme"):
        pass


def test_a_run_is_written_and_read_back(tmp_path):
    assert runs.read(tmp_path) is None
    run = runs.write(tmp_path, runs.fresh("acme"))
    assert runs.read(tmp_path) == run
    assert run.status == "open"
    assert run.run_id.startswith("acme-")
    assert runs.verdict_sha256(tmp_path) == ""


def test_a_repeated_gate_keeps_its_last_verdict_until_the_new_one_is_whole(root):
    """DVC neither takes the new measurement out of its cache nor removes the last one before it."""
    real = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]["gate"]
    (out,) = real["outs"]
    ((_, flags),) = out.items()
    flags.pop("remote")
    command = "cat gate/verdict >> seen; mkdir -p gate; date +%s%N > gate/verdict"
    add_stage(root, "gate", cmd=command, outs=[{"gate": flags}])
    run(root, "gate")
    first = (root / "gate/verdict").read_text()
    run(root, "gate")
    assert (root / "gate/verdict").read_text() == first, "nothing has changed"
    run(root, "gate", force=True)
    assert (root / "gate/verdict").read_text() != first
    assert (root / "seen").read_text() == first, "it was readable while the gate measured again"


def test_a_customer_reads_and_writes_its_own_lock_only(root):
    add_stage(root, "clip", cmd="touch clip-tiny", outs=["clip-tiny"])
    other = pipeline.folder(root, "other")
    other.mkdir(parents=True)
    (other / "dvc.yaml").write_text("stages: [this, is, none]")
    (other / "dvc.lock").write_text("damaged")
    assert dvc.status(root, "tiny", ("clip",)).changed == ["clip"]
    run(root, "clip")
    assert dvc.status(root, "tiny", ("clip",)).changed == []
    lock = yaml.safe_load((pipeline.folder(root, "tiny") / "dvc.lock").read_text())
    assert list(lock["stages"]) == ["clip"]
    assert (other / "dvc.lock").read_text() == "damaged"


def test_a_pipeline_is_brought_up_to_date_with_the_params(tmp_path, monkeypatch):
    """Under the customer's lock, and so never below a run that goes on."""
    configs.copy_to(tmp_path)
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", tmp_path)
    monkeypatch.setattr(outputs.params, "run", lambda workspace: {})
    monkeypatch.setattr(outputs.remotes, "write", lambda *_: None)
    found = dvc.Status(changed=["clip"], missing=[])
    monkeypatch.setattr(dvc, "status", lambda *_: found)
    assert outputs.stale_stages(Workspace.load(tmp_path, "demo")) == ["clip"]
    made = yaml.safe_load((pipeline.folder(tmp_path, "demo") / "dvc.yaml").read_text())
    assert "data/demo" in made["stages"]["validate"]["deps"]


def test_a_stage_waits_for_the_lock_of_dvc(root):
    """Another customer's output is hashed meanwhile, say: what has been computed is not lost."""
    from zc.lockfile import LockFile

    add_stage(root, "clip", cmd="touch clip", outs=["clip"])
    held = LockFile(str(root / ".dvc/tmp/lock"))
    threading.Timer(7, held.close).start()
    before = time.monotonic()
    run(root, "clip")
    assert time.monotonic() - before > 5 and (root / "clip").exists()


def test_dvc_reports_a_customers_figures_and_curves(root):
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(Path(__file__).parents[2] / name, root)
    (root / ".gitignore").write_text("/work/\n")
    work = root / "work/tiny"
    for stage, figures in {"distill": {"best_val_psnr_db": 31.5}, "gate": {"fps": 30.0}}.items():
        files.write_json(work / stage / "figures.json", figures)
    write_curves([{"step": 1, "loss": 0.5}, {"step": 2, "val_psnr": 31.5}], work / "distill")
    pipeline.write(root, "tiny", "videos")

    def answer(*arguments: str) -> dict:
        command = [sys.executable, "-m", "dvc", *arguments, "--json"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    found = answer("metrics", "show")[""]["data"]
    assert found["work/tiny/distill/figures.json"]["data"] == {"best_val_psnr_db": 31.5}
    assert found["work/tiny/gate/figures.json"]["data"] == {"fps": 30.0}
    plots = answer("plots", "show")["data"]
    points = {name: plot[0]["content"]["data"]["values"] for name, plot in plots.items()}
    assert [row["psnr_db"] for row in points["tiny validation PSNR"]] == ["31.5"]
    assert [row["loss"] for row in points["tiny training loss"]] == ["0.5"]


@pytest.mark.parametrize("status", ["{}\nUpdate available\n", "[]\n"])
def test_a_status_that_is_no_json_object_is_a_fault(tmp_path, monkeypatch, status):
    monkeypatch.setattr(dvc, "_dvc", lambda *_, **__: (status, "a warning of DVC"))
    with pytest.raises(Fault, match="a warning of DVC"):
        dvc.status(tmp_path, "tiny", ("clip",))
