"""The learning rate's schedule; gradients averaged over workers; AdamW, and Muon for the weights
that mix channels.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by
the nearest matrix with equal singular values, so that directions with small gradients learn as
fast as those with large ones. Its update is scaled to the size of AdamW's (Liu et al. 2025, arXiv
2502.16982), so that one learning rate and one weight decay serve both.

A convolution is a matrix of output channels by what each reads, (O, I*k*k*k). Depthwise weights,
norms and biases mix no channels: AdamW's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.config.schema import DistillParams

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_MOST_ROWS = 64
"""Of a slice: wider layers take several, since the iterations grow with the cube of it."""
_RMS = 0.2
"""Of AdamW's updates, as a share of the learning rate."""


def learning_rate(step: int, params: DistillParams) -> float:
    """Linear warm-up, then half a cosine down to zero at `params.steps`."""
    warmup = max(1, round(params.warmup_share * params.steps))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, params.steps - warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Singular values brought to about 1 (0.7 to 1.2), singular vectors kept; zeros stay zeros.

    Jordan's five quintic Newton-Schulz iterations, X <- (a + b XX' + c (XX')^2) X. They are taken
    on XX' alone, whose powers commute, and X is multiplied once by what they come to: two products
    with the long side instead of ten, and all XX' of a size go through them together.

    Args:
        matrices: each (N, O, I), finite.
    """
    wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in matrices]
    wide = [x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-20) for x in wide]
    sizes: dict[int, list[int]] = defaultdict(list)
    for i, x in enumerate(wide):
        sizes[x.shape[1]].append(i)
    for places in sizes.values():
        factors = _newton_schulz(torch.cat([wide[i] @ wide[i].mT for i in places]))
        pieces = torch.split(factors, [len(wide[i]) for i in places])
        for i, factor in zip(places, pieces, strict=True):
            wide[i] = factor @ wide[i]
    return [
        x if x.shape == matrix.shape else x.mT for x, matrix in zip(wide, matrices, strict=True)
    ]


def _newton_schulz(gram: Tensor) -> Tensor:
    """What the iterations multiply X by, of its XX' (N, O, O)."""
    a, b, c = _COEFFICIENTS
    identity = a * torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)

    def polynomial(gram: Tensor) -> Tensor:
        return torch.baddbmm(b * gram, gram, gram, alpha=c).add_(identity)

    product = factor = polynomial(gram)
    for _ in range(_ITERATIONS - 1):
        gram = factor @ (factor @ gram)
        factor = polynomial(gram)
        product = factor @ product
    return product


def is_matrix(parameter: Tensor) -> bool:
    """Whether a weight mixes channels: a convolution that is not depthwise, or a linear layer."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter.shape[1] > 1


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


class Optimizer:
    """Steps of all parameters at one learning rate."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        kind: Literal["adamw", "muon"],
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        """`kind` adamw is AdamW for all; muon, for what is no matrix."""
        every = list(parameters)
        self._every, self._weight_decay = every, weight_decay
        matrices: list[Tensor] = [p for p in every if kind == "muon" and is_matrix(p)]
        taken = {id(p) for p in matrices}
        rest = [p for p in every if id(p) not in taken]
        self._adamw = torch.optim.AdamW(rest, betas=betas, weight_decay=weight_decay, fused=True)
        self._matrices = matrices
        self._momentum = [torch.zeros_like(p) for p in matrices]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._every:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter by its gradient."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        if not self._matrices:
            return
        gradients = [_gradient(p) for p in self._matrices]
        torch._foreach_lerp_(self._momentum, gradients, 1 - _MOMENTUM)
        nesterov = torch._foreach_lerp(gradients, self._momentum, _MOMENTUM)
        updates = orthogonal([_in_slices(x) for x in nesterov])
        torch._foreach_mul_(self._matrices, 1 - learning_rate * self._weight_decay)
        for parameter, update in zip(self._matrices, updates, strict=True):
            scale = _RMS * max(update.shape[1:]) ** 0.5
            rows = update.flatten(0, 1)[: len(parameter)]
            parameter.sub_(rows.reshape(parameter.shape), alpha=learning_rate * scale)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; tensors are not copied."""
        return {"adamw": self._adamw.state_dict(), "momentum": self._momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same parameters and kind."""
        self._adamw.load_state_dict(state["adamw"])
        for mine, saved in zip(self._momentum, state["momentum"], strict=True):
            mine.copy_(saved)


def _in_slices(weight: Tensor) -> Tensor:
    """(O, I, ...) as equal slices of at most `_MOST_ROWS` rows, (N, R, I*...).

    Rows of zeros fill the last slice; they stay zeros, and change no other row.
    """
    matrix = weight.flatten(1)
    slices = math.ceil(len(matrix) / _MOST_ROWS)
    rows = math.ceil(len(matrix) / slices)
    return F.pad(matrix, (0, 0, 0, slices * rows - len(matrix))).reshape(slices, rows, -1)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every weight takes part in a step"
    return parameter.grad
