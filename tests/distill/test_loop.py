"""The loop of one worker: it learns, resumes to the digit, keeps the budget, bears a NaN."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from decimal import Decimal
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import zarr

from turbo_vaed.distill import loop as loop_module
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.job import QualityTarget
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.optimizer import learning_rate
from turbo_vaed.distill.stopping import Stopping


class Run:
    """A loop run alone, with what it saved and reported."""

    def __init__(self, job, resume=None, batch=None, interrupt_at=None, **more):
        self.states, self.events = [], []
        warned = [w["kind"] for w in resume.warnings] if resume else ()
        self.loop = loop = Loop(
            job,
            decide=Stopping(
                job, warned=warned, is_interrupted=lambda: self.loop.step == interrupt_at
            ),
            on_event=self.events.append,
            save=lambda state: self.states.append(copy.deepcopy(state)),
            resume=copy.deepcopy(resume),  # as from a file: the optimizer goes on in what it loads
            **more,
        )
        read = loop._read
        if batch is not None:
            loop._read = lambda step: batch(step, read(step))
        loop.run()
        self.last = self.states[-1]

    def reported(self, event):
        return [e for e in self.events if e["event"] == event]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


RECIPES = {
    "output distillation": {},
    "all of it": {
        "perceptual": "ms-ssim",
        "weight_feature": 0.1,
        "weight_adversarial": 0.05,
        "adversarial_start": 2,
    },
}


@pytest.mark.slow
def test_loss_falls_and_validation_rises(make_job):
    run = Run(make_job(steps=40, validate_every=20, checkpoint_every=40, learning_rate=5e-3))
    assert (run.last.stopped, run.last.step) == ("finished", 40)
    losses = [row["loss"] for row in run.last.history]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert run.last.best_step in (20, 40)
    assert [row["step"] for row in run.last.history if "val_psnr" in row] == [20, 40]
    figures = {key for row in run.last.history for key in row if key.startswith("val_")}
    assert figures == {"val_psnr", "val_ssim"}, "the job requires no more"


@pytest.mark.slow
def test_an_interrupted_run_saves_at_once_and_resumes_as_if_it_had_not_been(make_job):
    job = make_job(steps=6, checkpoint_every=5, validate_every=5)
    stopped = Run(job, interrupt_at=3)
    assert (stopped.last.stopped, stopped.last.step) == ("running", 3)
    assert not [row for row in stopped.last.history if "val_psnr" in row], "it takes time"
    assert stopped.reported("end")[-1]["stopped"] == "interrupted"
    assert_same(Run(job, stopped.last).last.ema, Run(job).last.ema)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_equals_uninterrupted(make_job, tmp_path, recipe):
    job = make_job(steps=6, checkpoint_every=4, **RECIPES[recipe])
    whole = Run(job)
    store = Store(str(tmp_path / "kept"))
    store.write(whole.states[0])
    _, middle = store.newest(on_trouble=pytest.fail)
    assert middle.step == 4
    torch.manual_seed(99)  # whatever another process would have
    resumed = Run(job, middle)
    assert resumed.last.step == whole.last.step == 6
    assert_same(whole.last.student, resumed.last.student)
    assert_same(whole.last.ema, resumed.last.ema)
    times = ("at", "step_seconds", "spent_usd", "training_usd")
    for a, b in zip(whole.last.history, resumed.last.history, strict=True):
        assert {k: v for k, v in a.items() if k not in times} == {
            k: v for k, v in b.items() if k not in times
        }


@pytest.mark.slow
def test_a_resumed_run_keeps_its_precision(make_job, monkeypatch):
    job = make_job(precision="bf16", steps=6, checkpoint_every=3)
    monkeypatch.setattr(loop_module, "bf16_pays", lambda device: True)
    whole = Run(job)
    monkeypatch.setattr(loop_module, "bf16_pays", lambda device: False)  # another machine
    alone = Run(job)
    resumed = Run(job, resume=whole.states[0])
    assert [state.precision for state in (whole.last, alone.last)] == ["bf16", "fp32"]
    assert resumed.last.precision == "bf16"
    assert_same(whole.last.student, resumed.last.student)


def test_the_time_of_a_validation_is_known_after_a_restart(make_job):
    state = Run(make_job(checkpoint_every=1, validate_every=100)).states[1]
    assert state.validate_seconds > 0
    slow = dataclasses.replace(state, validate_seconds=1e6)  # none of those fits any more
    run = Run(make_job(steps=6, usd_per_hour="0.01", budget_usd="5"), resume=slow)
    assert (run.last.stopped, run.last.step) == ("budget", state.step)


@pytest.mark.slow
def test_every_part_of_the_loss_is_recorded_and_changes_the_weights(make_job):
    plain = Run(make_job(steps=4))
    parts = {key for row in plain.last.history for key in row if key.startswith("loss")}
    assert parts == {"loss", "loss_source", "loss_teacher"}
    for part, changes in {
        "loss_perceptual": {"perceptual": "gradient"},
        "loss_feature": {"weight_feature": 1.0},
        "loss_adversarial": {"weight_adversarial": 1.0},
    }.items():
        other = Run(make_job(steps=4, **changes))
        assert all(math.isfinite(row[part]) for row in other.last.history)
        kept = {k: v for k, v in other.last.student.items() if k in plain.last.student}
        assert any(not torch.equal(v, plain.last.student[k]) for k, v in kept.items()), part


def test_the_adversary_begins_at_its_step(make_job):
    run = Run(make_job(steps=4, weight_adversarial=1.0, adversarial_start=2))
    assert ["loss_discriminator" in row for row in run.last.history] == [False, False, True, True]
    # Its weight is that of the step before: none yet in its first one.
    assert [row.get("loss_adversarial") == 0 for row in run.last.history[2:]] == [True, False]


def test_a_budget_too_small_for_a_step_still_gives_a_student(make_job):
    run = Run(make_job(budget_usd="0.000001", usd_per_hour="100"))
    assert (run.last.stopped, run.last.step) == ("budget", 0)
    assert "eat into" in run.last.reason
    assert run.last.best


@pytest.mark.slow
def test_a_run_stopped_by_its_budget_keeps_its_steps_and_resumes_with_more(make_job, monkeypatch):
    """A dollar for each call, far from a validation when they are spent."""
    long = {
        "validate_every": 90_000, "checkpoint_every": 90_000, "learning_rate": 5e-3,
        "warmup_share": 0.0,
    }  # fmt: skip
    job = make_job(steps=100_000, budget_usd="40", usd_per_hour="0.01", **long)
    calls = itertools.count(1)
    monkeypatch.setattr(type(job.costs), "spent_by_now", lambda self: Decimal(next(calls)))
    run = Run(job)
    last = run.last
    monkeypatch.undo()
    (validated,) = run.reported("validated")
    assert (validated["step"], validated["val_psnr"]) == (last.step, last.best_psnr)
    assert last.stopped == "budget"
    assert 30 < last.step < 41
    assert float(last.spent_usd) < 43  # the stop itself takes calls, and is reported
    assert last.history[-1]["val_psnr"] == last.best_psnr  # validated at the stop, and better
    assert last.best_step == last.step
    (warning,) = [w for w in last.warnings if w["kind"] == "budget"]
    assert warning["text"].startswith("$32") and "of $40" in warning["text"]  # past 80 %, once
    assert [w["text"] for w in run.reported("warning") if w["kind"] == "budget"] == [
        warning["text"]
    ]
    more = Run(make_job(steps=last.step + 2, **long), resume=last)
    assert (more.last.stopped, more.last.step) == ("finished", last.step + 2)


QUICK = {
    "steps": 40, "validate_every": 10, "checkpoint_every": 10, "learning_rate": 1e-3,
    "ema_decay": 0.9, "stop_psnr_margin_db": 0.5,
}  # fmt: skip


def aimed(job, psnr, **limits):
    target = QualityTarget(psnr=psnr, rationale=f"{psnr:.2f} dB", limits=limits, worst_share=0.05)
    return dataclasses.replace(job, quality_target=target)


@pytest.fixture
def enough_at_20(make_job):
    """A run of 40 steps, a job that has enough with what it reaches at 20, and that job's run."""
    whole = Run(aimed(make_job(**QUICK), math.inf))
    psnr = {row["step"]: row["val_psnr"] for row in whole.last.history if "val_psnr" in row}
    assert psnr[10] < psnr[20]
    job = aimed(make_job(**QUICK), psnr[20], ssim=-1.0)
    return whole, job, Run(job)


