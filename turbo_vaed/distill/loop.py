"""The training loop of one worker, read top to bottom; `train.py` runs it under Ray Train.

Shapes: B batch, C latent channels, T frames, t latent frames, H W pixels.
Every rank does the same steps, each on its part of the same batch; rank 0 alone decides, saves and
reports. A stop (budget, a student that is good enough, a loss that stays NaN) is agreed on by an
all-reduce, saved and *returned* from: raising would be retried.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from turbo_vaed.distill.checkpoints import Checkpoint
from turbo_vaed.distill.data import Batch, Clips, Prefetcher
from turbo_vaed.distill.history import Row, bounded
from turbo_vaed.distill.job import Job
from turbo_vaed.distill.stopping import INTERRUPTED, StopDecision
from turbo_vaed.distill.student import Training, bf16_pays
from turbo_vaed.distill.validation import loss_spike, validate

MOST_SKIPPED = 3
"""Steps in a row whose loss is not finite, each tried twice, before the run is given up."""
_LOOK_SECONDS = 2.0
"""Between checks for a machine that is being reclaimed; every rank must take part."""


class Loop:
    """The state of one worker and its steps."""

    def __init__(
        self,
        job: Job,
        *,
        on_event: Callable[[dict[str, Any]], None],
        save: Callable[[Checkpoint], None],
        decide: Callable[..., StopDecision] = lambda history, **_: StopDecision(),
        interruption: Callable[[], dict[str, Any] | None] = lambda: None,
        rank: int = 0,
        world: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        resume: Checkpoint | None = None,
    ) -> None:
        """Make or restore the state.

        Args:
            on_event: gets rank 0's events, each with `event`, `step` and `at`.
            save: gets rank 0's checkpoints; it copies what it needs.
            decide: whether to take the next step, called by rank 0 as `Stopping` is.
            interruption: facts of a machine that is being taken away, None if none is; called by
                every rank in the same moment.
        """
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.on_event, self.save = on_event, save
        self.decide, self.interruption = decide, interruption
        self.data = Clips(clips=job.clips, latents=job.latents, targets=job.targets)
        self.precision = resume.precision if resume is not None else self._agreed_precision()
        self.step, self.skipped, self.best_step, self.best_psnr = 0, 0, 0, -math.inf
        self.validate_seconds, self.spent_usd = 0.0, "0"
        self.looked_at = self.saved_at = time.monotonic()
        self.is_interrupted = False
        self.history: list[Row] = []
        self.warnings: dict[str, dict[str, Any]] = {}  # the last one of each kind
        self.training = Training(
            job,
            self.data,
            world=world,
            device=device,
            precision=self.precision,
            with_start=resume is None and rank == 0,
        )
        self.best = copy.deepcopy(self.training.ema.state_dict())
        if resume is not None:
            self._restore(resume)

    def run(self) -> tuple[str, str]:
        """Train to the end or to a stop; returns how the run ended, and why, as rank 0 knows it."""
        params = self.job.params
        if self.best_psnr == -math.inf:
            self._validate()
        decision = self._decide()
        with Prefetcher(self._read, stop=params.steps, device=self.device) as batches:
            while self.step < params.steps:
                look = time.monotonic() - self.looked_at > _LOOK_SECONDS
                is_interrupted = decision.stopped == INTERRUPTED
                stop, is_interrupted, look = self._agree(
                    bool(decision.stopped), is_interrupted, look
                )
                if look:
                    self._save_if_interrupted()
                if stop:
                    if is_interrupted:
                        self._save("running", "")  # at once, and to resume from
                        self._emit("end", stopped=INTERRUPTED, reason=decision.reason)
                        return INTERRUPTED, decision.reason
                    if self.history and "val_psnr" not in self.history[-1]:
                        figures = self._validate()  # what was paid for may be best
                        self.history[-1] |= figures
                        self._emit("validated", **figures, **self._decide().costs)
                    return self._finish(decision.stopped, decision.reason)

                figures = self.training.step(batches.get(self.step), self.step)
                if not figures:  # a memory error or a bad read does not come twice
                    self.data.clear_memory()
                    figures = self.training.step(self._read(self.step), self.step)
                self.skipped = 0 if figures else self.skipped + 1
                if self.skipped > MOST_SKIPPED:
                    reason = f"loss or gradient was not finite at step {self.step + 1}"
                    return self._finish("diverged", reason)
                if self.skipped:
                    self._warn("skipped", f"step {self.step + 1} left out: its loss is not finite")

                self.step += 1
                row: Row = {"step": self.step, "at": round(time.time(), 3), "step_seconds": 0.0}
                row |= figures
                self.history = bounded([*self.history, row])
                losses = [row["loss"] for row in self.history if "loss" in row]
                self._warn_once("loss spike", loss_spike(losses))
                if self.step % params.validate_every == 0 or self.step == params.steps:
                    row |= self._validate()
                decision = self._decide()
                row |= decision.costs
                self._emit("step", **row)
                if self.step < params.steps and self._is_save_due(decision.checkpoint_seconds):
                    self._save("running", "")
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

    def _validate(self) -> dict[str, float]:
        """The figures of the EMA student on the validation clips; the best one is remembered."""
        began, target = time.perf_counter(), self.job.quality_target
        found = validate(  # in float32, as what is packaged: it decides on the best
            self.training.ema,
            self.data,
            rank=self.rank,
            world=self.world,
            device=self.device,
            worst_share=target.worst_share if target and self.step else None,  # no row of the start
        )
        self.validate_seconds = time.perf_counter() - began
        if found.psnr > self.best_psnr:
            self.best = copy.deepcopy(self.training.ema.state_dict())
            self.best_step, self.best_psnr = self.step, found.psnr
        for kind, text in found.troubles if self.step else []:  # the start is no sign of anything
            self._warn_once(kind, text)
        if found.picture is not None:
            self._emit("picture", png=found.picture, caption="source, student")
        more = {f"val_{name}": value for name, value in found.more.items()}
        return {"val_psnr": found.psnr, "val_ssim": found.ssim, **more}

    def _decide(self) -> StopDecision:
        """Rank 0's decision on the next step."""
        if self.rank:
            return StopDecision()
        decision = self.decide(
            self.history, best_psnr=self.best_psnr, validate_seconds=self.validate_seconds
        )
        self.spent_usd = decision.costs.get("spent_usd", self.spent_usd)
        for kind, text in decision.warnings:
            self._warn(kind, text)
        return decision

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any rank."""
        if self.world == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def _agreed_precision(self) -> str:
        """The same on all ranks: bfloat16 where the params allow it and it pays on each."""
        fp32 = self.job.params.precision == "fp32" or not bf16_pays(self.device)
        return "fp32" if any(self._agree(fp32)) else "bf16"

    def emit_start(self, checkpoint: str | None) -> None:
        """Report where this group of workers begins, and from which checkpoint."""
        self._emit(
            "start",
            world=self.world,
            resumed_from=self.step if checkpoint else None,
            checkpoint=checkpoint,
            device=self.device.type,
            precision=self.precision,
            compiled=self.training.is_compiled,
        )

    def _emit(self, event: str, **facts: Any) -> None:
        if self.rank == 0:
            self.on_event({"event": event, "step": self.step, "at": time.time(), **facts})

    def _warn(self, kind: str, text: str) -> None:
        self.warnings[kind] = {"step": self.step, "kind": kind, "text": text}
        self._emit("warning", kind=kind, text=text)

    def _warn_once(self, kind: str, text: str | None) -> None:
        """Flag a sign of trouble, once per kind and validation interval."""
        since = self.step - self.job.params.validate_every
        if text is not None and (kind not in self.warnings or self.warnings[kind]["step"] <= since):
            self._warn(kind, text)

    def _save_if_interrupted(self) -> None:
        """Save at once where a machine is being taken away, and again until it is gone."""
        self.looked_at = time.monotonic()
        notice = self.interruption()
        if notice is not None:
            if not self.is_interrupted:
                self._emit("interruption", **notice)
            self._save("running", "")
        self.is_interrupted = notice is not None

    def _is_save_due(self, checkpoint_seconds: float) -> bool:
        """By the step, or by the time: when it saves changes nothing that is computed."""
        every = self.job.params.checkpoint_every
        if every != "auto":
            return self.step % every == 0
        return time.monotonic() - self.saved_at >= checkpoint_seconds

    def _finish(self, stopped: str, reason: str) -> tuple[str, str]:
        self._save(stopped, reason)
        self._emit("end", stopped=stopped, reason=reason)
        return stopped, reason

    def _save(self, stopped: str, reason: str) -> None:
        if self.rank:
            return
        self.saved_at = time.monotonic()
        state = Checkpoint(
            step=self.step,
            **self.training.state(),
            best=self.best,
            best_step=self.best_step,
            best_psnr=self.best_psnr,
            precision=self.precision,
            skipped=self.skipped,
            validate_seconds=self.validate_seconds,
            reached_at=time.time(),
            spent_usd=self.spent_usd,
            stopped=stopped,
            reason=reason,
            history=list(self.history),
            warnings=list(self.warnings.values()),
        )
        self.save(state)

    def _restore(self, state: Checkpoint) -> None:
        self.training.restore(state)
        self.best = state.best
        self.step, self.skipped = state.step, state.skipped
        self.best_step, self.best_psnr = state.best_step, state.best_psnr
        self.validate_seconds, self.spent_usd = state.validate_seconds, state.spent_usd
        self.history = bounded(list(state.history))
        self.warnings = {warning["kind"]: warning for warning in state.warnings}
