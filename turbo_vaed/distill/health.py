"""Early signs of trouble: pure functions that give a short text for a person, or None.

They flag, and stop nothing: each threshold lies where a healthy run does not come by chance.

Shapes: B batch, C channels, T frames, H W pixels. Videos are (B, 3, T, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from turbo_vaed.models import DecoderConfig

SPIKE_STEPS = 50
"""A loss is compared with so many before it: a few seconds to minutes, in which it hardly falls."""
SPIKE_LEAST_STEPS = 20
"""With fewer, their spread is not known well enough."""
SPIKE_DEVIATIONS = 6.0
"""Robust standard deviations of the logarithm: the demo's 500 steps stay below 3."""
SPIKE_LEAST_FACTOR = 1.5
"""Over the median: where batches are all alike, the deviations are next to nothing. The demo's
steps stay below 1.35."""
DEAD_SPREAD = 1e-4
"""Of the median channel's spread. Below it a channel is a constant for whatever reads it."""
DEAD_SHARE = 0.125
"""Of a block's channels. The linear start holds one of a block constant, of 8 at the least."""
LEVEL = 2 / 255
"""One 8-bit level, in [-1, 1]."""
COLOUR_LEVELS = 5.0
"""8-bit levels: 2 units of CIELAB lightness on mid grey, which is just seen side by side. Clips of
the demo's student, after its few cents, are off by up to 3.4."""
FLICKER_RATIO = 1.5
"""Error steps at the boundaries over those within: the demo's teacher and student are at 0.6 to
1.3."""
FLICKER_LEVELS = 1.0
"""8-bit levels that the boundaries must be above the rest: less is seen by nobody."""


def look(
    video: Tensor, source: Tensor, features: Mapping[str, Tensor], config: DecoderConfig
) -> list[tuple[str, str]]:
    """Every sign of trouble in a decoded validation clip, as (kind, text).

    Args:
        video, source: what the student made, and what it should have made.
        features: its hidden states, of `decode_with_features`.
    """
    found = {
        "dead channels": dead_channels(features),
        "colour shift": colour_shift(video, source),
        "flicker": flicker_between_chunks(
            video, source, frames=config.temporal_compression, keeps_first=config.is_video_dc_ae
        ),
    }
    return [(kind, text) for kind, text in found.items() if text is not None]


def loss_spike(losses: Sequence[float]) -> str | None:
    """Whether the last loss stands out of those of the steps before it; positive ones count.

    Of a spike that lasts, its first step is told.
    """
    recent = [math.log(loss) for loss in losses[-SPIKE_STEPS - 2 :] if 0 < loss < math.inf]
    if len(recent) < SPIKE_LEAST_STEPS + 2:
        return None
    before = recent[:-2]
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
    limit = median + max(SPIKE_DEVIATIONS * deviation, math.log(SPIKE_LEAST_FACTOR))
    if recent[-1] <= limit or recent[-2] > limit:
        return None
    return (
        f"the loss jumped to {math.exp(recent[-1]):.4g}, {math.exp(recent[-1] - median):.1f} times "
        f"the median of the {len(before)} steps before"
    )


def dead_channels(features: Mapping[str, Tensor]) -> str | None:
    """Blocks of which many channels put out a constant.

    Args:
        features: hidden states (B, C, T, H, W) by block.
    """
    dead = []
    for name, state in features.items():
        spread = state.float().std(dim=(0, 2, 3, 4), correction=0)
        count = int((spread <= DEAD_SPREAD * spread.median()).sum())
        if count > DEAD_SHARE * len(spread):
            dead.append(f"{count} of {len(spread)} channels of {name}")
    if not dead:
        return None
    return f"{', '.join(dead)} put out the same everywhere: that width is not used"


def colour_shift(video: Tensor, source: Tensor) -> str | None:
    """Whether the clip's mean red, green or blue is off."""
    levels = ((video.float() - source.float()).mean(dim=(0, 2, 3, 4)) / LEVEL).tolist()
    if not max(map(abs, levels)) > COLOUR_LEVELS:
        return None
    red, green, blue = levels
    return f"the mean colour is off by {red:+.1f}, {green:+.1f}, {blue:+.1f} of 255 (R, G, B)"


def flicker_between_chunks(
    video: Tensor, source: Tensor, *, frames: int, keeps_first: bool
) -> str | None:
    """Whether the error jumps where the frames of one latent end and those of the next begin.

    Args:
        frames: of a latent frame.
        keeps_first: frame 0 is one of the first latent's. Else it has a latent of its own, the
            next latent's frames begin with frame 1, and the step between the two says nothing:
            a still is coded better, or worse, for that alone.
    """
    error = video.float() - source.float()
    jumps = (error[:, :, 1:] - error[:, :, :-1]).abs().mean(dim=(0, 1, 3, 4)) / LEVEL
    after = torch.arange(1, len(jumps) + 1, device=jumps.device)  # the frame that is jumped to
    at_boundary = (after if keeps_first else after - 1) % frames == 0
    if not keeps_first:
        jumps, at_boundary = jumps[1:], at_boundary[1:]
    if at_boundary.all() or not at_boundary.any():
        return None
    between, within = jumps[at_boundary].mean().item(), jumps[~at_boundary].mean().item()
    if not (between > FLICKER_RATIO * within and between - within > FLICKER_LEVELS):
        return None
    return (
        f"the error changes by {between:.1f} of 255 from one latent frame's frames to the next's, "
        f"by {within:.1f} within: a flicker every {frames} frames"
    )