@pytest.mark.slow
def test_a_run_stops_with_the_validation_that_is_good_enough(enough_at_20):
    whole, _, run = enough_at_20
    last, (end,) = run.last, run.reported("end")
    assert (last.stopped, last.step, last.best_step) == ("good enough", 20, 20)
    psnr, ssim = last.best_psnr, last.history[19]["val_ssim"]
    assert last.reason == end["reason"]
    assert f"{psnr:.2f} dB" in last.reason and f"{ssim:.4g}" in last.reason
    assert (end["stopped"], end["step"]) == ("good enough", 20)
    assert_same(last.student, whole.states[1].student)  # on the planned schedule
    rates = [row["learning_rate"] for row in whole.last.history[:20]]
    assert [row["learning_rate"] for row in last.history] == rates


@pytest.mark.slow
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(enough_at_20):
    _, job, run = enough_at_20
    assert [state.step for state in run.states] == [10, 20, 20]
    for state in run.states[:2]:  # the second has the validation, and not yet the word on it
        assert state.stopped == "running"
        resumed = Run(job, resume=state)
        assert (resumed.last.stopped, resumed.last.step) == ("good enough", 20)
        assert resumed.last.reason == run.last.reason
        assert_same(resumed.last.student, run.last.student)


@pytest.mark.slow
def test_without_its_limit_a_stopped_run_ends_like_one_that_never_stopped(enough_at_20, make_job):
    whole, job, run = enough_at_20
    assert not Run(job, resume=run.last).reported("step")
    more = Run(make_job(**QUICK | {"stop_psnr_margin_db": None}), resume=run.last)
    assert (more.last.stopped, more.last.step) == ("finished", 40)
    assert_same(more.last.student, whole.last.student)


