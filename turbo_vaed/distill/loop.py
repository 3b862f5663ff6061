"""The training loop of one worker, read top to bottom; `train.py` starts it under Ray Train.

Shapes: B batch, C latent channels, T frames, t latent frames, H W pixels.
Every rank does the same steps; rank 0 alone writes checkpoints and the progress file. A stop
(budget, a loss that is not finite) is agreed on by an all-reduce, checkpointed and *returned*
from: raising would be retried.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbo_vaed.costs import Budget, decide, per_second
from turbo_vaed.distill import checkpoint as checkpoints
from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.data import Clips
from turbo_vaed.distill.linear_start import start_decoder
from turbo_vaed.distill.losses import output_distillation
from turbo_vaed.metrics import psnr
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.params import DistillParams

Report = Callable[[dict[str, Any], Checkpoint | None], None]
"""Takes the figures of every rank, and the checkpoint of rank 0."""

CONTINUE, OUT_OF_BUDGET, DIVERGED = 0, 1, 2
_START_CLIPS = 24


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is told: plain values, so that they travel to any node."""

    clips: Path
    latents: Path
    student: DecoderConfig
    params: DistillParams
    budget: Budget
    usd_per_hour: Decimal
    """Of all nodes of the run together."""
    spent_usd: Decimal
    """By the run when the job was handed over."""
    started_at: float
    """Unix seconds of that moment."""
    progress_file: Path

    def spent_now(self) -> Decimal:
        """What the run has cost by now, the job's own time included."""
        seconds = Decimal(str(max(0.0, time.time() - self.started_at)))
        return self.spent_usd + seconds * per_second(self.usd_per_hour)


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def learning_rate(step: int, params: DistillParams) -> float:
    """Linear warm-up, then half a cosine down to zero at `params.steps`."""
    warmup = max(1, round(params.warmup_share * params.steps))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, params.steps - warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


