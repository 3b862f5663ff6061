"""The student in training: the decoder, heads that only training needs, and a step of it.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels, h w latent positions.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.distill.adversarial import Adversary
from turbo_vaed.distill.checkpoints import Checkpoint
from turbo_vaed.distill.data import Batch, Clips
from turbo_vaed.distill.job import Job
from turbo_vaed.distill.linear_start import start_decoder
from turbo_vaed.distill.losses import Weights, distillation_losses, perceptual_of
from turbo_vaed.distill.optimizer import Optimizer, averaged, averaging, learning_rate
from turbo_vaed.distill.teacher_targets import RecomputedTargets
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.alignment import AlignmentHeads

_START_CLIPS = 54
COMPILE_STEPS = 500
"""`compile: auto` on a GPU: it takes a minute or two, which fewer steps do not bring back."""
_SIDE, _LARGE, _REPEATS = 512, 2048, 7
_BF16_GAIN = 1.2
"""The least that bfloat16's lesser precision is taken for."""


class Student(nn.Module):
    """Decoder and alignment heads as one module: one forward pass through one wrapper, so that no
    gradient escapes the averaging over workers."""

    def __init__(self, config: DecoderConfig, *, with_heads: bool) -> None:
        super().__init__()
        self.decoder = TurboVaedDecoder(config)
        self.heads = AlignmentHeads(config) if with_heads else None

    def forward(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, C, t, h, w) -> video (B, 3, T, H, W), and the aligned blocks' states, projected."""
        # Channels last in memory, which every layer keeps: the faster one on CPUs and GPUs.
        latents = latents.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
        if self.heads is None:
            return self.decoder(latents), {}
        video, features = self.decoder.decode_with_features(latents)
        return video, self.heads(features)


