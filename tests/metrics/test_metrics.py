"""The metrics against their formulas, scikit-image and pytorch-msssim."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_msssim import ms_ssim as reference_ms_ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from turbo_vaed.metrics import (
    BETTER,
    MAX_PSNR_DB,
    QUALITY,
    clip_quality,
    flicker,
    frames_from_uint8,
    ms_ssim,
    ms_ssim_scales,
    psnr,
    ssim,
    summarise,
    summarise_quality,
    uint8_from_network,
)

METRICS = [psnr, ssim, ms_ssim]


def test_psnr_of_known_error():
    reference = torch.zeros(2, 3, 16, 16)
    assert float(psnr(reference + 0.1, reference)) == pytest.approx(20.0, abs=1e-5)
    half_wrong = reference.clone()
    half_wrong[0] = 0.1  # one frame of two: the clip's MSE halves, + 3.01 dB
    expected = -10 * math.log10(0.01 / 2)
    assert float(psnr(half_wrong, reference)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_psnr_is_that_of_scikit_image(noise, make_pair):
    x, y = make_pair(3, 3, 32, 48, noise=noise)
    expected = peak_signal_noise_ratio(y.double().numpy(), x.double().numpy(), data_range=1)
    assert float(psnr(x, y)) == pytest.approx(expected, abs=1e-6)


def test_identical_frames_have_the_best_values(make_pair):
    x, _ = make_pair(2, 3, 32, 40)
    assert float(psnr(x, x)) == MAX_PSNR_DB
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-6)
    assert float(ms_ssim(x, x)) == pytest.approx(1, abs=1e-6)


def test_psnr_never_passes_the_cap():
    x = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)
    assert float(psnr(x + 1e-9, x)) == MAX_PSNR_DB


@pytest.mark.parametrize(("height", "width", "noise"), [(32, 48, 0.02), (61, 47, 0.3)])
def test_ssim_is_that_of_scikit_image(height, width, noise, make_pair):
    x, y = make_pair(3, 3, height, width, noise=noise)
    expected = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert float(ssim(x, y)) == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(176, 192), (161, 175)])
def test_ms_ssim_is_that_of_pytorch_msssim(height, width, make_pair):
    x, y = make_pair(2, 3, height, width)
    expected = reference_ms_ssim(x, y, data_range=1, size_average=True)
    assert float(ms_ssim(x, y)) == pytest.approx(float(expected), abs=1e-5)


def test_ms_ssim_scales_that_fit():
    assert [ms_ssim_scales(s) for s in (11, 20, 21, 64, 128, 160, 161, 720)] == [
        1, 1, 2, 3, 4, 4, 5, 5,
    ]  # fmt: skip


@pytest.mark.parametrize("side", [11, 13, 64, 128])
def test_ms_ssim_of_small_frames(side, make_pair):
    x, y = make_pair(2, 3, side, side)
    value = float(ms_ssim(x, y))
    assert 0 < value < 1
    if ms_ssim_scales(side) == 1:  # one scale is plain SSIM, to the power that the five sum to
        assert value == pytest.approx(float(ssim(x, y)), abs=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_has_the_values_of_its_clips(metric, make_pair):
    x, y = make_pair(3, 2, 3, 24, 24)
    batch = metric(x, y)
    assert batch.shape == (3,)
    for i in range(3):
        assert float(batch[i]) == pytest.approx(float(metric(x[i], y[i])), abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_more_noise_is_worse(metric, make_pair):
    values = [float(metric(*make_pair(2, 3, 64, 64, noise=n))) for n in (0.01, 0.05, 0.2)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_do_not_normalise_to_the_frames_range(metric, make_pair):
    """A dim pair and its double differ in range only: normalised metrics would agree."""
    x, y = make_pair(2, 3, 32, 32)
    assert float(metric(x * 0.25, y * 0.25)) > float(metric(x, y)) + 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_bad_frames_are_refused(metric, assert_refused):
    assert_refused(metric)


def test_one_nan_pixel_is_refused():
    x = torch.zeros(2, 3, 16, 16)
    x[1, 2, 3, 4] = math.nan
    with pytest.raises(ValueError, match="nan"):
        psnr(x, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("metric", [ssim, ms_ssim])
def test_frames_smaller_than_the_window_are_refused(metric):
    x = torch.zeros(1, 3, 10, 64)
    with pytest.raises(ValueError, match="10x64"):
        metric(x, x)


def test_uint8_survives_conversion_and_back():
    video = np.arange(2 * 3 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 3)
    frames = frames_from_uint8(video)
    assert frames.shape == (2, 3, 3, 4, 5)
    assert float(frames[0, 0, 1, 0, 0]) == pytest.approx(1 / 255)
    np.testing.assert_array_equal(uint8_from_network(frames.movedim(2, 1) * 2 - 1), video)


def test_uint8_of_network_output_clamps_and_refuses_nan():
    video = torch.tensor([-1.5, -1.0, 1.7]).view(1, 3, 1, 1, 1)
    assert uint8_from_network(video).ravel().tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match="not finite"):
        uint8_from_network(video * math.nan)


def test_clip_quality_has_the_values_of_the_metrics():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    off = np.where(source > 127, source - 10, source + 10).astype(np.uint8)
    quality = clip_quality(off, source)
    assert set(quality) == {"psnr", "ssim", "ms_ssim", "detail", "flicker"}
    assert set(quality) <= set(BETTER)
    assert quality["psnr"] == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)
    expected = flicker(frames_from_uint8(off), frames_from_uint8(source))
    assert quality["flicker"] == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="float"):
        clip_quality(off / 255, source)


def test_a_clip_of_one_frame_has_no_flicker():
    frame = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    assert set(clip_quality(frame, frame)) == {*QUALITY, "detail"}


def test_summary_of_known_values():
    values = [float(v) for v in range(40)]
    summary = summarise(values, 0.05)
    assert summary.mean == pytest.approx(19.5)
    assert summary.worst == pytest.approx(0.5)  # two of forty
    assert summarise([3.0, 1.0], 0.05).worst == 1.0  # at least one
    assert summarise([3.0, 1.0], 1).worst == 2.0
    falling = summarise(values, 0.05, better="lower")
    assert falling.mean == summary.mean
    assert falling.worst == pytest.approx(38.5)


def test_each_metric_has_its_own_worst():
    clips = [{"psnr": float(v), "flicker": float(v)} for v in range(40)]
    summary = summarise_quality(clips, 0.05)
    assert summary["psnr"] == {"mean": 19.5, "worst": 0.5}
    assert summary["flicker"] == {"mean": 19.5, "worst": 38.5}


@pytest.mark.parametrize(
    "clips", [[{"psnr": 1.0}, {"psnr": 1.0, "ssim": 1.0}], [{"loudness": 1.0}], []]
)
def test_clips_that_do_not_add_up_are_refused(clips):
    with pytest.raises(ValueError, match="expected"):
        summarise_quality(clips, 0.05)


@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=50),
    share=st.floats(0.001, 1),
)
def test_worst_is_never_better_than_the_mean(values, share):
    summary = summarise(values, share)
    assert min(values) - 1e-9 <= summary.worst <= summary.mean + 1e-9
    falling = summarise(values, share, better="lower")
    assert max(values) + 1e-9 >= falling.worst >= summary.mean - 1e-9


@pytest.mark.parametrize(
    ("values", "share"), [([], 0.05), ([1.0, math.nan], 0.05), ([1.0], 0), ([1.0], 1.1)]
)
def test_bad_summaries_are_refused(values, share):
    with pytest.raises(ValueError, match="expected"):
        summarise(values, share)


@pytest.mark.parametrize("metric", [ssim, ms_ssim])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_full(metric, dtype: torch.dtype) -> None:
    """In half precision the variances of a picture of little contrast drown."""
    generator = torch.Generator().manual_seed(0)
    frames = (0.5 + 0.01 * torch.randn(2, 3, 64, 64, generator=generator)).to(dtype)
    other = (frames.float() + 0.005 * torch.randn(frames.shape, generator=generator)).to(dtype)
    expected = metric(frames.double(), other.double())
    assert metric(frames, other).item() == pytest.approx(expected.item(), abs=1e-4)
