"""Several workers are one: the same weights, whatever their number and the micro-batches."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import multiprocessing as mp
import os
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.loopback import free_port
from turbo_vaed.distill.data import Clips
from turbo_vaed.distill.job import QualityTarget
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.stopping import Stopping
from turbo_vaed.distill.validation import validate
from turbo_vaed.models import TurboVaedDecoder

pytestmark = pytest.mark.slow


def run(job, rank=0, world=1):
    """Run a loop to its end; returns the last state that it saved."""
    states = []
    Loop(
        job, rank=rank, world=world, decide=Stopping(job), on_event=lambda event: None,
        save=lambda state: states.append(copy.deepcopy(state)),
    ).run()  # fmt: skip
    return states[-1] if states else None


def trained(job, rank: int = 0, world: int = 1) -> dict | None:
    state = run(job, rank, world)
    kept = ("student", "ema", "stopped", "step", "reason")
    return None if state is None else {name: getattr(state, name) for name in kept}


def validated(job, rank: int = 0, world: int = 1) -> dict | None:
    """The figures of an untrained student, with the worst two of three clips."""
    torch.manual_seed(0)
    found = validate(
        TurboVaedDecoder(job.student), Clips(clips=job.clips, latents=job.latents), rank=rank,
        world=world, device=torch.device("cpu"), worst_share=0.67,
    )  # fmt: skip
    return None if rank else {"psnr": found.psnr, "ssim": found.ssim, **found.more}


def join(rank: int, port: int) -> None:
    """Make this process one of two workers."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    patience = timedelta(minutes=5)  # with a worker that failed
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=patience)


def work(do, job, rank: int) -> bytes | None:
    found = do(job, rank, 2)
    if found is None:
        return None
    written = io.BytesIO()
    torch.save(found, written)
    return written.getvalue()


@pytest.fixture(scope="module")
def on_two():
    """`on_two(job, do=trained)`: what `do` finds on two workers, of which rank 0 alone returns
    anything. They are the same two for all tests: each imports PyTorch."""
    port = free_port()
    spawn = mp.get_context("spawn")
    with ExitStack() as stack:
        workers = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, join, (rank, port)))
            for rank in range(2)
        ]

        def run(job, do=trained) -> dict:
            running = [worker.submit(work, do, job, rank) for rank, worker in enumerate(workers)]
            for ended in wait(running, return_when=FIRST_EXCEPTION).done:
                ended.result()  # raises what a worker did, whom the other one waits for
            saved, nothing = (each.result() for each in running)
            assert nothing is None, "rank 0 alone saves"
            return torch.load(io.BytesIO(saved))

        yield run


def furthest(ours: dict, theirs: dict) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


RECIPES = {
    "output": {},
    "adversarial": {"weight_adversarial": 0.05, "perceptual": "gradient"},
    "features": {"weight_feature": 1.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_workers_and_micro_batches_end_with_the_weights_of_one(make_job, on_two, recipe):
    """Three clips: one worker has two of them, the other one.

    At the published learning rate: AdamW takes steps of about that size, whatever the gradient, so
    where a gradient is next to nothing its rounding is a part of a step.
    """
    changes = {"steps": 4, "batch_size": 3, "learning_rate": 1e-4, **RECIPES[recipe]}
    alone = run(make_job(**changes, micro_batch=3))
    pieces = run(make_job(**changes, micro_batch=2))
    two = on_two(make_job(**changes, micro_batch=1, workers=2))
    assert furthest(alone.student, pieces.student) < 1e-6
    assert furthest(alone.student, two["student"]) < 1e-6
    assert furthest(alone.ema, two["ema"]) < 1e-6
    untrained = run(make_job(**changes | {"learning_rate": 1e-12}, micro_batch=3))
    assert furthest(alone.student, untrained.student) > 1e-5  # it did move


def test_all_workers_stop_once_the_student_is_good_enough(make_job, on_two):
    changes = {"steps": 20, "batch_size": 2, "learning_rate": 1e-3, "ema_decay": 0.9}
    never = QualityTarget(psnr=math.inf, rationale="made up", limits={}, worst_share=0.05)
    job = make_job(**changes, validate_every=5, micro_batch=2)
    alone = run(dataclasses.replace(job, quality_target=never))
    first, then = [row for row in alone.history if "val_psnr" in row][:2]
    assert first["val_psnr"] < then["val_psnr"] and first["val_ms_ssim"] < then["val_ms_ssim"]
    between = (first["val_ms_ssim"] + then["val_ms_ssim"]) / 2
    target = dataclasses.replace(never, psnr=first["val_psnr"] - 1, limits={"ms_ssim": between})
    job = make_job(**changes, validate_every=5, micro_batch=2, workers=2)
    two = on_two(dataclasses.replace(job, quality_target=target))
    assert (two["stopped"], two["step"]) == ("good enough", 10)


def test_two_workers_validate_as_one_does_on_all_clips(make_job, on_two):
    """Three validation clips, so that each has its own number, and the worst two lie on both."""
    path = Path(make_job().clips) / "clips.json"
    clips = json.loads(path.read_text())["clips"]
    for clip in clips:
        clip["split"] = "val" if clip["index"] < 3 else "train"
    path.write_text(json.dumps({"clips": clips}))
    job = make_job()
    alone, two = validated(job), on_two(job, validated)
    assert alone.keys() == {"psnr", "ssim", "worst_psnr", "ms_ssim", "detail", "flicker"}
    assert two.keys() == alone.keys()
    for name in ("worst_psnr", "ms_ssim", "detail", "flicker"):
        assert two[name] == pytest.approx(alone[name], rel=1e-6), name
    assert two["psnr"] == pytest.approx(alone["psnr"], rel=1e-6)
    assert two["worst_psnr"] < two["psnr"]
