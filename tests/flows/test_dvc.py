"""What a stage's end means to the flow, and that a stage is stopped kindly before it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from flows import dvc, runs
from turbo_vaed.costs.db import engine
from turbo_vaed.errors import BudgetRefused, CorruptFile, DataRefused, Fault, Refused, UserError


@pytest.mark.parametrize(
    ("errors", "kind", "said"),
    [
        ("noise\nrefused: too dark\nERROR: failed to reproduce", DataRefused, "clip: too dark"),
        ("error: no such key\nsecond line\nERROR: x", UserError, "no such key\nsecond line"),
        ("corrupt: w.safetensors is cut\nERROR: x", CorruptFile, "w.safetensors"),
        ("fault: it broke\n", Fault, "it broke"),
        ("Traceback\nKeyError: 'x'\n", Fault, "KeyError: 'x'"),
        ("ERROR: Unable to acquire lock.", Refused, "lock"),
    ],
)
def test_a_stage_ends_in_the_error_that_it_printed(errors, kind, said):
    error = dvc._failure("clip", 1, errors)
    assert type(error) is kind or (kind is Refused and isinstance(error, Refused))
    assert said in str(error)
    assert "ERROR: x" not in str(error)


class State:
    def __init__(self, error):
        self.error = error

    def result(self, raise_on_failure):
        return self.error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Fault("lost a worker"), True),
        (CorruptFile("cut"), False),
        (UserError("no"), False),
        (BudgetRefused("no"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again):
    from flows.poc import is_worth_retrying

    assert is_worth_retrying(None, None, State(error)) is again


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
def test_a_stage_that_takes_too_long_is_interrupted_and_named(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  slow:\n    foreach: {tiny: {}}\n"
        f"    do:\n      cmd: {sys.executable} stage.py\n      deps: [stage.py]\n"
    )
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True
    )
    assert dvc.stale_stages(tmp_path, "tiny", ("slow",)) == ["slow"]
    with pytest.raises(Fault, match=r"slow took more than 12 s"):
        dvc.reproduce(tmp_path, "tiny", "slow", environment={}, timeout_seconds=12)
    assert (tmp_path / "started").exists()
    assert (tmp_path / "booked").exists()


def test_a_stage_may_wait_for_its_ledger_before_it_is_killed():
    """For the slice that is being written, and for its last one."""
    assert dvc._INTERRUPT_SECONDS > 2 * engine.BUSY_SECONDS


def test_one_flow_at_a_time_for_a_customer(tmp_path):
    with (
        runs.customer_lock(tmp_path, "acme"),
        pytest.raises(Refused, match="another run of acme"),
        runs.customer_lock(tmp_path, "acme"),
    ):
        pass
    with runs.customer_lock(tmp_path, "acme"):
        pass


def test_a_run_is_kept_and_read_back(tmp_path):
    assert runs.read(tmp_path) is None
    run = runs.write(tmp_path, runs.fresh("acme"))
    assert runs.read(tmp_path) == run
    assert run.status == "open"
    assert run.run_id.startswith("acme-")
    assert runs.verdict_sha256(tmp_path) == ""


def test_a_stage_is_run_again_by_force_although_dvc_knows_what_came_of_it(tmp_path):
    """A measurement that is to be made again must not come out of DVC's cache."""
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  gate:\n    foreach: [demo]\n    do:\n"
        "      cmd: date +%s%N > made && echo ran >> ran\n      outs: [made]\n"
    )
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)

    def run(*, force):
        dvc.reproduce(tmp_path, "demo", "gate", environment={}, timeout_seconds=60, force=force)
        return (tmp_path / "made").read_text()

    first = run(force=False)
    assert run(force=False) == first
    assert run(force=True) != first
    assert (tmp_path / "ran").read_text() == "ran\nran\n"
