"""The two sides of `bench/distill.py` on the demo's clips: the published loop, and ours.

Shapes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from bench.plain_loop import PlainLoop, PlainStudent, read_source
from turbo_vaed.costs import Budget
from turbo_vaed.distill.data import Clips
from turbo_vaed.distill.job import Job, data_key
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.targets import Wanted, plan_targets, write_targets
from turbo_vaed.distill.validation import validate
from turbo_vaed.metrics import psnr
from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.alignment import aligned_config, block_name
from turbo_vaed.models.teachers import Teacher, load_teacher
from turbo_vaed.poc import Poc

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
NEVER = 10**9
PUBLISHED = {
    "weight_source": 1.0,
    "weight_teacher": 0.25,
    "perceptual": "gradient",
    "weight_perceptual": 1.0,
    "weight_feature": 1.0,
}
"""The published losses with their weights, gradients for LPIPS (whose weights are not at hand), and
the demo's L1 to the teacher."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's clips and latents, its teacher, and a student with aligned blocks."""

    poc: Poc
    teacher: Teacher
    student: DecoderConfig
    encode_seconds: float


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(root: Path) -> Demo:
    """Clips and latents of the demo below `root`, by the stages' own functions."""
    from turbo_vaed.stages import clip, encode, validate

    shutil.copy(ROOT / "params.yaml", root)
    for name in ("assets", "data"):
        (root / name).symlink_to(ROOT / name)
    poc = Poc.load(root, "demo")
    for stage in (validate, clip):
        stage.run(poc)
    began = time.perf_counter()
    encode.run(poc)
    seconds = time.perf_counter() - began
    teacher = load_teacher(poc.params.encode.teacher_family, poc.teacher_weights())
    student = aligned_config(PRESETS[poc.params.distill.student], teacher)
    return Demo(poc=poc, teacher=teacher, student=student, encode_seconds=seconds)


def make_job(demo: Demo, targets: Path, **changes: Any) -> tuple[Job, float]:
    """A job of the demo with changed params and its targets, and what those took, in seconds."""
    poc = demo.poc
    params = replace(poc.params.distill, **{"workers": 1, "min_workers": 1, **changes})
    blocks = demo.student.aligned_blks_indices if params.weight_feature > 0 else ()
    wanted = Wanted(
        family=poc.params.encode.teacher_family,
        weights=str(poc.teacher_weights()),
        clips=str(poc.folder("clip")),
        latents=str(poc.folder("encode")),
        targets=str(targets),
        blocks=tuple(block_name(i) for i in blocks),
        reconstruction=params.weight_teacher > 0,
    )
    targets.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    batch_size = poc.params.encode.batch_size
    # As for the demo's run: the few steps that are timed here would never pay for a cache.
    whole_run = replace(params, steps=poc.params.distill.steps)
    plan = plan_targets(wanted, whole_run, batch_size=batch_size)
    if plan.mode == "cache":
        write_targets(wanted, batch_size=batch_size)
    seconds = time.perf_counter() - began
    say(f"teacher's targets: {plan.reason} ({seconds:.0f} s)")
    price = poc.params.prices.local_usd_per_hour
    assert price is not None
    job = Job(
        clips=wanted.clips,
        latents=wanted.latents,
        targets=str(targets) if plan.mode == "cache" else None,
        plan=plan,
        teacher_family=wanted.family,
        teacher_weights=poc.teacher_weights(),
        student=demo.student,
        params=params,
        data_key=data_key(poc.folder("clip"), poc.folder("encode")),
        budget=Budget.plan(
            run_usd=Decimal(95), warn_share=0.8, reserve_seconds=0, usd_per_hour=price
        ),
        usd_per_hour=price,
        spent_usd=Decimal(0),
        started_at=time.time(),
    )
    return job, seconds


class Paced:
    """A loop in a thread of its own, which takes a step when it is told to."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        loop.tell = self._pause
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self._go.acquire()
        self.loop.run()

    def _pause(self, event: dict[str, Any]) -> None:
        if event["event"] == "step":
            self._done.release()
            if event["step"] < self.loop.job.params.steps:
                self._go.acquire()

    def advance(self, steps: int) -> None:
        """Take so many steps; the first call also makes the loop's first validation."""
        for _ in range(steps):
            self._go.release()
        for _ in range(steps):
            while not self._done.acquire(timeout=1):
                assert self._thread.is_alive(), "the loop has failed: see its trace above"

    def finish(self) -> None:
        """Take the last step, and what follows it."""
        self.advance(1)
        self._thread.join()


class Plain:
    """The published loop on a job's data."""

    def __init__(self, job: Job, teacher: Teacher, weights: dict[str, torch.Tensor] | None) -> None:
        """Starts from the weights of our student, or from random ones."""
        params = job.params
        self.params, self.data = params, Clips(clips=job.clips, latents=job.latents)
        torch.manual_seed(params.seed)
        config = job.student
        if params.weight_feature == 0:
            config = replace(config, aligned_blks_indices=(), aligned_feature_projection_dim=())
        student = PlainStudent(config)
        if weights is not None:
            student.load(weights)
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
            places = self.data.places(
                split="train", size=size, count=params.batch_size, seed=params.seed, step=step
            )
            source = read_source(self.data.video, places, size, self.config.spatial_compression)
            self.loop.step(source, rate(step))

    def val_psnr(self) -> float:
        """Of the average, in dB."""
        decoder = TurboVaedDecoder(self.config)
        state = self.loop.ema.state_dict()
        decoder.load_published({f"decoder.{name}": tensor for name, tensor in state.items()})
        return val_psnr(decoder, self.data)


def val_psnr(decoder: TurboVaedDecoder, data: Clips) -> float:
    """Mean PSNR in dB on the validation clips, in float32."""
    return validate(decoder, data, rank=0, world=1, device=CPU).psnr


def in_turns(forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(rounds):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            taken[name].append(time.perf_counter() - began)
        told = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in taken.items())
        say(f"  round {round_ + 1} of {rounds}: {told}")
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
