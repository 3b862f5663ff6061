"""The training loop of one worker, read top to bottom; `worker.py` runs it under Ray Train.

Shapes: B batch, C latent channels, T frames, t latent frames, H W pixels.
Every rank does the same steps, each on its part of the same batch; rank 0 alone saves and tells.
A stop (budget, a student that is good enough, a loss that stays NaN) is agreed on by an all-reduce,
saved and *returned* from: raising would be retried.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbo_vaed.costs import per_second
from turbo_vaed.distill import health
from turbo_vaed.distill.adversarial import Adversary
from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.data import Batch, Clips, Prefetcher
from turbo_vaed.distill.job import Job, RunCosts
from turbo_vaed.distill.linear_start import start_decoder
from turbo_vaed.distill.losses import Weights, distillation_losses, perceptual_of
from turbo_vaed.distill.optimizer import Optimizer, learning_rate
from turbo_vaed.distill.stopping import CONTINUE, STOPPED, lacking, next_step
from turbo_vaed.distill.student import (
    Student,
    averaged,
    averaging,
    bf16_pays,
    is_to_compile,
    update_ema,
)
from turbo_vaed.distill.teacher_targets import RecomputedTargets
from turbo_vaed.distill.validation import Validation, validate
from turbo_vaed.models import TurboVaedDecoder

Tell = Callable[[dict[str, Any]], None]
"""Takes rank 0's events; see `follow.py`."""
Save = Callable[[Checkpoint], None]
"""Takes rank 0's checkpoints; it copies what it keeps."""

MOST_SKIPPED = 3
"""Steps in a row whose loss is not finite, each tried twice, before the run is given up."""
_START_CLIPS = 54
_ASK_SECONDS = 2.0
"""Between two questions whether a machine is to be taken away: every rank must join in."""


