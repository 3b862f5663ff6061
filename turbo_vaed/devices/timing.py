"""Whether a series of run times is reliable: warm-up, and an interval of the median.

Pure, and the same for every device: a phone reports seconds as this host does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from turbo_vaed.config.schema import GateParams

_RESAMPLES = 2000
_SEED = 0
_WINDOW = 3
"""Runs that are compared with as many before them."""
LEAST_SECONDS = 0.3
"""Of sampling, where the plan has runs for it: in less, what other processes do is not resolved."""
_STEADY = 0.05
"""Warm is where their medians differ by no more than this share."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a program is measured."""

    threads: int
    max_warmup: int
    """Runs at most before the first sample, besides the cold one; fewer where they are steady."""
    min_samples: int
    max_samples: int
    max_spread: float
    """Width of the median's interval over the median, up to which the samples are enough."""
    confidence: float
    """Of the interval: 0.95, say."""
    refused_spread: float = 1.0
    """Where processes that were measured again and again are still further apart than this and
    than `max_spread`, their times are no basis for a verdict; below, the interval is as wide."""

    @classmethod
    def of(cls, params: GateParams) -> Self:
        """The plan that `gate` in params.yaml asks for."""
        return cls(**{field.name: getattr(params, field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        for name, least in (
            ("threads", 1), ("max_warmup", 0), ("min_samples", 1), ("max_samples", 1)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected {least} or more")
        if self.max_samples < self.min_samples:
            raise ValueError(
                f"max_samples: found {self.max_samples}, expected min_samples, "
                f"{self.min_samples}, or more"
            )
        if not self.max_spread > 0 or not 0 < self.confidence < 1:
            raise ValueError(
                f"max_spread: found {self.max_spread}, expected above 0; "
                f"confidence: found {self.confidence}, expected between 0 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class MedianInterval:
    """Where a median lies, in the samples' unit."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Its width over the median."""
        return (self.high - self.low) / self.median


def interval_of_median(samples: Sequence[float], confidence: float) -> MedianInterval:
    """The median and its percentile bootstrap interval (Efron 1979), the same for the same samples.

    Of one sample nothing is known: the interval is the sample, so ask for several.

    Raises:
        ValueError: there is no sample.
    """
    if not len(samples):
        raise ValueError("samples: found none, expected one or more")
    values = np.asarray(samples, dtype=np.float64)
    picks = np.random.default_rng(_SEED).integers(0, len(values), (_RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    median = float(np.median(values))
    return MedianInterval(median=median, low=min(float(low), median), high=max(float(high), median))


def together(runs: Sequence[MedianInterval]) -> MedianInterval:
    """What several processes found: the median of their medians, and all that any of them allows.

    Processes differ by where their memory lies more than runs within one do, and no number of
    samples in one process shows it.
    """
    return MedianInterval(
        median=statistics.median(run.median for run in runs),
        low=min(run.low for run in runs),
        high=max(run.high for run in runs),
    )


def is_steady(seconds: Sequence[float]) -> bool:
    """Whether the last runs are as fast as those before them: caches and clocks have settled."""
    if len(seconds) < 2 * _WINDOW:
        return False
    before = statistics.median(seconds[-2 * _WINDOW : -_WINDOW])
    last = statistics.median(seconds[-_WINDOW:])
    return abs(last - before) <= _STEADY * before


def warm_up(run: Callable[[], float], most: int) -> int:
    """Run until steady, `most` times at most; how often it ran. `run` returns its seconds."""
    seconds: list[float] = []
    while len(seconds) < most and not is_steady(seconds):
        seconds.append(run())
    return len(seconds)


def sample(run: Callable[[], float], plan: Plan) -> list[float]:
    """Seconds of as many runs as the plan's interval needs, within its counts."""
    seconds = [run() for _ in range(plan.min_samples)]
    while len(seconds) < plan.max_samples:
        is_narrow = interval_of_median(seconds, plan.confidence).spread <= plan.max_spread
        if is_narrow and sum(seconds) >= LEAST_SECONDS:
            break
        # Ten at a time: the bootstrap between runs must not become a load itself.
        more = min(len(seconds), 10, plan.max_samples - len(seconds))
        seconds += [run() for _ in range(more)]
    return seconds