class Training:
    """The student, its average, optimizer and adversary on one worker, and a step of them all."""

    def __init__(
        self,
        job: Job,
        data: Clips,
        *,
        world: int,
        device: torch.device,
        precision: str,
        with_start: bool,
    ) -> None:
        """Make the first state.

        Args:
            data: for the closed-form start.
            with_start: fit that start, where the params ask for it; rank 0's weights are
                everybody's.
        """
        params = job.params
        self.params, self.world, self.device = params, world, device
        self.is_bf16 = precision == "bf16"
        self.recompute = (
            RecomputedTargets(
                job.plan, family=job.teacher_family, weights=job.teacher_weights, device=device
            )
            if job.plan.mode == "recompute"
            else None
        )
        torch.manual_seed(params.seed)
        self.student = Student(job.student, with_heads=params.weight_feature > 0)
        decoder = self.student.decoder
        if with_start and params.start == "linear":
            crops = data.draw_crops(
                split="train", size=params.crop, count=_START_CLIPS, seed=params.seed, step=0
            )
            batch = data.read(crops, params.crop)
            start_decoder(decoder, batch.latents, batch.source)
        self.student.to(device)
        self.is_compiled = is_to_compile(params, device)
        model: Any = torch.compile(self.student) if self.is_compiled else self.student
        self.model = averaged(model)
        self.perceptual = perceptual_of(params, device, job.perceptual_weights)
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
        self.optimizer = Optimizer(
            self.student.parameters(),
            kind=params.optimizer,
            betas=params.betas,
            weight_decay=params.weight_decay,
        )

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One step of all ranks, after `step` others; its losses and learning rate. Nothing, and no
        update, where loss or gradient is not finite."""
        params, began = self.params, time.perf_counter()
        rate = learning_rate(step, params)
        adversary = self.adversary if step >= params.adversarial_start else None
        self.optimizer.zero_grad()
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        decoded = []
        pieces = batch.to(self.device).split(params.micro_batch)
        for i, piece in enumerate(pieces, start=1):
            share = len(piece.latents) / params.batch_size
            video, parts = self._backward(piece, share, adversary, last=i == len(pieces))
            decoded.append((video.detach(), piece.source, share))
            for name, value in parts.items():
                sums[name] += share * value.detach()
        if adversary is not None:
            sums["loss_discriminator"] = adversary.accumulate(decoded)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        values = torch.stack([*sums.values()])
        if self.world > 1:
            dist.all_reduce(values)
        figures = dict(zip(sums, values.tolist(), strict=True))
        # All ranks see the same: averaged gradients, and figures of the whole batch.
        if not (math.isfinite(norm.item()) and all(map(math.isfinite, figures.values()))):
            if adversary is not None:
                adversary.forget()
            return {}
        self.optimizer.step(rate)
        if adversary is not None:
            adversary.step(rate)
        update_ema(self.ema, self.student.decoder, params.ema_decay, step=step)
        seconds = round(time.perf_counter() - began, 4)
        return {"step_seconds": seconds, **figures, "learning_rate": rate}

    def _backward(
        self, batch: Batch, share: float, adversary: Adversary | None, *, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of a micro-batch that is `share` of the whole batch; its video and losses.

        DDP divides by the number of workers, hence the factor: what comes out is the gradient of
        the whole batch's mean, whatever the number of workers and of micro-batches.
        """
        if self.recompute is not None:
            batch = self.recompute(batch)
        with averaging(self.model, now=last):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16):
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
            if adversary is not None:
                parts["loss_adversarial"] = adversary.generator_loss(video, total, share)
                total = total + parts["loss_adversarial"]
            (share * self.world * total).backward()  # type: ignore[no-untyped-call]
        return video, parts

    def state(self) -> dict[str, Any]:
        """`student`, `ema`, `optimizer` and `adversary` of a checkpoint; tensors are not copied."""
        return {
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary.state() if self.adversary is not None else None,
        }

    def restore(self, state: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.student.load_state_dict(state.student)
        self.ema.load_state_dict(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        if self.adversary is not None and state.adversary is not None:
            self.adversary.restore(state.adversary)


@torch.no_grad()
def update_ema(ema: nn.Module, decoder: nn.Module, decay: float, *, step: int) -> None:
    """Move the average of the decoder's weights on; in the first steps it follows faster."""
    ours = [p.detach() for p in decoder.parameters()]
    torch._foreach_lerp_(list(ema.parameters()), ours, 1 - min(decay, (step + 1) / (step + 10)))


@functools.cache
def bf16_pays(device: torch.device) -> bool:
    """Whether the device multiplies faster in bfloat16 than in float32.

    A GPU that has it does. Of CPUs that have it some take half the time and some twice as long:
    that is measured, in some 50 ms.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    if not (found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16")):
        return False
    return _BF16_GAIN * _matmul_seconds(torch.bfloat16) < _matmul_seconds(torch.float32)


def worker_flops(*precisions: str) -> list[float]:
    """Additions and multiplications a second of large products, of one worker of this machine: a
    GPU where there is one, in each given precision that pays there; else one thread, in float32:
    a CPU's units for bfloat16 need wider layers than a student's, so their speed would say less
    about its steps.

    Changes the threads of the process: call it in one of its own.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    bf16 = device.type == "cuda" and "bf16" in precisions and bf16_pays(device)
    dtypes = [torch.bfloat16 if bf16 and p == "bf16" else torch.float32 for p in precisions]
    seconds = {dtype: _matmul_seconds(dtype, device, side=_LARGE) for dtype in set(dtypes)}
    return [2 * float(_LARGE) ** 3 / seconds[dtype] for dtype in dtypes]


def is_to_compile(params: DistillParams, device: torch.device) -> bool:
    """Whether `torch.compile` is switched on, or pays; see docs/decisions.md for a CPU."""
    if params.compile != "auto":
        return params.compile == "on"
    # The adaptive weight needs gradients of the last layer alone: from a compiled student it
    # gets them by a whole backward pass, twice a step.
    is_long = params.steps >= COMPILE_STEPS
    return device.type == "cuda" and is_long and params.weight_adversarial == 0


def _matmul_seconds(
    dtype: torch.dtype,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    *,
    side: int = _SIDE,
) -> float:
    """Of a matrix product: the least of some."""
    matrix, taken = torch.ones(side, side, dtype=dtype, device=device), []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken)
