"""What the flow tries again, and for which stages it has a Ray."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import poc, runs, states
from flows.effects import Outcome
from flows.to_do import ToDo
from turbo_vaed.config.stages import STAGES
from turbo_vaed.errors import BudgetRefused, Busy, CorruptFile, Fault, Stopped, TimedOut, UserError


@pytest.mark.slow
def test_the_flow_is_imported_without_what_only_a_run_with_something_to_do_needs():
    """A run that finds nothing changed takes half the time and a third of the memory so."""
    heavy = "{'torch', 'mlflow', 'ray', 'pandas', 'great_expectations'}"
    code = f"import sys, flows.poc; sys.exit(' '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        (TimedOut("distill"), False),
        (UserError("no"), False),
        (BudgetRefused("no"), False),
    ],
)
def test_only_errors_that_may_pass_are_retried(error, again):
    assert poc.is_worth_retrying(None, None, State(error)) is again


@pytest.fixture
def flow_without_stages(monkeypatch):
    """`run_stages` on its own: what a stage, Ray or a push would do is appended to the list."""
    seen = []

    @contextmanager
    def ray(_settings):
        seen.append("Ray starts")
        yield {"RAY_ADDRESS": "here"}
        seen.append("Ray ends")

    def stage(name, **_options):
        def run(_settings, _customer, _stage, environment, **_):
            seen.append(f"{name} on Ray" if "RAY_ADDRESS" in environment else name)

        return run

    monkeypatch.setattr(poc, "own_ray", ray)
    monkeypatch.setattr(poc, "retries_of", lambda *_: 0)
    monkeypatch.setattr(poc, "run_stage", SimpleNamespace(with_options=stage))
    monkeypatch.setattr(poc, "get_run_logger", lambda: logging.getLogger("poc"))
    monkeypatch.setattr(poc.admission, "admit", lambda *_: "an estimate")
    monkeypatch.setattr(poc.effects, "start_tracking_idle_nodes", lambda *_: None)
    monkeypatch.setattr(poc, "push", lambda _, __, stages: seen.append(f"push to {stages[-1]}"))
    monkeypatch.setattr(poc.customer_state, "save", lambda *_: None)
    monkeypatch.setattr(poc.outputs, "pull_inputs", lambda *_: None)
    return seen


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (
            "validate",
            ["validate", "clip", "Ray starts", "encode on Ray", "push to encode", "distill on Ray",
             "push to distill", "Ray ends", "evaluate", "export", "gate"],
        ),
        ("evaluate", ["evaluate", "export", "gate"]),
    ],
)  # fmt: skip
def test_a_runs_own_ray_stands_for_the_stages_that_need_it(
    flow_without_stages, tmp_path, first, expected
):
    workspace = SimpleNamespace(customer="tiny", params=None, work=tmp_path)
    todo = ToDo(run=runs.fresh("tiny"), stale=list(STAGES[STAGES.index(first) :]))
    reached = poc.Reached(step=first)
    poc.run_stages(workspace, SimpleNamespace(), todo, reached, SimpleNamespace(token=1))
    assert flow_without_stages == expected
    assert reached.is_begun and reached.step == "gate"
    assert runs.read(tmp_path) == todo.run


def test_a_refused_run_leaves_the_record_of_the_last_one(
    flow_without_stages, monkeypatch, tmp_path
):
    """Else params that are changed back would find a run that is open, and has done nothing."""

    def refuse(*_):
        raise BudgetRefused("no")

    monkeypatch.setattr(poc.admission, "admit", refuse)
    last = runs.write(tmp_path, replace(runs.fresh("tiny"), status="done"))
    workspace = SimpleNamespace(customer="tiny", params=None, work=tmp_path)
    todo = ToDo(run=runs.fresh("tiny"), stale=["gate"])
    with pytest.raises(BudgetRefused):
        poc.run_stages(
            workspace, SimpleNamespace(), todo, poc.Reached(step="gate"), SimpleNamespace(token=1)
        )
    assert runs.read(tmp_path) == last and not flow_without_stages


def outcome(result, **given):
    return Outcome(sentence="s", report=Path("r"), run_id="x", result=result, **given)


@pytest.mark.parametrize(
    ("found", "name", "kind"),
    [
        (outcome("passes"), "Passed", "COMPLETED"),
        (outcome("fails"), "GateFailed", "FAILED"),
        (outcome("inconclusive"), "Inconclusive", "FAILED"),
        (outcome("fails", is_unchanged=True), "Unchanged", "COMPLETED"),
    ],
)
def test_the_state_of_a_flow_says_what_its_gate_found(found, name, kind):
    state = states.state_of(found)
    assert (state.name, state.type.value) == (name, kind)
    assert states.outcome_of(state) == found


@pytest.mark.parametrize(
    ("error", "name", "kind"),
    [
        (BudgetRefused("month"), "Refused", "FAILED"),
        (UserError("key"), "Fault", "FAILED"),
        (Fault("disk"), "Fault", "FAILED"),
        (Stopped("distill was stopped"), "Stopped", "CANCELLED"),
        (KeyError("bug"), "Fault", "FAILED"),
    ],
)
def test_the_state_of_a_flow_says_why_it_did_not_get_there(error, name, kind):
    error.add_note("report: /r")
    state = states.state_of_failure(error)
    assert (state.name, state.type.value) == (name, kind)
    assert str(error) in state.message and "report: /r" in state.message
    with pytest.raises(type(error)) as raised:
        states.outcome_of(state)
    assert raised.value is error


@pytest.mark.parametrize(("is_scheduled", "name"), [(True, "Skipped"), (False, "Refused")])
def test_only_a_scheduled_run_is_skipped_while_the_customer_runs(monkeypatch, is_scheduled, name):
    def run_poc(*_):
        raise Busy("a run of tiny is going on")

    monkeypatch.setattr(poc.Settings, "from_environment", lambda: None)
    monkeypatch.setattr(poc.late, "why_this_is_skipped", lambda *_: "")
    monkeypatch.setattr(poc.late, "is_scheduled", lambda _: is_scheduled)
    monkeypatch.setattr(poc, "run_poc", run_poc)
    state = poc.ended("tiny", "a flow run")
    assert state.name == name and "going on" in state.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stage_that_somebody_stops_is_no_fault(monkeypatch, number):
    """So that it is not tried again, and the flow still writes its report."""
    monkeypatch.setattr(poc.dvc, "reproduce", lambda *_, **__: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as of a shell
    try:
        with pytest.raises(Stopped) as stopped:
            poc.run_stage.fn(SimpleNamespace(root=None), "tiny", "distill", {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.exit_code == 130
    assert not poc.is_worth_retrying(None, None, State(stopped.value))
