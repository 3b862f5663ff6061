"""A decoder with every kind of layer, at a size that lowers in seconds."""

from __future__ import annotations

import torch

from turbo_vaed.models import DecoderConfig, TurboVaedDecoder


def small_decoder(widths: tuple[int, int] = (8, 12)) -> TurboVaedDecoder:
    """Of 8 latent channels, the same weights at each call."""
    torch.manual_seed(0)
    config = DecoderConfig(
        latent_channels=8,
        decoder_block_out_channels=widths,
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_only=(False, False),
        decoder_is_dw_conv=(False, False, True),
        decoder_dw_kernel_size=5,
        patch_size=2,
    )
    return TurboVaedDecoder(config).eval()
