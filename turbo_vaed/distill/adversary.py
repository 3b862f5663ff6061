"""The discriminator's side of the training: its steps, its weight, its state.

The weight of the adversarial loss is that of VQGAN (Esser et al. 2021, eq. 7): the norm of the
reconstruction's gradient at the decoder's last layer over that of the adversarial one. It is taken
from the whole batch of the step before, so that it does not depend on how a batch is split over
micro-batches and workers.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.distill.losses.adversarial import (
    PatchDiscriminator3d,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    last_layer_gradients,
)
from turbo_vaed.distill.student import averaged, averaging
from turbo_vaed.models import TurboVaedDecoder


class Adversary:
    """Discriminator, its optimizer, and the adaptive weight of its loss."""

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
        """The student's loss for (B, 3, T, H, W): it wants to be taken for real.

        Args:
            reconstruction: the other losses' sum, whose gradient the weight is measured by.
            share: of the whole batch that this micro-batch is.
        """
        self.discriminator.requires_grad_(False)  # its own step comes after
        loss = hinge_generator(self.discriminator(video))
        self.discriminator.requires_grad_(True)
        gradients = last_layer_gradients(reconstruction, loss, self.last_layer)
        self._gradients += share * torch.stack(gradients)
        return self.weight * self.adaptive * loss

    def accumulate(self, seen: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
        """Gradients of the discriminator; returns this worker's part of its loss.

        After the student's last backward pass, never between two of them: what DDP does between
        workers must come in one order on all of them, and they may have different numbers of
        micro-batches.

        Args:
            seen: of each micro-batch the student's video, detached, the source, and its share of
                the whole batch.
        """
        total = torch.zeros((), device=self.adaptive.device)
        for i, (video, source, share) in enumerate(seen, start=1):
            with averaging(self.model, now=i == len(seen)):
                real, fake = self.model(torch.cat([source, video])).chunk(2)
                loss = share * hinge_discriminator(real, fake)
                (self.world * loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def step(self, learning_rate: float) -> None:
        """Update the discriminator, and the weight of its loss for the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.world > 1:
            dist.all_reduce(self._gradients)
        self.adaptive = adaptive_weight(self._gradients[0], self._gradients[1])
        self.forget()

    def forget(self) -> None:
        """Drop what a step has accumulated."""
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
