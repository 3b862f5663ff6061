"""Flicker: changes of brightness and colour over time that the reference does not have.

The error's change from each frame to the next, (x[t+1] - x[t]) - (y[t+1] - y[t]), as a root
mean square: dtSSD of Erofeev et al. 2015 ("Perceptually Motivated Benchmark for Video
Matting"), on RGB, with two choices of our own. It is taken of the means of areas of about
16x16 pixels, since the eye sees flicker in areas and not in fine detail (Kelly 1979), where the
error of every reconstruction would drown it; and the root is over a whole clip, so that one
jump, as between two decoded chunks, weighs more than many small ones of the same sum.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair

AREA = 16
"""Side in pixels of the areas whose means are compared."""


def flicker(frames: Tensor, reference: Tensor) -> Tensor:
    """Flicker of each clip: root mean square over areas, channels and steps in time.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). Float64, in the unit of the frames: from 0, for
    a difference from the reference that stands still, to 2. Lower is better. A flash of height
    a over one whole frame inside a clip gives a * sqrt(2 / (T - 1)).

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN, or a single frame, which has
            no next frame to compare with.
    """
    return flicker_steps(frames, reference).square().mean(dim=-1).sqrt()


def flicker_steps(frames: Tensor, reference: Tensor, *, area: int = AREA) -> Tensor:
    """Where it flickers: the root mean square of each step from a frame to the next.

    (T, 3, H, W) -> (T - 1,); (B, T, 3, H, W) -> (B, T - 1). Errors as `flicker`. With an area
    of one pixel it is dtSSD as published, of which the mean over steps is then taken.
    """
    check_pair(frames, reference)
    if frames.shape[-4] < 2:
        raise ValueError("frames: found one frame, expected two or more: flicker is between frames")
    if area < 1:
        raise ValueError(f"area: found {area}, expected a side of at least 1 pixel")
    error = frames.double() - reference.double()
    height, width = error.shape[-2:]
    # Where the side is no multiple of the area's, adaptive pooling makes all areas a little
    # smaller, and lets neighbours share a row of pixels.
    grid = (-(-height // area), -(-width // area))
    means = F.adaptive_avg_pool2d(error.flatten(0, -4), grid).reshape(*error.shape[:-2], *grid)
    return means.diff(dim=-4).square().mean(dim=(-3, -2, -1)).sqrt()