FIGURES = ("ssim", "ms_ssim", "worst_psnr", "detail", "flicker")


def lacks(run):
    return [w["text"] for w in run.reported("warning") if w["kind"] == "not good enough"]


@pytest.mark.slow
def test_a_run_whose_psnr_suffices_trains_until_every_figure_does(enough_at_20, make_job):
    """And reports once what is missing."""
    whole, job, run = enough_at_20
    assert not lacks(run)
    figures = {row["step"]: row for row in whole.last.history if "val_psnr" in row}
    for name in FIGURES:
        before, after = (figures[step][f"val_{name}"] for step in (20, 30))
        assert after < before if name == "flicker" else after > before
        limit = (before + after) / 2
        asks = aimed(make_job(**QUICK), job.quality_target.psnr, **{name: limit})
        later = Run(asks, resume=whole.states[0])
        assert (later.last.stopped, later.last.step) == ("good enough", 30), name
        assert f"{after:.4g}" in later.last.reason and f"{limit:.4g}" in later.last.reason
        (text,) = lacks(later)
        assert f"{before:.4g}" in text and f"{limit:.4g}" in text


@pytest.mark.slow
def test_missing_quality_is_reported_only_once(enough_at_20, make_job):
    whole, job, _ = enough_at_20
    asks = aimed(make_job(**QUICK), job.quality_target.psnr, ssim=1.0)
    run = Run(asks, resume=whole.states[0])
    assert (run.last.stopped, run.last.step) == ("finished", 40)
    assert len(lacks(run)) == 1
    resumed = Run(asks, resume=run.states[1])
    assert run.states[1].step == 30 and resumed.last.step == 40
    assert not lacks(resumed)


@pytest.mark.slow
def test_a_validation_without_all_figures_is_not_good_enough(enough_at_20, make_job):
    """A checkpoint of an earlier version: the run goes on to a better one."""
    whole, job, _ = enough_at_20
    fewer = [
        {k: v for k, v in row.items() if k in ("val_psnr", "val_ssim") or not k.startswith("val_")}
        for row in whole.states[1].history
    ]
    old = dataclasses.replace(whole.states[1], history=fewer)
    asks = aimed(make_job(**QUICK), job.quality_target.psnr, ms_ssim=-1.0)
    assert Run(asks, resume=whole.states[1]).last.step == 20
    assert Run(asks, resume=old).last.step == 30


