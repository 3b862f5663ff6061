"""The two sides of `bench/distill.py` on the demo's clips: the published loop, and ours.

Shapes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from bench.plain_loop import PlainLoop, PlainStudent, read_source
from turbo_vaed.config.load import FILES
from turbo_vaed.costs import Budget
from turbo_vaed.distill.checkpoints import Saver, Store
from turbo_vaed.distill.data import Clips
from turbo_vaed.distill.job import Job, RunCosts, data_key
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec
from turbo_vaed.distill.teacher_targets import fill_cache, plan_teacher_targets
from turbo_vaed.distill.train import KEEP_FREED_MEMORY
from turbo_vaed.distill.validation import validate
from turbo_vaed.metrics import psnr
from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.alignment import aligned_config, block_name
from turbo_vaed.models.teachers import Teacher, load_teacher
from turbo_vaed.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
NEVER = 10**9
PUBLISHED = {
    "weight_source": 1.0,
    "weight_teacher": 0.25,
    "perceptual": "gradient",
    "weight_perceptual": 1.0,
    "weight_feature": 0.01,
}
"""The published losses and the demo's L1 to the teacher; gradients for LPIPS, whose weights are not
at hand. Features weigh 1 as published: this teacher's are large, so that their loss is 10 where L1
is 0.05, and at that weight it takes 12 dB off the linear start in 20 steps."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's clips and latents, its teacher, and a student with aligned blocks."""

    workspace: Workspace
    teacher: Teacher
    student: DecoderConfig
    encode_seconds: float


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(root: Path) -> Demo:
    """Clips and latents of the demo below `root`, by the stages' own functions."""
    from turbo_vaed.stages import clip, encode, validate

    for name in FILES:
        shutil.copy(ROOT / name, root)
    for name in ("assets", "data"):
        (root / name).symlink_to(ROOT / name)
    workspace = Workspace.load(root, "demo")
    for stage in (validate, clip):
        stage.run(workspace)
    began = time.perf_counter()
    encode.run(workspace)
    seconds = time.perf_counter() - began
    teacher = load_teacher(workspace.params.encode.teacher_family, workspace.teacher_weights())
    student = aligned_config(PRESETS[workspace.params.distill.student], teacher)
    return Demo(workspace=workspace, teacher=teacher, student=student, encode_seconds=seconds)


def make_job(demo: Demo, targets: Path, **changes: Any) -> tuple[Job, float]:
    """A job of the demo with changed params and its targets, and what those took, in seconds."""
    workspace = demo.workspace
    params = replace(workspace.params.distill, **changes)
    blocks = demo.student.aligned_blks_indices if params.weight_feature > 0 else ()
    wanted = TeacherTargetsSpec(
        family=workspace.params.encode.teacher_family,
        weights=str(workspace.teacher_weights()),
        clips=str(workspace.folder("clip")),
        latents=str(workspace.folder("encode")),
        targets=str(targets),
        blocks=tuple(block_name(i) for i in blocks),
        reconstruction=params.weight_teacher > 0,
    )
    targets.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    batch_size = workspace.params.encode.batch_size
    # As for the demo's run: the few steps that are timed here would never pay for a cache.
    whole_run = replace(params, steps=workspace.params.distill.steps)
    plan = plan_teacher_targets(wanted, whole_run, batch_size=batch_size)
    if plan.mode == "cache":
        fill_cache(wanted, batch_size=batch_size)
    seconds = time.perf_counter() - began
    say(f"teacher's targets: {plan.reason} ({seconds:.0f} s)")
    price = workspace.params.prices.local_usd_per_hour
    assert price is not None
    job = Job(
        clips=wanted.clips,
        latents=wanted.latents,
        targets=str(targets) if plan.mode == "cache" else None,
        plan=plan,
        teacher_family=wanted.family,
        teacher_weights=workspace.teacher_weights(),
        student=demo.student,
        params=params,
        data_key=data_key(workspace.folder("clip"), workspace.folder("encode")),
        costs=RunCosts(
            budget=Budget.plan(
                run_usd=Decimal(95), warn_share=0.8, reserve_seconds=0, usd_per_hour=price
            ),
            usd_per_hour=price,
            spent_usd=Decimal(0),
            now_usd_per_hour=price,
            checkpoint_seconds=60.0,
            at=time.time(),
        ),
    )
    return job, seconds


