"""A verdict that is inconclusive because the machine was busy is measured again when the run is
started again; a pass or a fail is not."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import admission, effects, runs, to_do
from flows import poc as flow
from tests.gate import made_up
from turbo_vaed.gate import judge, write_verdict


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "gate").mkdir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").touch()
    return tmp_path


BUSY = "the machine was busy"


def judged(work: Path, open_: dict[str, str], unreliable_reason: str = "") -> SimpleNamespace:
    """The place of a customer whose gate found the chosen package's checks in `open_` failed or
    inconclusive, and the other package hot."""
    evidence = made_up.evidence(unknown={k: BUSY for k, v in open_.items() if v == "inconclusive"})
    if "psnr" in open_ and open_["psnr"] == "fails":
        evidence = replace(evidence, psnr_db=1.0)
    verdict = judge(
        evidence, customer="demo", use_case="education", thresholds=made_up.use_case(),
        min_parity_psnr=60.0, package_sha256="a" * 64, data_sha256="b" * 64,
        git_revision="c" * 40, created="2026-11-27T00:00:00+00:00",
    )  # fmt: skip
    write_verdict(verdict, work / "gate")
    rows = [
        {"name": "a", "unreliable_reason": unreliable_reason},
        {"name": "b", "unreliable_reason": "hot"},
    ]
    (work / "gate" / "choice.json").write_text(json.dumps({"chosen": "a", "candidates": rows}))
    report = work / "report" / "report.html"
    return SimpleNamespace(customer="demo", work=work, report=report, folder=work.joinpath)


INCONCLUSIVE = {"fps": "inconclusive", "latency_ratio": "inconclusive"}


@pytest.mark.parametrize(
    ("open_", "unreliable_reason", "why"),
    [
        (INCONCLUSIVE, BUSY, "busy"),
        (INCONCLUSIVE, "", ""),  # quiet, and its interval crosses the limit
        ({}, BUSY, ""),
        (INCONCLUSIVE | {"psnr": "fails"}, BUSY, ""),
        (INCONCLUSIVE | {"flicker_ratio": "inconclusive"}, BUSY, ""),
    ],
)
def test_only_checks_that_measuring_again_may_decide_repeat_the_gate(
    work, open_, unreliable_reason, why
):
    """Nothing of a student whose quality is in doubt, whatever the machine did."""
    found = to_do.inconclusive_reason(judged(work, open_, unreliable_reason))
    assert (why in found) if why else (found == "")
    outcome = effects.outcome(judged(work, open_, unreliable_reason), runs.fresh("demo"), "Ended.")
    assert outcome.sentence.startswith("Ended.")
    assert ("command again" in outcome.sentence and why in outcome.sentence) == bool(why)


@pytest.mark.parametrize(("result", "again"), [("inconclusive", True), ("passes", False)])
def test_a_run_started_again_repeats_only_the_gate(work, monkeypatch, result, again):
    workspace = judged(work, INCONCLUSIVE if again else {}, BUSY if again else "")
    done = runs.write(work, runs.fresh("demo"))
    verdict = runs.verdict_sha256(work)
    runs.write(work, runs.Run(run_id=done.run_id, started=done.started, status="done",
                              verdict_sha256=verdict))  # fmt: skip
    ran, released = [], []
    monkeypatch.setattr(admission, "release", lambda _, run: released.append(run))
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("test"))
    settings = SimpleNamespace(ledger_url=f"sqlite:///{work}/ledger.db")
    monkeypatch.setattr(to_do, "has_begun", lambda *_: False)
    monkeypatch.setattr(admission, "opened", lambda *_: workspace)
    monkeypatch.setattr(admission, "require_ready", lambda *_: None)
    monkeypatch.setattr(effects, "unchanged", lambda *_: "unchanged")
    monkeypatch.setattr(flow.outputs, "stale_stages", lambda *_: [])
    monkeypatch.setattr(to_do, "run_with_more_budget", lambda *_: None)

    def complete(_workspace, _settings, todo, *_):
        runs.write(work, todo.run)  # as once it is admitted
        ran.append(todo)

    monkeypatch.setattr(flow, "complete", complete)
    monkeypatch.setattr(flow.open_run, "tag", lambda *_: None)
    found = flow.run_poc(settings, "demo")
    if not again:
        assert found == "unchanged" and not ran
        return
    (todo,) = ran
    run = todo.run
    assert released == [run.run_id], "its month is free for others"
    assert (run.run_id, run.status, run.measures_again) == (done.run_id, "open", True)
    assert (todo.stages, todo.forced) == (("gate",), "gate")
    flow.run_poc(settings, "demo")  # the first one was stopped on its way
    assert ran[1] == ran[0]
    more = runs.fresh("demo")
    monkeypatch.setattr(to_do, "run_with_more_budget", lambda *_: more)
    flow.run_poc(settings, "demo")
    assert (ran[2].run, ran[2].stale, ran[2].forced) == (more, ["distill"], "distill")
    monkeypatch.setattr(flow.outputs, "stale_stages", lambda *_: ["validate", "clip"])
    flow.run_poc(settings, "demo")
    assert (ran[3].stale, ran[3].forced) == (["validate", "clip"], ""), "another training"


@pytest.mark.parametrize(
    ("result", "stale", "found"),
    [
        ("inconclusive", [], "again"),
        ("passes", [], None),
        ("passes", ["gate"], "fresh"),
        ("inconclusive", ["gate"], "fresh"),
    ],
)
def test_admission_and_flow_agree_on_the_run_that_resumes(work, result, stale, found):
    """For the flow and for a machine of EC2 alike: one that has nothing to do is not started."""
    workspace = judged(work, INCONCLUSIVE if result == "inconclusive" else {}, BUSY)
    last = runs.write(work, runs.fresh("demo"))
    assert to_do.run_to_do(workspace, stale) == last, "one that is open goes on"
    verdict = runs.verdict_sha256(work)
    runs.write(work, replace(last, status="done", verdict_sha256=verdict))
    run = to_do.run_to_do(workspace, stale)
    if found is None:
        assert run is None
    else:
        assert (run.run_id == last.run_id, run.measures_again) == ((found == "again"),) * 2
