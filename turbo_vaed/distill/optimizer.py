"""The learning rate's schedule; AdamW, and Muon for the weights that mix channels.

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
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from turbo_vaed.params import DistillParams

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_RMS = 0.2
"""Of AdamW's updates, as a share of the learning rate."""


def learning_rate(step: int, params: DistillParams) -> float:
    """Linear warm-up, then half a cosine down to zero at `params.steps`."""
    warmup = max(1, round(params.warmup_share * params.steps))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, params.steps - warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def orthogonal(matrices: Tensor) -> Tensor:
    """Singular values brought to about 1 (0.7 to 1.2), singular vectors kept; zeros stay zeros.

    Jordan's five quintic Newton-Schulz iterations, X <- (a + b XX' + c (XX')^2) X. They are taken
    on XX' alone, whose powers commute, and X is multiplied once by what they come to: two products
    with the long side instead of ten.

    Args:
        matrices: (N, O, I), finite.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-20)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    product = eye.expand_as(gram)
    for _ in range(_ITERATIONS):
        polynomial = a * eye + b * gram + c * (gram @ gram)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ x


def is_matrix(parameter: Tensor) -> bool:
    """Whether a weight mixes channels: a convolution that is not depthwise, or a linear layer."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter.shape[1] > 1


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
        matrices = [p for p in every if kind == "muon" and is_matrix(p)]
        taken = {id(p) for p in matrices}
        rest = [p for p in every if id(p) not in taken]
        self._adamw = torch.optim.AdamW(rest, betas=betas, weight_decay=weight_decay, fused=True)
        # Equal shapes are orthogonalised together.
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in matrices:
            self._groups[parameter.shape[0], parameter[0].numel()].append(parameter)
        self._momentum = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self._groups.items()
        }

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._every:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter by its gradient; one without is a fault."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        for shape, matrices in self._groups.items():
            gradients = torch.stack([_gradient(p).flatten(1) for p in matrices])
            momentum = self._momentum[shape].lerp_(gradients, 1 - _MOMENTUM)
            update = orthogonal(gradients.lerp(momentum, _MOMENTUM))  # Nesterov's
            scale = learning_rate * _RMS * max(shape) ** 0.5
            for parameter, each in zip(matrices, update, strict=True):
                parameter.mul_(1 - learning_rate * self._weight_decay)
                parameter.sub_(each.reshape(parameter.shape), alpha=scale)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; tensors are not copied."""
        momentum = {f"{rows}x{columns}": each for (rows, columns), each in self._momentum.items()}
        return {"adamw": self._adamw.state_dict(), "momentum": momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same parameters and kind."""
        self._adamw.load_state_dict(state["adamw"])
        for (rows, columns), each in self._momentum.items():
            each.copy_(state["momentum"][f"{rows}x{columns}"])


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every weight takes part in a step"
    return parameter.grad