class Ours:
    """The loop as Ray Train's workers run it, each a process with its share of the threads; a step
    is taken when it is requested."""

    def __init__(self, job: Job, *, threads: int, store: str | None = None) -> None:
        """Start the job's workers, up to their first step.

        Args:
            threads: of all workers together.
            store: where checkpoints go, none by default.
        """
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        world = job.params.workers
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self._workers = [
            context.Process(
                target=_work,
                args=(job, rank, address, max(1, threads // world), store),
                kwargs={"pipe": theirs if rank == 0 else None},
            )
            for rank in range(world)
        ]
        with patch.dict(os.environ, KEEP_FREED_MEMORY):
            for worker in self._workers:
                worker.start()
        theirs.close()
        self.start, self.precision = self._pipe.recv()

    def advance(self, steps: int) -> None:
        """Take so many steps; the first call also makes the first validation."""
        self._pipe.send(steps)
        for _ in range(steps):
            while self._pipe.recv()["event"] != "step":
                pass

    def until(self, psnr_db: float) -> tuple[int, float]:
        """Go on until a validation is that good; its step and PSNR in dB."""
        self._pipe.send(NEVER)
        while True:
            event = self._pipe.recv()  # an EOFError: it never was, or a worker has failed
            if event["best_psnr"] >= psnr_db:
                self._end()
                return event["step"], event["best_psnr"]

    def finish(self) -> dict[str, Any]:
        """End after the steps so far; `ema`, and the events about checkpoints."""
        self._pipe.send(0)
        found: dict[str, Any] = self._pipe.recv()
        self._end()
        return found

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.join()


class _Over(Exception):
    """No more steps are wanted."""


def _work(job: Job, rank: int, address: str, threads: int, store: str | None, *, pipe: Any) -> None:
    """A worker of `Ours`; rank 0 reports through the pipe, and waits to be allowed a step."""
    world, leave = job.params.workers, 0
    torch.set_num_threads(threads)
    if world > 1:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    copied: list[float] = []
    written: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        nonlocal leave
        pipe.send({"event": event["event"], "step": loop.step, "best_psnr": loop.best_psnr})
        if event["event"] == "step":
            leave -= 1
            leave = leave or pipe.recv()
            if leave == 0:
                raise _Over

    with ExitStack() as stack:
        save: Callable[[Any], None] = lambda _: None  # noqa: E731
        if store and rank == 0:
            saver = stack.enter_context(Saver(Store(store), written.append))

            def save(state: Any) -> None:
                began = time.perf_counter()
                saver.submit(state)
                copied.append(time.perf_counter() - began)

        loop = Loop(job, on_event=on_event, save=save, rank=rank, world=world)
        if rank == 0:
            pipe.send((_arrays(loop.training.student), loop.precision))
            leave = pipe.recv()
        with suppress(_Over):
            loop.run()
    if rank == 0:
        pipe.send({"ema": _arrays(loop.training.ema), "copied": copied, "written": written})


def _arrays(module: torch.nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


class Plain:
    """The published loop on a job's data."""

    def __init__(self, job: Job, teacher: Teacher, start: dict[str, Any] | None) -> None:
        """Starts from the weights that `Ours` starts from, or from random ones."""
        params = job.params
        self.params, self.data = params, Clips(clips=job.clips, latents=job.latents)
        torch.manual_seed(params.seed)
        config = job.student
        if params.weight_feature == 0:
            config = replace(config, aligned_blks_indices=(), aligned_feature_projection_dim=())
        student = PlainStudent(config)
        if start is not None:
            student.load(_tensors(start))
        self.config = config
        has_perceptual = params.perceptual != "none"
        self.loop = PlainLoop(
            student,
            teacher,
            weights={
                "source": params.weight_source,
                "teacher": params.weight_teacher,
                "perceptual": params.weight_perceptual if has_perceptual else 0.0,
                "feature": params.weight_feature,
            },
            betas=params.betas,
            weight_decay=params.weight_decay,
            ema_decay=params.ema_decay,
        )

    def advance(self, steps: int, rate: Callable[[int], float]) -> None:
        """Take so many steps, with the learning rate of each."""
        params, size = self.params, self.params.crop
        for step in range(self.loop.steps, self.loop.steps + steps):
            crops = self.data.draw_crops(
                split="train", size=size, count=params.batch_size, seed=params.seed, step=step
            )
            clips = [crop.clip for crop in crops]
            source = read_source(self.data.video, clips, size, (params.seed, step))
            self.loop.step(source, rate(step))

    def ema(self) -> dict[str, Any]:
        """The averaged decoder's weights."""
        return _arrays(self.loop.training.ema)


def val_psnr(config: DecoderConfig, weights: dict[str, Any], data: Clips) -> float:
    """Mean PSNR of a decoder in dB on the validation clips, in float32."""
    decoder = TurboVaedDecoder(config)
    decoder.load_state_dict(_tensors(weights))
    return validate(decoder, data, rank=0, world=1, device=CPU).psnr


def in_turns(forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(rounds):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            taken[name].append(time.perf_counter() - began)
        seconds = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in taken.items())
        say(f"  round {round_ + 1} of {rounds}: {seconds}")
    return taken


@torch.no_grad()
def teacher_psnr(teacher: Teacher, data: Clips) -> float:
    """Mean PSNR in dB of the teacher on the validation clips."""
    found = []
    for index in data.of_split("val"):
        clip = data.whole(index)
        pair = [((v[0] + 1) / 2).clamp(0, 1) for v in (teacher.decode(clip.latents), clip.source)]
        found.append(psnr(*(video.transpose(0, 1) for video in pair)).item())
    return statistics.mean(found)