class Loop:
    """The state of one worker and its steps."""

    def __init__(
        self, job: Job, *, rank: int, world: int, report: Report, resume: Checkpoint | None = None
    ) -> None:
        params = job.params
        self.job, self.rank, self.world, self.report = job, rank, world, report
        self.data = Clips(clips=job.clips, latents=job.latents)
        self.dtype = torch.bfloat16 if params.precision == "bf16" and has_bf16() else torch.float32
        torch.manual_seed(params.seed)
        decoder = TurboVaedDecoder(job.student)
        self.step, self.best_step, self.best_psnr = 0, 0, -math.inf
        self.validate_seconds = self.report_seconds = 0.0  # what the last one took
        self.warning = ""  # rank 0's, once the warning share of the budget is spent
        self.history: list[dict[str, Any]] = []
        if resume is None and params.start == "linear" and rank == 0:
            start = self.data.crops(
                size=params.crop, count=_START_CLIPS, split="train", seed=(params.seed,)
            )
            start_decoder(decoder, start.latents, start.source)
        self.model = _wrap(decoder)  # rank 0's weights are everybody's from here on
        self.decoder = decoder
        self.ema = copy.deepcopy(decoder)
        self.best = copy.deepcopy(decoder.state_dict())
        self.optimizer = torch.optim.AdamW(
            decoder.parameters(),
            lr=params.learning_rate,
            betas=params.betas,
            weight_decay=params.weight_decay,
        )
        if resume is not None:
            self._restore(resume)

    def _restore(self, state: Checkpoint) -> None:
        self.decoder.load_state_dict(state.weights)
        self.ema.load_state_dict(state.ema)
        self.best = state.best
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.random_state)
        self.step, self.best_step, self.best_psnr = state.step, state.best_step, state.best_psnr
        self.history = list(state.history)

    def run(self) -> tuple[str, str]:
        """Train to the end or to a stop; returns what stopped it, and why in words."""
        params = self.job.params
        if not self.history:
            self._validate()
        while self.step < params.steps:
            stop, reason = self._agree(*self._may_go_on())
            if stop == OUT_OF_BUDGET:
                if self.history and "val_psnr" not in self.history[-1]:
                    self.history[-1]["val_psnr"] = self._validate()  # what was paid for may be best
                return self._finish("budget", reason)
            row = self._train_step()
            if row is None:
                reason = f"loss or gradient was not finite at step {self.step + 1}"
                return self._finish("diverged", reason)
            self.step += 1
            if self.warning:
                row["budget_warning"] = self.warning
            self.history.append(row)
            if self.step % params.validate_every == 0 or self.step == params.steps:
                row["val_psnr"] = self._validate()
            self._tell(row)
            if self.step % params.checkpoint_every == 0 and self.step < params.steps:
                self._report("running", "")
        return self._finish("finished", f"all {params.steps} steps done")

    def _may_go_on(self) -> tuple[int, str]:
        """Rank 0's word on the budget, for the next step."""
        if self.rank:
            return CONTINUE, ""
        steps = [row["step_seconds"] for row in self.history[-10:]] or [2.0]
        # After the step a validation may follow, or the one of a stop; then a checkpoint.
        decision = decide(
            self.job.budget,
            spent_usd=self.job.spent_now(),
            rate_usd_per_second=per_second(self.job.usd_per_hour),
            next_step_seconds=2 * (max(steps) + self.validate_seconds + self.report_seconds),
        )
        self.warning = decision.reason if decision.action == "warn" else ""
        return (OUT_OF_BUDGET if decision.stop else CONTINUE), decision.reason

    def _agree(self, flag: int, reason: str) -> tuple[int, str]:
        """The largest flag of all ranks."""
        if self.world == 1:
            return flag, reason
        shared = torch.tensor([flag])
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item()), reason

    def _train_step(self) -> dict[str, Any] | None:
        """One step of all ranks; None, and no update, where loss or gradient is not finite."""
        params, began = self.job.params, time.perf_counter()
        rate = learning_rate(self.step, params)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.data.crops(
            size=params.crop,
            count=params.batch_size // self.world,
            split="train",
            seed=(params.seed, self.step, self.rank),
        )
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            video = self.model(batch.latents)
        losses = output_distillation(
            video.float(),
            batch.source,
            batch.teacher,
            weight_source=params.weight_source,
            weight_teacher=params.weight_teacher,
        )
        self.optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        finite = math.isfinite(norm.item()) and math.isfinite(losses.total.item())
        if self._agree(CONTINUE if finite else DIVERGED, "")[0]:
            return None
        self.optimizer.step()
        self._average()
        parts = torch.stack([losses.total, losses.source, losses.teacher]).detach()
        if self.world > 1:
            dist.all_reduce(parts)
            parts /= self.world
        loss, source, teacher = parts.tolist()
        return {
            "step": self.step + 1,
            "seconds": round(time.time() - self.job.started_at, 3),
            "step_seconds": round(time.perf_counter() - began, 4),
            "loss": loss,
            "loss_source": source,
            "loss_teacher": teacher,
            "learning_rate": rate,
            "spent_usd": f"{self.job.spent_now():.8f}",
        }

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.job.params.ema_decay, (self.step + 1) / (self.step + 10))
        ours = [p.detach() for p in self.decoder.parameters()]
        torch._foreach_lerp_(list(self.ema.parameters()), ours, 1 - decay)

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean PSNR in dB of the EMA student on the validation clips, shared over the ranks."""
        began = time.perf_counter()
        indices = self.data.of_split("val")
        total = torch.zeros(1)
        for index in indices[self.rank :: self.world]:
            batch = self.data.whole(index)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                video = self.ema(batch.latents)
            total += psnr(_frames(video), _frames(batch.source))
        if self.world > 1:
            dist.all_reduce(total)
        mean = total.item() / len(indices)
        self.validate_seconds = time.perf_counter() - began
        if mean > self.best_psnr:
            self.best, self.best_step, self.best_psnr = (
                copy.deepcopy(self.ema.state_dict()),
                self.step,
                mean,
            )
        return mean

    def _tell(self, row: dict[str, Any]) -> None:
        if self.rank == 0:
            with self.job.progress_file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")

    def _finish(self, stopped: str, reason: str) -> tuple[str, str]:
        self._report(stopped, reason)
        return stopped, reason

    def _report(self, stopped: str, reason: str) -> None:
        """Hand over the figures, and rank 0's checkpoint; every rank must join."""
        began = time.perf_counter()
        metrics = {"step": self.step, "best_psnr": self.best_psnr, "stopped": stopped}
        self.report(metrics, None if self.rank else self._checkpoint(stopped, reason))
        self.report_seconds = time.perf_counter() - began

    def _checkpoint(self, stopped: str, reason: str) -> Checkpoint:
        return Checkpoint(
            step=self.step,
            weights=self.decoder.state_dict(),
            ema=self.ema.state_dict(),
            best=self.best,
            best_step=self.best_step,
            best_psnr=self.best_psnr,
            optimizer=self.optimizer.state_dict(),
            random_state=torch.get_rng_state(),
            spent_usd=f"{self.job.spent_now():.8f}",
            stopped=stopped,
            reason=reason,
            history=self.history,
        )


def _wrap(decoder: nn.Module) -> nn.Module:
    """The decoder behind DDP where there is a process group: gradients are averaged."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        return nn.parallel.DistributedDataParallel(decoder)
    return decoder


def _frames(video: Tensor) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1] to (T, 3, H, W) in [0, 1]."""
    return ((video[0].float() + 1) / 2).clamp(0, 1).transpose(0, 1)


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker; `config["job"]` is a `Job`."""
    import ray.train

    def report(metrics: dict[str, Any], state: Checkpoint | None) -> None:
        if state is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.save(state, Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    torch.set_num_threads(1)
    context = ray.train.get_context()
    handed = ray.train.get_checkpoint()
    resume = None
    if handed is not None:
        with handed.as_directory() as folder:
            resume = checkpoints.load(Path(folder))
    loop = Loop(
        config["job"],
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        report=report,
        resume=resume,
    )
    loop.run()
