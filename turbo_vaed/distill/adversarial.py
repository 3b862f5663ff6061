"""Adversarial training: a patch discriminator, its hinge losses, and the weight of the student's.

PatchGAN (Isola et al. 2017, arXiv 1611.07004) over space and time, in the layout of Turbo-VAED's
training code (arXiv 2508.09136); hinge losses of Lim and Ye (2017, arXiv 1705.02894) and Miyato et
al. (2018, arXiv 1802.05957); the adaptive weight of VQGAN (Esser et al. 2021, arXiv 2012.09841,
equation 7): the norm of the reconstruction loss's gradient at the decoder's last layer over that of
the adversarial loss.

The result does not depend on how a batch is split over micro-batches and workers: losses are means
over clips of one size, the discriminator looks at each clip alone, and the gradients that the
adaptive weight compares add up over the whole batch. The weight is used in the next step.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.distill.optimizer import averaged, averaging
from turbo_vaed.models import TurboVaedDecoder
from turbo_vaed.models.config import DecoderConfig

_GROUPS = 8
_MAX_WIDENING = 8
"""The widest layers are at most so many times as wide as the first, as published."""
_MAX_WEIGHT = 1e4
_EPSILON = 1e-4


class Adversary:
    """The discriminator, its optimizer, and the adaptive weight of the student's loss."""

    def __init__(
        self, params: DistillParams, student: TurboVaedDecoder, device: torch.device, world: int
    ) -> None:
        self.world = world
        self.discriminator = PatchDiscriminator3d.for_student(student.config).to(device)
        self.model = averaged(self.discriminator)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=params.learning_rate,
            betas=params.betas,
            weight_decay=params.weight_decay,
            fused=True,
        )
        self.weight = params.weight_adversarial
        self.last_layer: Tensor = student.conv_out.conv.weight
        self.adaptive = torch.zeros((), device=device)
        self._gradients = torch.zeros((2, *self.last_layer.shape), device=device)

    def generator_loss(self, video: Tensor, reconstruction: Tensor, share: float) -> Tensor:
        """The student's weighted loss for its video (B, 3, T, H, W).

        Args:
            reconstruction: sum of the other losses, for the adaptive weight.
            share: this micro-batch's share of the whole batch.
        """
        self.discriminator.requires_grad_(False)  # it has a step of its own
        loss = hinge_generator(self.discriminator(video))
        self.discriminator.requires_grad_(True)
        gradients = last_layer_gradients(reconstruction, loss, self.last_layer)
        self._gradients += share * torch.stack(gradients)
        return self.weight * self.adaptive * loss

    def accumulate(self, micro_batches: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
        """Add up the discriminator's gradients; returns this worker's part of its loss.

        Call it after the student's last backward pass, never between two of them: DDP's collectives
        must run in the same order on all workers, which may have different numbers of
        micro-batches.

        Args:
            micro_batches: of each the student's video, detached, the source, and its share of the
                whole batch.
        """
        total = torch.zeros((), device=self.adaptive.device)
        for i, (video, source, share) in enumerate(micro_batches, start=1):
            with averaging(self.model, now=i == len(micro_batches)):
                real, fake = self.model(torch.cat([source, video])).chunk(2)
                loss = share * hinge_discriminator(real, fake)
                (self.world * loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def step(self, learning_rate: float) -> None:
        """Update the discriminator, and the adaptive weight for the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.world > 1:
            dist.all_reduce(self._gradients)
        self.adaptive = adaptive_weight(self._gradients[0], self._gradients[1])
        self.forget()

    def forget(self) -> None:
        """Discard the gradients of a step."""
        self.optimizer.zero_grad()
        self._gradients.zero_()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adaptive": self.adaptive,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.adaptive = state["adaptive"].to(self.adaptive.device)


class PatchDiscriminator3d(nn.Module):
    """(B, 3, T, H, W) in about [-1, 1] -> logits (B, 1, T', H', W'), high for a real patch.

    With L layers a side of H' is H / 2^L, rounded up, and T' is T / 4: time is halved by the first
    two layers alone. Width 64 and four layers are the published ones, 11.7 million parameters.

    Group norm replaces the published batch norm, whose statistics would be those of a micro-batch
    and so depend on its size and on the number of workers. Spectral norm depends on them as well:
    it does a step of power iteration in every forward pass.

    Raises:
        ValueError: a width that is no multiple of 8, or fewer than two layers.
    """

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        if width < 1 or width % _GROUPS or layers < 2:
            raise ValueError(
                f"discriminator: found width {width} and {layers} layers, expected a multiple of "
                f"{_GROUPS} and at least 2"
            )
        widths = [width * min(2**i, _MAX_WIDENING) for i in range(layers + 1)]
        steps: list[nn.Module] = [_conv(3, widths[0], stride=2), _activation()]
        for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 1 if i == layers else (2 if i == 1 else (1, 2, 2))
            norm = nn.GroupNorm(_GROUPS, outputs)
            steps += [_conv(inputs, outputs, stride=stride), norm, _activation()]
        self.layers = nn.Sequential(*steps, _conv(widths[-1], 1))

    @classmethod
    def for_student(cls, config: DecoderConfig) -> PatchDiscriminator3d:
        """A discriminator whose widest layers are about as wide as the student's: width 64 for the
        published students, 16 for `tiny-ltx` (0.7 million parameters)."""
        widest = max(config.decoder_block_out_channels)
        return cls(width=max(1, round(widest / _MAX_WIDENING / _GROUPS)) * _GROUPS)

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.layers(video)
        return logits


def _conv(inputs: int, outputs: int, stride: int | tuple[int, int, int] = 1) -> nn.Conv3d:
    conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
    nn.init.normal_(conv.weight, std=0.02)  # as Isola et al.
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, from logits of real and of the student's patches (detached)."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """The student's loss: the mean logit of its video, negated."""
    return -fake.float().mean()


def last_layer_gradients(
    reconstruction: Tensor, adversarial: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of two losses with respect to the decoder's last weights, `conv_out.conv.weight`.

    The graph is retained for the backward pass. For a part of a batch, scale both gradients by its
    share of the clips, then add them up.
    """
    (by_reconstruction,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (by_adversarial,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    return by_reconstruction, by_adversarial


@torch.no_grad()
def adaptive_weight(by_reconstruction: Tensor, by_adversarial: Tensor) -> Tensor:
    """Scalar that scales the adversarial gradient to the norm of the other, from 0 to 10,000.

    |reconstruction| / (|adversarial| + 1e-4) at the last layer, Esser et al. 2021, equation 7.
    """
    reconstruction: Tensor = torch.linalg.vector_norm(by_reconstruction.float())
    adversarial: Tensor = torch.linalg.vector_norm(by_adversarial.float())
    return (reconstruction / (adversarial + _EPSILON)).clamp(0, _MAX_WEIGHT)
