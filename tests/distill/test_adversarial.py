"""The discriminator, its hinge losses, and a weight that no split of a batch changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from turbo_vaed.distill.adversarial import (
    PatchDiscriminator3d,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    last_layer_gradients,
)
from turbo_vaed.distill.losses import l1
from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder

STUDENT = DecoderConfig(
    latent_channels=4,
    decoder_block_out_channels=(16, 16),
    decoder_layers_per_block=(1, 1, 1),
    spatio_temporal_scaling=(True, False),
    decoder_spatio_only=(False, False),
    decoder_is_dw_conv=(False, True, True),
    patch_size=4,
)
"""Compression 2 in time, 8 in space."""


@pytest.mark.parametrize(
    ("layers", "frames", "side", "patches"),
    [(4, 5, 32, (2, 2, 2)), (4, 17, 64, (5, 4, 4)), (3, 9, 64, (3, 8, 8)), (3, 8, 40, (2, 5, 5))],
)
def test_a_discriminator_has_a_logit_for_every_patch(
    layers: int, frames: int, side: int, patches: tuple[int, int, int]
) -> None:
    discriminator = PatchDiscriminator3d(width=8, layers=layers)
    logits = discriminator(torch.zeros(2, 3, frames, side, side))
    assert tuple(logits.shape) == (2, 1, *patches)


def test_a_discriminator_has_the_published_layout() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in PatchDiscriminator3d().parameters())
    widths = (3, 64, 128, 256, 512, 512, 1)
    convolutions = sum(27 * a * b + b for a, b in pairwise(widths))
    assert count == convolutions + 2 * sum(widths[2:-1])  # scale and shift of four norms
    with pytest.raises(ValueError, match=r"width 12 and 4 layers, .*\b8\b"):
        PatchDiscriminator3d(width=12)
    with pytest.raises(ValueError, match="and 1 layers"):
        PatchDiscriminator3d(layers=1)


@pytest.mark.parametrize(
    ("preset", "width"), [("turbo-vaed-ltx", 64), ("turbo-vaed-hunyuan", 64), ("tiny-ltx", 16)]
)
def test_a_discriminator_is_as_wide_as_its_student(preset: str, width: int) -> None:
    with torch.device("meta"):
        found = PatchDiscriminator3d.for_student(PRESETS[preset])
        wanted = PatchDiscriminator3d(width=width)
    assert [p.shape for p in found.parameters()] == [p.shape for p in wanted.parameters()]


def test_each_clip_is_judged_independently_and_deterministically() -> None:
    """As batch norm or spectral norm would not do."""
    torch.manual_seed(0)
    discriminator, clips = PatchDiscriminator3d(width=8), torch.randn(3, 3, 5, 32, 32)
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    together = discriminator(clips)
    alone = torch.cat([discriminator(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert together.std() > 0
    assert all(torch.equal(v, before[k]) for k, v in discriminator.state_dict().items())


def test_the_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # real: 0, 0.5, 2; fake: 0, 1, 2
    assert hinge_discriminator(real, fake).item() == pytest.approx((2.5 / 3 + 3 / 3) / 2)
    assert hinge_generator(fake).item() == pytest.approx(2 / 3)


def test_a_discriminator_learns_to_separate_sharp_from_blurred() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator3d(width=8, layers=3)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)

    def pair() -> tuple[Tensor, Tensor]:
        sharp = torch.rand(4, 3, 5, 32, 32) * 2 - 1
        return sharp, torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1))

    for _ in range(12):
        sharp, blurred = pair()
        optimizer.zero_grad()
        hinge_discriminator(discriminator(sharp), discriminator(blurred)).backward()
        optimizer.step()
    sharp, blurred = pair()
    assert discriminator(sharp).mean() > discriminator(blurred).mean() + 1


def test_the_adaptive_weight_is_the_ratio_of_lengths() -> None:
    three, four = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]])
    assert adaptive_weight(three, four).item() == pytest.approx(5 / (1 + 1e-4))
    assert adaptive_weight(torch.zeros(2), four).item() == 0
    assert adaptive_weight(100 * three, torch.zeros(2)).item() == 1e4
    assert adaptive_weight(three, torch.zeros(2)).item() == 1e4  # 5 / 1e-4, held back
    assert not adaptive_weight(three.requires_grad_(True), four).requires_grad


def test_gradients_of_the_last_layer_leave_the_rest_to_the_backward_pass() -> None:
    torch.manual_seed(0)
    decoder = TurboVaedDecoder(STUDENT)
    weight = decoder.conv_out.conv.weight
    video = decoder(torch.randn(1, 4, 2, 4, 4))
    losses = l1(video, torch.zeros_like(video)), -video.mean()
    found = last_layer_gradients(*losses, weight)
    assert all(p.grad is None for p in decoder.parameters())
    sum(losses).backward()
    assert all(p.grad is not None for p in decoder.parameters())
    torch.testing.assert_close(weight.grad, found[0] + found[1])


def test_the_adaptive_weight_does_not_depend_on_how_a_batch_is_split() -> None:
    torch.manual_seed(0)
    decoder = TurboVaedDecoder(STUDENT)
    discriminator = PatchDiscriminator3d.for_student(STUDENT)
    latents, source = torch.randn(4, 4, 3, 4, 4), torch.randn(4, 3, 5, 32, 32)

    def gradients(clips: slice) -> tuple[Tensor, Tensor]:
        video = decoder(latents[clips])
        share = video.shape[0] / 4
        return last_layer_gradients(
            share * l1(video, source[clips]),
            share * hinge_generator(discriminator(video)),
            decoder.conv_out.conv.weight,
        )

    whole = gradients(slice(0, 4))
    parts = [gradients(slice(0, 3)), gradients(slice(3, 4))]
    summed = [a + b for a, b in zip(*parts, strict=True)]
    for a, b in zip(summed, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    assert adaptive_weight(*summed).item() == pytest.approx(
        adaptive_weight(*whole).item(), rel=1e-4
    )
    # The mean over the parts' own weights is another.
    own = sum(adaptive_weight(*part).item() for part in parts) / 2
    assert own != pytest.approx(adaptive_weight(*whole).item(), rel=1e-3)