def test_a_start_that_is_good_enough_takes_no_step(make_job):
    run = Run(aimed(make_job(), -100.0))
    assert (run.last.stopped, run.last.step) == ("good enough", 0)
    assert run.last.best and not run.reported("step")
    trained = Run(aimed(make_job(), -100.0, ms_ssim=-1.0))  # the start's is not kept
    assert (trained.last.stopped, trained.last.step) == ("good enough", 3)


def test_a_spent_budget_stops_a_run_before_its_quality_does(make_job):
    run = Run(aimed(make_job(budget_usd="0.000001", usd_per_hour="100"), -100.0))
    assert (run.last.stopped, run.last.step) == ("budget", 0)


@pytest.mark.slow
def test_a_run_stops_where_more_dollars_bring_no_quality(make_job, monkeypatch):
    """A dollar for each call. Six validations after the tenth that does not count."""
    job = make_job(
        steps=100, validate_every=1, checkpoint_every=100, learning_rate=1e-12, budget_usd="9999",
        stop_usd_per_tenth_db="5",
    )  # fmt: skip
    calls = itertools.count(1)
    monkeypatch.setattr(type(job.costs), "spent_by_now", lambda self: Decimal(next(calls)))
    last = Run(job).last
    assert (last.stopped, last.step) == ("good enough", 16)
    assert "$5.00" in last.reason or "nothing" in last.reason


@pytest.mark.slow
def test_a_step_costs_its_own_time_at_the_current_price(make_job, monkeypatch):
    """Whatever the run has spent, and however long ago it was interrupted."""
    job = make_job(steps=6, budget_usd="9999", usd_per_hour="3600")
    state = Run(job).states[0]
    for spent in (5000, 1):
        monkeypatch.setattr(type(job.costs), "spent_by_now", lambda self, usd=spent: Decimal(usd))
        start = time.monotonic()
        rows = Run(job, resume=state).last.history
        seconds = time.monotonic() - start
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        usd = [float(row["training_usd"]) for row in rows[state.step - 1 :]]
        assert all(a < b for a, b in pairwise(usd)) and usd[-1] - usd[0] < seconds


def test_a_loss_that_stays_infinite_ends_the_run(make_job):
    run = Run(make_job(learning_rate=1e30, steps=50, validate_every=1000))
    assert run.last.stopped == "diverged"
    assert run.last.step < 50
    assert all(torch.isfinite(tensor).all() for tensor in run.last.best.values())


def poisoned(step, times):
    """A batch of `step` whose source holds a NaN, so many times; and a count of its reads."""
    reads = []

    def change(current, batch):
        if current == step:
            reads.append(current)
            if len(reads) <= times:
                batch.source[0, 0, 0, 0, 0] = float("nan")
        return batch

    return change, reads


@pytest.mark.slow
def test_a_nan_that_does_not_recur_leaves_no_trace(make_job):
    job = make_job()
    change, reads = poisoned(3, times=1)
    run = Run(job, batch=change)
    assert len(reads) == 2
    assert_same(run.last.student, Run(job).last.student)
    assert not [w for w in run.reported("warning") if w["kind"] == "skipped"]


def test_a_batch_that_stays_nan_is_skipped_and_reported(make_job):
    change, _ = poisoned(3, times=2)
    run = Run(make_job(), batch=change)
    assert (run.last.stopped, run.last.step) == ("finished", 6)
    assert [w["step"] for w in run.last.warnings if w["kind"] == "skipped"] == [3]
    assert "loss" not in run.last.history[3]
    assert all(torch.isfinite(tensor).all() for tensor in run.last.student.values())


def test_every_skipped_step_is_reported(make_job):
    change, _ = poisoned(1, times=2)
    other, _ = poisoned(2, times=2)
    run = Run(make_job(), batch=lambda step, batch: other(step, change(step, batch)))
    assert [w["step"] for w in run.reported("warning") if w["kind"] == "skipped"] == [1, 2]
    assert [w["step"] for w in run.last.warnings if w["kind"] == "skipped"] == [2]


