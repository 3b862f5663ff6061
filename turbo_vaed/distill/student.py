"""The student in training: the decoder, and heads that only training needs.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels, h w latent positions.
"""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.alignment import AlignmentHeads

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


def averaged(module: nn.Module) -> nn.Module:
    """The module behind DDP where there are several workers: gradients are averaged, and rank 0's
    weights are everybody's."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        return nn.parallel.DistributedDataParallel(  # buffers are constants: see `ChannelMean`
            module, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    return module


def averaging(module: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Around a micro-batch of an `averaged` module: its gradients are averaged with the last."""
    if not now and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


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
    GPU where there is one, in each precision that is asked for and pays there; else one thread, in
    float32. What a CPU has for bfloat16 wants wider layers than a student's, and tells less of its
    steps.

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
    """Whether `torch.compile` is asked for, or pays; see docs/decisions.md for a CPU."""
    if params.compile != "auto":
        return params.compile == "on"
    # The adaptive weight asks for gradients of the last layer alone: of a compiled student it
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
