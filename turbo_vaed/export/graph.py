"""What every exporter begins with: a decoder as a graph of 2-D convolutions, and its scaling.

Shapes: B batch, C channels, t latent frames, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from turbo_vaed.export.package import check_latent_scaling

if TYPE_CHECKING:
    from torch import nn

    from turbo_vaed.export.export_job import ExportJob
    from turbo_vaed.models import TurboVaedDecoder
    from turbo_vaed.models.layers import Form


class ExportError(RuntimeError):
    """A decoder did not become the program that a phone needs."""


def graph_of(job: ExportJob) -> nn.Module:
    """The job's decoder, and before it its scaling where it has one.

    Raises:
        ValueError: the shape or the latent scaling does not fit the decoder.
    """
    check_latent_scaling(job.decoder.config.latent_channels, job.latent_mean, job.latent_std)
    own = plain(job.decoder, job.latent_shape)
    if job.precision == "fp16":
        own = with_epsilons_in_half(own)
    return scaled(own, job.latent_mean, job.latent_std)


LEAST_EPSILON_IN_HALF = 1e-6
"""Sixteen of the smallest steps of float16."""


def plain(
    decoder: TurboVaedDecoder, latent_shape: tuple[int, int, int, int, int], form: Form = "taps"
) -> TurboVaedDecoder:
    """A copy of the decoder for latents (B, C, t, h, w), on the CPU and in float32.

    In the default memory format: exporters take copies into another one for work of their own.

    Args:
        form: of its wide convolutions. Winograd's makes a file a third larger.

    Raises:
        ValueError: the shape does not fit the decoder.
    """
    import torch

    decoder.config.video_shape(latent_shape)  # a ValueError where the channels are wrong
    return decoder.for_inference(form=form, memory_format=torch.contiguous_format).to("cpu")


def with_epsilons_in_half(decoder: TurboVaedDecoder) -> TurboVaedDecoder:
    """The same decoder, whose norms divide by no zero in float16, changed in place: the published
    epsilon of 1e-8 is one there, and frames of nearly equal values came out as NaN."""
    from turbo_vaed.models.layers import ChannelMean

    for module in decoder.modules():
        if isinstance(module, ChannelMean) and 0 < float(module.bias) < LEAST_EPSILON_IN_HALF:
            module.bias.fill_(LEAST_EPSILON_IN_HALF)
    return decoder


def scaled(
    decoder: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> nn.Module:
    """z * std + mean, a number of each per channel, then the decoder; without them it alone."""
    if mean is None or std is None:
        return decoder
    # The class is in here so that reading a package does not import PyTorch.
    import torch
    from torch import Tensor, nn

    class Denormalising(nn.Module):
        std: Tensor
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder
            for name, values in (("std", std), ("mean", mean)):
                tensor = torch.tensor(values, dtype=torch.float32)
                self.register_buffer(name, tensor.view(1, -1, 1, 1, 1))

        def forward(self, latents: Tensor) -> Tensor:
            out: Tensor = self.decoder(latents * self.std + self.mean)
            return out

    return Denormalising().eval()
