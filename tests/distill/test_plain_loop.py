"""Our losses and their gradients are those of the published loop written plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.plain_loop import PlainStudent, losses, plain_name, read_source
from turbo_vaed.distill.losses import Weights, distillation_losses, perceptual
from turbo_vaed.distill.student import Student
from turbo_vaed.models import DecoderConfig

CONFIG = DecoderConfig(
    latent_channels=4,
    decoder_block_out_channels=(16, 24),
    decoder_layers_per_block=(1, 1, 1),
    spatio_temporal_scaling=(True, False),
    decoder_spatio_only=(False, False),
    decoder_is_dw_conv=(False, True, True),
    decoder_dw_kernel_size=3,
    patch_size=2,
    aligned_blks_indices=(0, 1, 2),
    aligned_feature_projection_dim=((24, 40), (24, 4 * 10), (16, 8 * 6)),
)
"""A head of every kind: the teacher's resolution, twice it in space, and in space and time."""
WEIGHTS = Weights(source=1.0, teacher=0.5, perceptual=0.7, feature=0.3)


@pytest.fixture
def batch():
    dice = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(2, *shape, generator=dice)

    features = {
        "mid_block": draw(40, 3, 4, 4),
        "up_block_0": draw(10, 3, 8, 8),
        "up_block_1": draw(6, 9, 16, 16),
    }
    return draw(4, 3, 4, 4), draw(3, 5, 16, 16), draw(3, 5, 16, 16), features


def test_losses_and_gradients_are_the_plain_loops(batch):
    latents, source, teacher, features = batch
    torch.manual_seed(1)
    ours = Student(CONFIG, with_heads=True)
    plain = PlainStudent(CONFIG)
    plain.load(ours.state_dict())

    video, projected = ours(latents)
    found = distillation_losses(
        video, projected, source, teacher, features, WEIGHTS, perceptual("gradient")
    )
    found.total.backward()
    expected = losses(plain, latents, source, teacher, features, vars(WEIGHTS))
    expected["loss"].backward()

    assert found.total.item() == pytest.approx(expected["loss"].item(), rel=1e-4)
    assert found.parts.keys() == expected.keys() - {"loss"}
    for name, part in found.parts.items():
        assert part.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = gradients[plain_name(name)].reshape(parameter.shape)
        assert gradient.abs().max() > 0, name
        assert torch.allclose(parameter.grad, gradient, atol=1e-4), name


def test_crops_of_the_source_lie_anywhere_in_their_clips():
    # A pixel's value says where it lies.
    rows, columns = np.arange(8)[:, None, None], np.arange(12)[:, None]
    video = np.zeros((2, 3, 8, 12, 3), np.uint8)
    video[..., 0], video[..., 1] = rows[..., 0], columns[..., 0]
    video[1, ..., 2] = 9
    found = set()
    for seed in range(1000):
        (crop,) = ((read_source(video, [1], 4, (seed,)) + 1) * 127.5).round()
        assert crop.shape == (3, 3, 4, 4)
        row, column, clip = crop[:, 0, 0, 0].tolist()
        assert clip == 9
        assert crop[:2, 2, 3, 2].tolist() == [row + 3, column + 2]
        found.add((row, column))
    assert found == {(row, column) for row in range(5) for column in range(9)}
