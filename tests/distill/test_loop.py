"""The loop of one worker: it learns, resumes to the digit, keeps the budget, stops at a NaN."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
import zarr

from turbo_vaed.distill import checkpoint as checkpoints
from turbo_vaed.distill.data import Clips
from turbo_vaed.distill.loop import Loop, learning_rate


def run(job, resume=None):
    """Run a loop alone; returns what it reported, the states only."""
    states = []
    keep = lambda _metrics, state: states.append(copy.deepcopy(state))  # noqa: E731
    Loop(job, rank=0, world=1, report=keep, resume=resume).run()
    return states


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_loss_falls_and_validation_rises(make_job):
    (*_, last) = run(make_job(steps=60, validate_every=30, checkpoint_every=60, learning_rate=5e-3))
    assert last.stopped == "finished"
    assert last.step == 60
    losses = [row["loss"] for row in last.history]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert last.best_step in (30, 60)
    assert [row["step"] for row in last.history if "val_psnr" in row] == [30, 60]


def test_resumed_equals_uninterrupted(make_job, tmp_path):
    job = make_job(steps=6, checkpoint_every=3)
    middle, whole = run(job)
    assert middle.step == 3
    checkpoints.save(middle, tmp_path / "kept")
    torch.manual_seed(99)  # whatever another process would have
    (resumed,) = run(job, checkpoints.load(tmp_path / "kept"))
    assert resumed.step == whole.step == 6
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name
    for name, tensor in whole.ema.items():
        assert torch.equal(tensor, resumed.ema[name]), name
    times = ("seconds", "step_seconds", "spent_usd")
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if k not in times} == {
            k: v for k, v in b.items() if k not in times
        }


def test_budget_stops_before_the_first_step_and_still_gives_a_student(make_job):
    (last,) = run(make_job(budget_usd="0.000001", usd_per_hour="100"))
    assert last.stopped == "budget"
    assert last.step == 0
    assert "eat into" in last.reason
    assert last.best


def test_budget_stops_on_the_way_and_keeps_what_was_paid_for(make_job):
    """100 USD a second: six seconds of steps, far from a validation when they end."""
    job = make_job(
        steps=100_000,
        validate_every=90_000,
        checkpoint_every=90_000,
        learning_rate=5e-3,
        budget_usd="600",
        usd_per_hour="360000",
    )
    (last,) = run(job)
    assert last.stopped == "budget"
    assert 0 < last.step < 90_000
    assert float(last.spent_usd) <= 600
    assert last.history[-1]["val_psnr"] == last.best_psnr  # validated at the stop, and better
    assert last.best_step == last.step
    warned = [row["step"] for row in last.history if "of $600" in row.get("budget_warning", "")]
    assert warned and warned[0] > 1  # from 80 % on, and not before
    assert warned[-1] == last.step


def test_a_loss_that_is_not_finite_ends_the_run(make_job):
    (last,) = run(make_job(learning_rate=1e30, steps=50, validate_every=1000))
    assert last.stopped == "diverged"
    assert last.step < 50
    assert all(torch.isfinite(tensor).all() for tensor in last.best.values())


def test_linear_start_beats_a_random_one_before_the_first_step(make_job):
    psnr = {}
    for start in ("random", "linear"):
        job = make_job(start=start, budget_usd="0.000001", usd_per_hour="100")
        (last,) = run(job)
        psnr[start] = last.best_psnr
    assert psnr["linear"] > psnr["random"] + 5


def test_batches_are_a_function_of_seed_step_and_rank(make_job):
    job = make_job()
    data = Clips(clips=job.clips, latents=job.latents)

    def draw(*seed):
        return data.crops(size=16, count=2, split="train", seed=seed)

    assert torch.equal(draw(1, 2, 0).source, draw(1, 2, 0).source)
    assert not torch.equal(draw(1, 2, 0).source, draw(1, 2, 1).source)
    assert not torch.equal(draw(1, 2, 0).source, draw(1, 3, 0).source)
    assert draw(1, 2, 0).latents.shape == (2, 6, 3, 4, 4)
    assert draw(1, 2, 0).source.shape == (2, 3, 5, 16, 16)


def test_crops_of_latents_and_video_are_of_the_same_place(make_job):
    job = make_job()
    data = Clips(clips=job.clips, latents=job.latents)
    batch = data.crops(size=16, count=4, split="train", seed=(5,))
    first = batch.source[:, :, 0].reshape(4, 3, 4, 4, 4, 4).mean((3, 5))
    means = batch.latents[:, :3, 0]  # the first latent frame is the mean of frame 0 and itself
    assert torch.allclose(first, means, atol=0.02)


def test_learning_rate_warms_up_and_ends_near_zero(make_job):
    params = make_job(steps=100, warmup_share=0.1, learning_rate=1.0).params
    rates = [learning_rate(step, params) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_progress_file_has_a_line_per_step(make_job):
    job = make_job(steps=3)
    run(job)
    rows = [json.loads(line) for line in job.progress_file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert float(rows[-1]["spent_usd"]) > 0


def test_missing_latents_are_named(make_job):
    job = make_job()
    group = zarr.open_group(str(job.latents / "latents.zarr"), mode="a")
    del group["latents"]
    group.create_array("latents", data=np.zeros((2, 6, 3, 8, 8), "float32"))
    with pytest.raises(Exception, match="run encode again"):
        Loop(job, rank=0, world=1, report=lambda *_: None)
