"""Fine structure: what a blur loses, what noise does not bring, and intervals over clips."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from turbo_vaed.metrics import bootstrap, detail


@pytest.fixture(scope="module")
def clip():
    """(T, 3, H, W) in [0.2, 0.8], of fine and coarse structures."""
    random = torch.Generator().manual_seed(0)
    fine = torch.rand(4, 3, 48, 48, generator=random)
    coarse = F.interpolate(torch.rand(4, 3, 6, 6, generator=random), (48, 48), mode="bicubic")
    return (0.2 + 0.3 * fine + 0.3 * coarse.clamp(0, 1)).double()


def test_a_clip_keeps_all_of_its_own_detail(clip):
    assert float(detail(clip, clip)) == pytest.approx(1)
    assert detail(torch.stack([clip, clip]), torch.stack([clip, clip])).shape == (2,)


def test_brightness_loses_no_detail_and_half_the_contrast_loses_half(clip):
    assert float(detail(clip + 0.1, clip)) == pytest.approx(1)
    halved = 0.5 + (clip - 0.5) / 2
    assert float(detail(halved, clip)) == pytest.approx(0.5)


def test_a_blur_loses_detail_and_a_stronger_one_more(clip):
    soft, softer = (F.avg_pool2d(clip, k, 1, k // 2, count_include_pad=False) for k in (3, 7))
    assert 0.9 > float(detail(soft, clip)) > float(detail(softer, clip)) > 0


def test_noise_does_not_count_as_detail(clip):
    blurred = F.avg_pool2d(clip, 7, 1, 3, count_include_pad=False)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    noisy = (blurred + noise).clamp(0, 1)
    assert float(detail(noisy, clip)) == pytest.approx(float(detail(blurred, clip)), abs=0.05)


def test_sharpening_one_clip_does_not_make_up_for_a_blurred_one(clip):
    blurred = F.avg_pool2d(clip, 7, 1, 3, count_include_pad=False)
    sharp = (clip + 0.5 * (clip - blurred)).clamp(0, 1)
    assert float(detail(sharp, clip)) == 1


def test_a_flat_reference_loses_no_detail(clip):
    flat = torch.full_like(clip, 0.5)
    assert float(detail(clip, flat)) == 1
    assert float(detail(flat, clip)) == pytest.approx(0, abs=1e-9)


def mean_of(values):
    return lambda at: float(np.asarray(values)[at].mean())


def test_the_bootstrap_draws_whole_videos_where_there_are_enough():
    """Ten clips of a video are no more evidence than one: their interval must not be narrower."""
    values = [k for k in range(6) for _ in range(10)]
    videos = [f"{k}.mp4" for k in values]
    low, high = bootstrap(mean_of(values), videos, 0.95)
    one_low, one_high = bootstrap(mean_of(range(6)), list(range(6)), 0.95)
    assert (low, high) == pytest.approx((one_low, one_high))
    few = bootstrap(mean_of(values), [v if v < "3" else "3.mp4" for v in videos], 0.95)
    assert few[0] > low  # of four videos and fewer, clips are drawn


@pytest.mark.slow
@pytest.mark.parametrize("clips", [3, 5, 9, 20])
def test_the_interval_covers_about_as_often_as_its_confidence_for_any_number_of_clips(clips):
    random = np.random.default_rng(clips)
    held = 0
    for _ in range(100):
        values = random.normal(30, 2, clips)
        low, high = bootstrap(mean_of(values), list(range(clips)), 0.95)
        held += low <= 30 <= high
    assert held >= 86


def test_the_interval_of_the_worst_clip_reaches_to_both_sides():
    values = np.array([16.1, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0])
    low, high = bootstrap(lambda at: float(values[at].min()), list(range(8)), 0.95, is_extreme=True)
    assert low < 14 and high > 18


def test_the_interval_of_equal_clips_is_a_point():
    assert bootstrap(mean_of([3.0] * 5), list("abcde"), 0.95) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("groups", "confidence"), [([], 0.95), (["a"], 0.95), (["a", "b"], 0.0), (["a", "b"], 1.0)]
)
def test_one_clip_has_no_interval(groups, confidence):
    with pytest.raises(ValueError, match="two clips"):
        bootstrap(mean_of([1.0, 2.0]), groups, confidence)
