"""How far a figure over clips can be trusted: the bootstrap of Efron (1979), over its clips.

Clips of one video resemble each other. With `MIN_GROUPS` videos or more, whole videos are drawn,
not clips; with fewer there are too few to draw from, clips are drawn, and the interval is
rather too narrow than too wide. Of few units the percentile interval is too narrow besides: it is
widened by what Student's t and the variance of a small sample ask of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

MIN_GROUPS = 5
_RESAMPLES = 1000
_SEED = 0


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    groups: Sequence[Hashable],
    confidence: float,
    *,
    is_extreme: bool = False,
) -> tuple[float, float]:
    """The interval of a statistic of clips.

    Args:
        statistic: of the clips with these indices, of which some come several times.
        groups: the video of each clip.
        confidence: 0.95, say.
        is_extreme: the statistic is of the worst clips, than which no draw is worse: the interval
            reaches as far to either side.

    Raises:
        ValueError: there are fewer than two clips, or a confidence outside (0, 1).
    """
    if len(groups) < 2 or not 0 < confidence < 1:
        raise ValueError(
            f"found {len(groups)} clips and confidence {confidence}, expected two clips or more "
            "and a confidence between 0 and 1"
        )
    names = list(dict.fromkeys(groups))
    if len(names) >= MIN_GROUPS:
        units = [np.flatnonzero([group == name for group in groups]) for name in names]
    else:
        units = [np.array([i]) for i in range(len(groups))]
    random = np.random.default_rng(_SEED)
    found = [
        statistic(np.concatenate([units[k] for k in random.integers(0, len(units), len(units))]))
        for _ in range(_RESAMPLES)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, (tail, 1 - tail))
    middle = statistic(np.arange(len(groups)))
    below, above = max(0.0, middle - low), max(0.0, high - middle)
    if is_extreme:
        below = above = max(below, above)
    wider = _wider(len(units), tail)
    return middle - wider * below, middle + wider * above


def _wider(units: int, tail: float) -> float:
    """Student's t over the normal's quantile, and the root of n / (n - 1)."""
    from scipy.stats import norm, t

    return float(t.ppf(1 - tail, units - 1) / norm.ppf(1 - tail) * math.sqrt(units / (units - 1)))
