"""The closed-form start: its pieces, and what it is worth on a linear code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from turbo_vaed.distill.data import Clips
from turbo_vaed.distill.linear_start import (
    SIGNAL,
    capture_input,
    fit_conv,
    hold_constant,
    pixel_blocks,
    representation,
    start_decoder,
)
from turbo_vaed.distill.validation import dead_channels
from turbo_vaed.metrics import psnr_from_mse
from turbo_vaed.models import TurboVaedDecoder


def test_blocks_repeat_the_first_frame():
    video = torch.arange(2 * 3 * 5 * 4 * 4.0).reshape(2, 3, 5, 4, 4)
    x = pixel_blocks(video, 2, 2)
    assert x.shape == (2, 3 * 2 * 2 * 2, 3, 2, 2)
    first = x[:, :, 0].reshape(2, 3, 2, 4, 2, 2)
    assert torch.equal(first[:, :, 0], first[:, :, 1])
    # channel order is (c, t, y, x): the last block's last pixel is the video's last
    assert x[1, -1, -1, -1, -1] == video[1, -1, -1, -1, -1]
    assert pixel_blocks(video[:, :, :4], 2, 2, keeps_first=True).shape[2] == 2


def test_representation_leaves_a_channel_free_and_pairs_where_it_can():
    x = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    paired = representation(x, 9)
    assert paired.shape[1] == 8
    assert torch.equal(paired[:, :4], -paired[:, 4:])
    assert representation(x, 4).shape[1] == 3
    assert paired.pow(2).sum(1).mean().sqrt().item() == pytest.approx(SIGNAL, rel=1e-3)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
def test_fit_conv_recovers_a_convolution(kind):
    torch.manual_seed(0)
    truth, guess = kind(4, 5, 3, padding=1), kind(4, 6, 3, padding=1)
    size = (12,) * (2 if kind is nn.Conv2d else 3)
    x = torch.randn(6, 4, *size)
    with torch.no_grad():
        y = truth(x)
        fit_conv(guess, x, y)
        assert (guess(x)[:, :5] - y).abs().max() < 5e-2  # the ridge shrinks it by a percent


def test_a_module_can_be_held_constant_and_its_input_captured():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    hold_constant(net[0], 1)
    seen = capture_input(net[1], lambda: net(torch.randn(1, 1, 3, 3)))
    assert seen.shape == (1, 2, 3, 3)
    assert (seen[:, 1] == 24).all()


def test_no_channel_is_left_without_a_gradient(make_job):
    """Written by nothing and read by nothing, it would stay so for ever."""
    job = make_job()
    data = Clips(clips=job.clips, latents=job.latents)
    crops = data.draw_crops(split="train", size=16, count=8, seed=1, step=0)
    batch = data.read(crops, 16)
    config = replace(job.student, decoder_block_out_channels=(32, 64))  # room to spare
    decoder = TurboVaedDecoder(config)
    start_decoder(decoder, batch.latents, batch.source)
    video, features = decoder.decode_with_features(batch.latents)
    assert psnr_from_mse((video - batch.source).square().mean() / 4) > 15
    assert dead_channels(features) is None
