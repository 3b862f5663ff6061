"""Flicker against its formula in numpy, scikit-image's block means and known shapes of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import block_reduce

from turbo_vaed.metrics import flicker, flicker_steps, psnr

STEPS = st.integers(0, 2**32 - 1)


def noise(seed, *shape, low=0.25, high=0.75):
    return torch.tensor(np.random.default_rng(seed).uniform(low, high, shape))


def of_blocks(x, y, area):
    """The definition in numpy, for sides that are multiples of the area."""
    error = block_reduce(x.numpy() - y.numpy(), (1, 1, area, area), np.mean)
    return np.sqrt(np.mean(np.square(error[1:] - error[:-1]), axis=(1, 2, 3)))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (16, 16)])
def test_flicker_is_that_of_block_means(height, width):
    x, y = (noise(seed, 5, 3, height, width) for seed in (0, 1))
    expected = of_blocks(x, y, 16)
    np.testing.assert_allclose(flicker_steps(x, y).numpy(), expected, atol=1e-9)
    assert float(flicker(x, y)) == pytest.approx(math.sqrt(np.mean(expected**2)), abs=1e-9)


def test_flicker_of_single_pixels_is_dtssd_as_published():
    x, y = (noise(seed, 4, 3, 9, 7) for seed in (0, 1))
    a, b = x.numpy(), y.numpy()
    published = [
        math.sqrt((((a[t] - a[t - 1]) - (b[t] - b[t - 1])) ** 2).sum() / b[t].size)
        for t in range(1, 4)
    ]
    assert flicker_steps(x, y, area=1).tolist() == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize(("height", "width"), [(9, 40), (40, 9)])
def test_areas_of_frames_that_do_not_divide_cover_every_pixel(height, width):
    """40 pixels are three areas: 0 to 14, 13 to 27, 26 to 40."""
    x, y = (noise(seed, 3, 3, height, width) for seed in (0, 1))
    error = (x - y).numpy()
    if height == 40:
        error = error.swapaxes(-1, -2)
    spans = ((0, 14), (13, 27), (26, 40))
    means = np.stack([error[..., a:b].mean(axis=(-2, -1)) for a, b in spans], axis=-1)
    expected = np.sqrt(np.square(np.diff(means, axis=0)).mean(axis=(1, 2)))
    np.testing.assert_allclose(flicker_steps(x, y).numpy(), expected, atol=1e-9)


def test_identical_frames_do_not_flicker():
    x = noise(0, 4, 3, 24, 24)
    assert float(flicker(x, x)) == 0
    assert float(flicker_steps(x, x).max()) == 0


@given(seed=STEPS, offset=st.floats(-0.25, 0.25))
def test_a_constant_offset_is_no_flicker(seed, offset):
    x = noise(seed, 3, 3, 20, 20)
    assert float(flicker(x + offset, x)) == pytest.approx(0, abs=1e-12)


@given(seed=STEPS)
def test_a_constant_error_is_no_flicker(seed):
    x, error = noise(seed, 3, 3, 20, 20), noise(seed + 1, 1, 3, 20, 20, low=-0.25, high=0.25)
    assert float(flicker(x + error, x)) == pytest.approx(0, abs=1e-12)


@given(
    seed=STEPS,
    frames=st.integers(3, 9),
    data=st.data(),
    height=st.floats(0.001, 0.25),
    sign=st.sampled_from([-1, 1]),
)
def test_a_flash_of_one_frame_is_flicker(seed, frames, data, height, sign):
    x = noise(seed, frames, 3, 20, 20)
    at = data.draw(st.integers(1, frames - 2))
    flashed = x.clone()
    flashed[at] += sign * height
    expected = height * math.sqrt(2 / (frames - 1))
    assert float(flicker(flashed, x)) == pytest.approx(expected, rel=1e-6)
    steps = flicker_steps(flashed, x)
    assert steps.nonzero().flatten().tolist() == [at - 1, at]


@given(seed=STEPS, scale=st.floats(0.01, 1))
def test_flicker_scales_with_the_frames(seed, scale):
    """A metric that is normalised to the range of its frames would not."""
    x, y = noise(seed, 3, 3, 20, 20), noise(seed + 1, 3, 3, 20, 20)
    assert float(flicker(x * scale, y * scale)) == pytest.approx(
        scale * float(flicker(x, y)), rel=1e-6
    )


@given(seed=STEPS)
def test_flicker_is_the_same_backwards(seed):
    x, y = noise(seed, 4, 3, 20, 20), noise(seed + 1, 4, 3, 20, 20)
    assert float(flicker(x.flip(0), y.flip(0))) == pytest.approx(float(flicker(x, y)), rel=1e-9)


def test_a_colour_jump_at_a_chunk_border_is_flicker_though_psnr_stays():
    """A green cast of 0.02 from frame 8 on, over the error of a reconstruction of 26 dB."""
    reference = noise(0, 17, 3, 64, 64)
    made = reference + 0.05 * torch.tensor(np.random.default_rng(1).normal(size=(17, 3, 64, 64)))
    made = made.clamp(0, 1)
    jumped = made.clone()
    jumped[8:, 1] = (jumped[8:, 1] + 0.02).clamp(0, 1)
    assert abs(float(psnr(jumped, reference) - psnr(made, reference))) < 0.3
    assert float(flicker(jumped, reference)) > 1.15 * float(flicker(made, reference))
    steps = flicker_steps(jumped, reference)
    assert int(steps.argmax()) == 7
    assert float(steps[7]) > 2 * float(steps.median())
    single = flicker_steps(jumped, reference, area=1)  # the error of fine detail drowns it
    assert float(single[7]) < 1.05 * float(single.median())


def test_a_batch_has_the_values_of_its_clips():
    x, y = (noise(seed, 3, 4, 3, 24, 24) for seed in (0, 1))
    assert flicker(x, y).shape == (3,)
    assert flicker_steps(x, y).shape == (3, 3)
    for i in range(3):
        assert float(flicker(x, y)[i]) == pytest.approx(float(flicker(x[i], y[i])), abs=1e-12)


def test_bad_frames_are_refused(assert_refused):
    assert_refused(flicker)


def test_one_frame_and_no_area_are_refused():
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="one frame"):
        flicker(x, x)
    with pytest.raises(ValueError, match="area: found 0"):
        flicker_steps(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16), area=0)