class Loop:
    """The state of one worker and its steps."""

    def __init__(
        self,
        job: Job,
        *,
        tell: Tell,
        save: Save,
        rank: int = 0,
        world: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        resume: Checkpoint | None = None,
        notice: Callable[[], dict[str, Any] | None] = lambda: None,
        costs: Callable[[], RunCosts | None] = lambda: None,
    ) -> None:
        """Make or restore the state.

        Args:
            tell, save: used by rank 0 only.
            notice: facts of a machine that is to be taken away, None if none is; asked by every
                rank in the same moment.
            costs: news of what the run has cost, None if there is none; asked by rank 0.
        """
        params = job.params
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.tell, self.save, self.notice, self.costs = tell, save, notice, costs
        self.began_at = job.costs.at
        self.data = Clips(clips=job.clips, latents=job.latents, targets=job.targets)
        self.recompute = (
            RecomputedTargets(
                job.plan, family=job.teacher_family, weights=job.teacher_weights, device=device
            )
            if job.plan.mode == "recompute"
            else None
        )
        self.precision = resume.precision if resume is not None else self._agreed_precision()
        self.step, self.skipped, self.best_step, self.best_psnr = 0, 0, 0, -math.inf
        self.validate_seconds = 0.0  # what the last one took
        self.counted_at = time.monotonic()  # the last step's end
        self.asked_at = self.saved_at = time.monotonic()
        self.is_noticed = self.is_warned = False
        self.history: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        torch.manual_seed(params.seed)
        self.student = Student(job.student, with_heads=params.weight_feature > 0)
        decoder = self.student.decoder
        if resume is None and params.start == "linear" and rank == 0:
            crops = self.data.draw_crops(
                split="train", size=params.crop, count=_START_CLIPS, seed=params.seed, step=0
            )
            start = self.data.read(crops, params.crop)
            start_decoder(decoder, start.latents, start.source)
        self.student.to(device)
        self.is_compiled = is_to_compile(params, device)
        model: Any = torch.compile(self.student) if self.is_compiled else self.student
        self.model = averaged(model)  # rank 0's weights are everybody's
        self.perceptual = perceptual_of(params, device)
        self.weights = Weights(
            source=params.weight_source,
            teacher=params.weight_teacher,
            perceptual=params.weight_perceptual,
            feature=params.weight_feature,
        )
        self.adversary = (
            Adversary(params, decoder, device, world) if params.weight_adversarial > 0 else None
        )
        self.ema: TurboVaedDecoder = copy.deepcopy(decoder)
        self.best = copy.deepcopy(decoder.state_dict())
        self.optimizer = Optimizer(
            self.student.parameters(),
            kind=params.optimizer,
            betas=params.betas,
            weight_decay=params.weight_decay,
        )
        if resume is not None:
            self._restore(resume)

    def _agreed_precision(self) -> str:
        """The same on all ranks: bfloat16 where it is wished for and pays on each."""
        fp32 = self.job.params.precision == "fp32" or not bf16_pays(self.device)
        (fp32_anywhere,) = self._agree(int(fp32))
        return "fp32" if fp32_anywhere else "bf16"

    def _restore(self, state: Checkpoint) -> None:
        self.student.load_state_dict(state.student)
        self.ema.load_state_dict(state.ema)
        self.best = state.best
        self.optimizer.load_state_dict(state.optimizer)
        if self.adversary is not None and state.adversary is not None:
            self.adversary.restore(state.adversary)
        self.skipped = state.skipped
        self.step, self.best_step, self.best_psnr = state.step, state.best_step, state.best_psnr
        self.validate_seconds = state.validate_seconds
        self.history, self.warnings = list(state.history), list(state.warnings)
        self.is_warned = any(w["kind"] == "budget" for w in self.warnings)

    def say_start(self, checkpoint: str | None) -> None:
        """Tell where this worker group begins, and from which checkpoint."""
        self._tell(
            "start",
            world=self.world,
            resumed_from=self.step if checkpoint else None,
            checkpoint=checkpoint,
            device=self.device.type,
            precision=self.precision,
            compiled=self.is_compiled,
        )

    def run(self) -> tuple[str, str]:
        """Train to the end or to a stop; returns what stopped it, and why in words."""
        params = self.job.params
        if self.best_psnr == -math.inf:
            self._validate({})
        self.counted_at = time.monotonic()  # what came before is not of a step
        with Prefetcher(self._read, stop=params.steps, device=self.device) as batches:
            while self.step < params.steps:
                stop, reason = self._before_step()
                if stop:
                    if self.history and "val_psnr" not in self.history[-1]:
                        found = self._validate(self.history[-1])  # what was paid for may be best
                        self._tell("validated", **found, spent_usd=self._spent())
                    return self._finish(STOPPED[stop], reason)
                row = self._train_step(batches.get(self.step))
                if row is None:  # a memory error or a bad read does not come twice
                    self.data.clear_memory()
                    row = self._train_step(self._read(self.step))
                if row is None:
                    self.skipped += 1
                    if self.skipped > MOST_SKIPPED:
                        reason = f"loss or gradient was not finite at step {self.step + 1}"
                        return self._finish("diverged", reason)
                    row = self._row({}, began=time.perf_counter())
                    self._flag("skipped", f"step {self.step + 1} left out: its loss is not finite")
                else:
                    self.skipped = 0
                self.step += 1
                self._after_step(row)
        return self._finish("finished", f"all {params.steps} steps done")

    def _read(self, step: int) -> Batch:
        """This rank's part of a step's batch: every `world`-th clip of it."""
        params = self.job.params
        crops = self.data.draw_crops(
            split="train", size=params.crop, count=params.batch_size, seed=params.seed, step=step
        )
        # The decoder refuses latents that are not finite, on this rank alone. A loss that is not is
        # seen by all, and what follows is agreed on.
        return self.data.read(crops[self.rank :: self.world], params.crop).with_finite_latents()

    def _before_step(self) -> tuple[int, str]:
        """Whether to stop, agreed on by all ranks; and a checkpoint if a machine is to go."""
        stop, reason = self._may_go_on()
        ask = int(time.monotonic() - self.asked_at > _ASK_SECONDS)
        stop, ask = self._agree(stop, ask)
        if ask:
            self.asked_at = time.monotonic()
            notice = self.notice()
            if notice is not None:
                if not self.is_noticed:
                    self._tell("interruption", **notice)
                self._save("running", "")  # at once, and again until the machine is gone
            self.is_noticed = notice is not None
        return stop, reason

    def _may_go_on(self) -> tuple[int, str]:
        """Rank 0's word on the next step: the budget, and whether the student is good enough."""
        if self.rank:
            return CONTINUE, ""
        costs = self.costs()
        if costs is not None:
            self.job = replace(self.job, costs=costs)
        answer = next_step(
            self.job, self.history, best_psnr=self.best_psnr, validate_seconds=self.validate_seconds
        )
        # Once: a month's limit moves with what others spend. A budget that was raised warns anew.
        if answer.warning and not self.is_warned:
            self._warn("budget", answer.warning)
        self.is_warned = bool(answer.warning)
        return answer.stop, answer.reason

    def _agree(self, *flags: int) -> list[int]:
        """The largest of each flag over all ranks."""
        if self.world == 1:
            return list(flags)
        shared = torch.tensor(flags, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [int(flag) for flag in shared.tolist()]

    def _train_step(self, batch: Batch) -> dict[str, Any] | None:
        """One step of all ranks; None, and no update, where loss or gradient is not finite."""
        params, began = self.job.params, time.perf_counter()
        rate = learning_rate(self.step, params)
        self.optimizer.zero_grad()
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        seen = []
        pieces = batch.to(self.device).split(params.micro_batch)
        for i, piece in enumerate(pieces, start=1):
            share = len(piece.latents) / params.batch_size
            video, parts = self._backward(piece, share, last=i == len(pieces))
            seen.append((video.detach(), piece.source, share))
            for name, value in parts.items():
                sums[name] += share * value.detach()
        rival = self._rival()
        if rival is not None:
            sums["loss_discriminator"] = rival.accumulate(seen)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        values = torch.stack([*sums.values()])
        if self.world > 1:
            dist.all_reduce(values)
        figures = dict(zip(sums, values.tolist(), strict=True))
        # All ranks see the same: averaged gradients, and figures of the whole batch.
        if not (math.isfinite(norm.item()) and all(map(math.isfinite, figures.values()))):
            if rival is not None:
                rival.forget()
            return None
        self.optimizer.step(rate)
        if rival is not None:
            rival.step(rate)
        update_ema(self.ema, self.student.decoder, params.ema_decay, step=self.step)
        return self._row(figures, began=began, learning_rate=rate)

    def _rival(self) -> Adversary | None:
        """The adversary, from its first step on."""
        return self.adversary if self.step >= self.job.params.adversarial_start else None

    def _backward(
        self, batch: Batch, share: float, *, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of a micro-batch that is `share` of the whole batch; its video and losses.

        DDP divides by the number of workers, hence the factor: what comes out is the gradient of
        the whole batch's mean, whatever the number of workers and of micro-batches.
        """
        if self.recompute is not None:
            batch = self.recompute(batch)
        with averaging(self.model, now=last):
            with self._autocast():
                video, projected = self.model(batch.latents)
            video = video.float()
            losses = distillation_losses(
                video,
                projected,
                source=batch.source,
                teacher=batch.teacher,
                features=batch.features,
                weights=self.weights,
                perceptual=self.perceptual,
            )
            total = losses.total
            parts = {"loss": total, **{f"loss_{name}": v for name, v in losses.parts.items()}}
            rival = self._rival()
            if rival is not None:
                parts["loss_adversarial"] = rival.generator_loss(video, total, share)
                total = total + parts["loss_adversarial"]
            (share * self.world * total).backward()  # type: ignore[no-untyped-call]
        return video, parts

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _row(self, figures: dict[str, float], *, began: float, **more: float) -> dict[str, Any]:
        """Of the step just done; `step_usd` is the time since the one before at today's price."""
        now, rate = time.monotonic(), per_second(self.job.costs.now_usd_per_hour)
        step_usd, self.counted_at = Decimal(now - self.counted_at) * rate, now
        return {
            "step": self.step + 1,
            "at": round(time.time(), 3),
            "seconds": round(time.time() - self.began_at, 3),
            "step_seconds": round(time.perf_counter() - began, 4),
            **figures,
            **more,
            "spent_usd": self._spent(),
            "step_usd": f"{step_usd:.12f}",
        }

    def _spent(self) -> str:
        """By the run up to now, USD."""
        return f"{self.job.costs.spent_by_now():.8f}"

    def _after_step(self, row: dict[str, Any]) -> None:
        """Validation, signs of trouble, events and checkpoints of the step just done."""
        params = self.job.params
        self.history.append(row)
        if self.step % params.validate_every == 0 or self.step == params.steps:
            self._validate(row)
            lacks = lacking(self.job, self.history, best_psnr=self.best_psnr)
            self._warn("not good enough", lacks, once=True)
        recent = self.history[-health.SPIKE_STEPS - 2 :]
        losses = [r["loss"] for r in recent if "loss" in r]
        self._warn("loss spike", health.loss_spike(losses))
        self._tell("step", **row)
        if self._is_save_due() and self.step < params.steps:
            self._save("running", "")

    def _is_save_due(self) -> bool:
        """Rank 0's question; when it saves changes nothing of what is computed."""
        every = self.job.params.checkpoint_every
        if every != "auto":
            return self.step % every == 0
        return time.monotonic() - self.saved_at >= self.job.costs.checkpoint_seconds

    def _validate(self, row: dict[str, Any]) -> dict[str, float]:
        """The EMA student on the validation clips: its figures, also into `row`; the best kept."""
        began, target = time.perf_counter(), self.job.quality_target
        found: Validation = validate(  # in float32, as what is packaged: it decides on the best
            self.ema,
            self.data,
            rank=self.rank,
            world=self.world,
            device=self.device,
            worst_share=target.worst_share if target and self.step else None,  # no history of it
        )
        self.validate_seconds = time.perf_counter() - began
        figures = {"val_psnr": found.psnr, "val_ssim": found.ssim}
        figures |= {f"val_{name}": value for name, value in found.more.items()}
        row |= figures
        if found.psnr > self.best_psnr:
            self.best, self.best_step, self.best_psnr = (
                copy.deepcopy(self.ema.state_dict()),
                self.step,
                found.psnr,
            )
        for kind, text in found.troubles if self.step else []:  # the start is no sign of anything
            self._warn(kind, text)
        if found.picture is not None:
            self._tell("picture", png=found.picture, caption="source, student")
        return figures

    def _warn(self, kind: str, text: str | None, *, once: bool = False) -> None:
        """Flag a sign of trouble, once per kind and validation interval, or run."""
        since = -1 if once else self.step - self.job.params.validate_every
        known = any(w["kind"] == kind and w["step"] > since for w in self.warnings)
        if text is not None and not known:
            self._flag(kind, text)

    def _flag(self, kind: str, text: str) -> None:
        self.warnings.append({"step": self.step, "kind": kind, "text": text})
        self._tell("warning", kind=kind, text=text)

    def _tell(self, event: str, **facts: Any) -> None:
        if self.rank == 0:
            self.tell({"event": event, "step": self.step, "at": time.time(), **facts})

    def _finish(self, stopped: str, reason: str) -> tuple[str, str]:
        self._save(stopped, reason)
        self._tell("end", stopped=stopped, reason=reason)
        return stopped, reason

    def _save(self, stopped: str, reason: str) -> None:
        if self.rank:
            return
        self.saved_at = time.monotonic()
        state = Checkpoint(
            step=self.step,
            student=self.student.state_dict(),
            ema=self.ema.state_dict(),
            best=self.best,
            best_step=self.best_step,
            best_psnr=self.best_psnr,
            optimizer=self.optimizer.state_dict(),
            adversary=self.adversary.state() if self.adversary is not None else None,
            precision=self.precision,
            skipped=self.skipped,
            validate_seconds=self.validate_seconds,
            reached_at=time.time(),
            spent_usd=self._spent(),
            stopped=stopped,
            reason=reason,
            history=list(self.history),
            warnings=list(self.warnings),
        )
        self.save(state)
