"""What the tests of the metrics share: pairs of frames, and frames that none may take."""

import math

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def make_pair():
    """`make_pair(T, 3, H, W, noise=, seed=)`: smooth frames with noise, and with less of it."""

    def make(*shape, noise=0.1, seed=0):
        rng = np.random.default_rng(seed)
        h, w = shape[-2:]
        y, x = np.mgrid[:h, :w]
        picture = 0.5 + 0.3 * np.sin(x / 7) * np.cos(y / 5) + rng.normal(0, 0.05, shape)
        worse = picture + rng.normal(0, noise, shape)
        return tuple(torch.tensor(a.clip(0, 1), dtype=torch.float32) for a in (worse, picture))

    return make


@pytest.fixture(
    params=[
        (torch.full((2, 3, 16, 16), 1.01), "expected \\[0, 1\\]"),
        (torch.full((2, 3, 16, 16), -0.01), "expected \\[0, 1\\]"),
        (torch.full((2, 3, 16, 16), math.nan), "nan"),
        (torch.zeros(2, 16, 16, 3), "expected \\(T, 3, H, W\\)"),
        (torch.zeros(3, 16, 16), "expected \\(T, 3, H, W\\)"),
        (torch.zeros(0, 3, 16, 16), "expected \\(T, 3, H, W\\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 16, 16), "expected the same"),
    ],
    ids=["above", "below", "nan", "channels-last", "one frame", "empty", "uint8", "shorter"],
)
def assert_refused(request):
    """`assert_refused(metric)`: bad frames are refused as either argument, beside good ones."""
    frames, message = request.param

    def check(metric):
        good = torch.zeros(2, 3, 16, 16)
        for arguments in ((frames, good), (good, frames)):
            with pytest.raises(ValueError, match=message):
                metric(*arguments)

    return check
