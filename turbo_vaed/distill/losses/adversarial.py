"""The adversarial part: a discriminator of patches, its hinge losses, and how much they weigh.

PatchGAN (Isola et al. 2017, arXiv 1611.07004) over space and time, in the layout of Turbo-VAED's
training code (arXiv 2508.09136); hinge losses of Lim and Ye (2017, arXiv 1705.02894) and Miyato et
al. (2018, arXiv 1802.05957); the adaptive weight of Esser et al. (2021, arXiv 2012.09841,
equation 7).

Nothing here depends on how a batch is split over micro-batches or workers: losses are means over
clips of one size, the discriminator looks at a clip alone, and the gradients that the adaptive
weight compares add up. So sum them over all parts, and use the weight in the next step.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.config import DecoderConfig

_GROUPS = 8
_WIDEST = 8
"""Times the first width; as published, layers get no wider."""
_MOST = 1e4
_EPSILON = 1e-4


class PatchDiscriminator3d(nn.Module):
    """(B, 3, T, H, W) in about [-1, 1] -> logits (B, 1, T', H', W'), high for a real patch.

    With L layers a side of H' is H / 2^L, rounded up, and T' is T / 4: time is halved by the first
    two layers alone. Width 64 and four layers are the published ones, 11.7 million parameters.

    Group norm for the published batch norm, whose statistics would be of a micro-batch, so that
    the result would change with its size and with the number of workers. Spectral norm is no way
    out: it takes a step of power iteration in every forward pass, however many make a batch.

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
        widths = [width * min(2**i, _WIDEST) for i in range(layers + 1)]
        steps: list[nn.Module] = [_conv(3, widths[0], stride=2), _activation()]
        for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 1 if i == layers else (2 if i == 1 else (1, 2, 2))
            norm = nn.GroupNorm(_GROUPS, outputs)
            steps += [_conv(inputs, outputs, stride=stride), norm, _activation()]
        self.layers = nn.Sequential(*steps, _conv(widths[-1], 1))

    @classmethod
    def for_student(cls, config: DecoderConfig) -> PatchDiscriminator3d:
        """One whose widest layers are about as wide as the student's, as with the published
        students, which have the published one; 16 for `tiny-ltx`, 0.7 million parameters."""
        widest = max(config.decoder_block_out_channels)
        return cls(width=max(1, round(widest / _WIDEST / _GROUPS)) * _GROUPS)

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
    """What the discriminator minimises: logits of both below a margin of 1, on average.

    `fake` is of the student's video detached from it.
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """What the student minimises: logits of its video, negated."""
    return -fake.float().mean()


def last_layer_gradients(
    reconstruction: Tensor, adversarial: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of two losses with respect to the decoder's last weights, `conv_out.conv.weight`.

    The graph is kept for the backward pass to come. Of a part of a batch, scale both losses by
    its share of the clips first, then add the gradients up.
    """
    (by_reconstruction,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (by_adversarial,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    return by_reconstruction, by_adversarial


@torch.no_grad()
def adaptive_weight(by_reconstruction: Tensor, by_adversarial: Tensor) -> Tensor:
    """Scalar: what makes the adversarial gradient as long as the other, from 0 to 10000.

    |reconstruction| / (|adversarial| + 1e-4) at the last layer, Esser et al. 2021, equation 7.
    """
    length: Tensor = torch.linalg.vector_norm(by_reconstruction.float())
    other: Tensor = torch.linalg.vector_norm(by_adversarial.float())
    return (length / (other + _EPSILON)).clamp(0, _MOST)
