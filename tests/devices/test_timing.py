"""Warm-up and the interval of a median: what they promise, on made-up series."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.devices.timing import (
    MedianInterval,
    Plan,
    interval_of_median,
    is_steady,
    sample,
    together,
    warm_up,
)

SECONDS = st.lists(st.floats(1e-3, 10), min_size=1, max_size=40)
PLAN = Plan(
    threads=1, max_warmup=20, min_samples=5, max_samples=50, max_spread=0.05, confidence=0.95
)


@given(SECONDS)
def test_the_interval_holds_the_median_and_lies_within_the_samples(seconds):
    found = interval_of_median(seconds, 0.95)
    assert min(seconds) <= found.low <= found.median <= found.high <= max(seconds)
    assert found.median == pytest.approx(np.median(seconds))
    assert found == interval_of_median(seconds, 0.95)


@given(SECONDS, st.floats(0.1, 100))
def test_the_unit_does_not_matter(seconds, factor):
    one, other = (interval_of_median([k * s for s in seconds], 0.9) for k in (1.0, factor))
    assert (other.low, other.high) == pytest.approx((one.low * factor, one.high * factor))


def test_the_interval_covers_as_often_as_its_confidence():
    random = np.random.default_rng(1)
    series = random.lognormal(0, 0.3, (400, 30))  # its median is 1
    held = sum(f.low <= 1 <= f.high for f in (interval_of_median(s, 0.95) for s in series))
    assert 0.91 <= held / 400 <= 0.99


def test_more_samples_narrow_the_interval():
    random = np.random.default_rng(2)
    few, many = (interval_of_median(random.lognormal(0, 0.3, n), 0.95).spread for n in (10, 1000))
    assert many < few / 4


def test_the_interval_contains_those_of_all_processes():
    found = together(
        [MedianInterval(median=1, low=0.9, high=1.1), MedianInterval(median=2, low=1.9, high=2.2)]
    )
    assert (found.median, found.low, found.high) == (1.5, 0.9, 2.2)


@pytest.mark.parametrize(
    ("seconds", "steady"),
    [
        ([1.0] * 6, True),
        ([1.0] * 5, False),
        ([2.0, 2.0, 2.0, 1.0, 1.0, 1.0], False),
        ([9.0, 5.0, 1.02, 1.01, 1.03, 1.0, 1.0, 1.01], True),
        ([1.0, 1.0, 1.0, 1.0, 9.0, 1.0], True),  # one busy moment is no trend
    ],
)
def test_times_are_steady_once_the_last_runs_are_as_fast_as_those_before(seconds, steady):
    assert is_steady(seconds) == steady


def test_warm_up_ends_when_times_are_steady_or_at_its_most():
    falling = iter([5.0, 4.0, 3.0, 2.0] + [1.0] * 20)
    assert warm_up(lambda: next(falling), 20) == 9
    never = iter(2.0**k for k in range(30))
    assert warm_up(lambda: next(never), 12) == 12
    assert warm_up(lambda: 1.0, 0) == 0


def test_sampling_ends_when_the_interval_is_narrow_or_at_its_most():
    assert len(sample(lambda: 1.0, PLAN)) == 5
    assert len(sample(lambda: 0.01, PLAN)) == 30  # in less, other processes are not seen
    random = np.random.default_rng(3)
    noisy = sample(lambda: float(random.lognormal(0, 1)), PLAN)
    assert len(noisy) == 50
    calm = sample(lambda: float(random.normal(1, 0.03)), PLAN)
    assert 5 <= len(calm) < 50 and interval_of_median(calm, 0.95).spread <= 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "threads"),
        ({"min_samples": 0}, "min_samples"),
        ({"max_samples": 4}, "max_samples"),
        ({"max_warmup": -1}, "max_warmup"),
        ({"max_spread": 0.0}, "max_spread"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_a_plan_that_measures_nothing_is_refused(change, message):
    values = {name: getattr(PLAN, name) for name in PLAN.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        Plan(**{**values, **change})


def test_no_sample_has_no_median():
    with pytest.raises(ValueError, match="found none"):
        interval_of_median([], 0.95)