@pytest.mark.slow
def test_a_clip_corrupted_in_memory_is_read_again(make_job):
    """From the store, where it is whole."""
    job, events, states = make_job(), [], []
    loop = Loop(job, on_event=events.append, save=states.append)
    crops = loop.data.draw_crops(split="train", size=16, count=2, seed=1, step=0)
    loop.data.read(crops, 16)
    for chunk in loop.data._memory.values():
        if chunk.dtype.kind == "f":
            chunk[:] = float("nan")
    loop.run()
    assert not [e for e in events if e["event"] == "warning" and e["kind"] == "skipped"]
    assert_same(states[-1].student, Run(job).last.student)


def test_an_interruption_notice_saves_at_once_and_repeatedly(make_job, monkeypatch):
    monkeypatch.setattr("turbo_vaed.distill.loop._LOOK_SECONDS", 0.0)
    notices = iter([None, {"deadline_seconds": 90.0, "ranks": [0]}] + [{}] * 2 + [None] * 9)
    run = Run(make_job(checkpoint_every=100), interruption=lambda: next(notices))
    assert [state.step for state in run.states] == [1, 2, 3, 6]
    assert [e["deadline_seconds"] for e in run.reported("interruption")] == [90.0]


@pytest.mark.slow
def test_checkpoints_by_time_change_only_when_they_are_written(make_job):
    job = make_job(checkpoint_every="auto")
    often, never = (
        Run(dataclasses.replace(job, costs=dataclasses.replace(job.costs, checkpoint_seconds=s)))
        for s in (0.0, 1e9)
    )
    assert [state.step for state in often.states] == [1, 2, 3, 4, 5, 6]
    assert [state.step for state in never.states] == [6]
    assert_same(often.last.student, never.last.student)
    assert make_job(checkpoint_every=3).name == job.name


def test_linear_start_beats_a_random_one_before_the_first_step(make_job):
    psnr = {}
    for start in ("random", "linear"):
        job = make_job(start=start, budget_usd="0.000001", usd_per_hour="100")
        psnr[start] = Run(job).last.best_psnr
    assert psnr["linear"] > psnr["random"] + 5


def test_learning_rate_warms_up_and_ends_near_zero(make_job):
    params = make_job(steps=100, warmup_share=0.1, learning_rate=1.0).params
    rates = [learning_rate(step, params) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_a_run_reports_steps_pictures_and_its_end(make_job):
    run = Run(make_job(steps=3))
    assert [e["step"] for e in run.reported("step")] == [1, 2, 3]
    assert float(run.reported("step")[-1]["spent_usd"]) > 0
    assert [e["step"] for e in run.reported("picture")] == [0, 3]
    assert run.reported("picture")[0]["png"].startswith(b"\x89PNG")
    assert run.reported("end")[0]["stopped"] == "finished"


def test_signs_of_trouble_are_flagged_once_an_interval(make_job):
    """An untrained student's colours are off."""
    run = Run(make_job(steps=6, learning_rate=1e-9))
    shifts = [w["step"] for w in run.reported("warning") if w["kind"] == "colour shift"]
    assert shifts == [3, 6]
    assert [w["step"] for w in run.last.warnings] == [6], "a checkpoint has the last of a kind"


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)]
)
def test_torch_compile_does_not_change_the_student(make_job, monkeypatch, backend):
    plain = Run(make_job(steps=2)).last
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = Run(make_job(steps=2, compile="on")).last
    for name, tensor in plain.student.items():
        assert torch.allclose(tensor, compiled.student[name], atol=1e-5), name


def test_missing_latents_are_an_error(make_job):
    job = make_job()
    group = zarr.open_group(f"{job.latents}/latents.zarr", mode="a")
    del group["latents"]
    group.create_array("latents", data=np.zeros((2, 6, 3, 8, 8), "float32"))
    with pytest.raises(Exception, match="holds 2 clips"):
        Loop(job, on_event=lambda event: None, save=lambda state: None)


def test_the_name_of_a_job_depends_on_its_result_and_not_on_how_it_is_computed(make_job):
    name = make_job().name
    assert make_job(workers=2, micro_batch=1, checkpoint_every=50).name == name
    assert make_job(stop_psnr_margin_db=0.5, stop_usd_per_tenth_db="0.01").name == name
    assert aimed(make_job(), 30.0).name == name
    assert make_job(learning_rate=2e-3).name != name
    assert make_job(seed=2).name != name
