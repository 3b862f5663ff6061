"""Each planted sign of trouble is reported; a healthy run and everything near it are not."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from turbo_vaed.distill.validation import (
    colour_shift,
    dead_channels,
    flicker_between_chunks,
    loss_spike,
    signs_of_trouble,
)
from turbo_vaed.models import PRESETS

LEVEL = 2 / 255


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def losses(count: int, spread: float = 0.1, seed: int = 0) -> list[float]:
    """Falling, with noise, as of a real run."""
    drawn = noise(count, seed=seed).tolist()
    return [0.05 * math.exp(-i / 100 + spread * z) for i, z in enumerate(drawn)]


def test_a_spike_is_reported_at_its_first_step() -> None:
    before = losses(60)
    sign = loss_spike([*before, 0.3])
    assert sign is not None and re.search(r"0\.3.*\b50 steps", sign)
    assert loss_spike([*before, 0.3, 0.3]) is None  # the same spike


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3])
def test_a_noisy_falling_loss_is_no_spike(spread: float) -> None:
    healthy = losses(300, spread)
    assert [n for n in range(1, 301) if loss_spike(healthy[:n])] == []


def test_nearly_equal_losses_may_differ_a_little() -> None:
    assert loss_spike([0.05] * 60 + [0.07]) is None
    assert loss_spike([0.05] * 60 + [0.08]) is not None


def test_a_young_run_or_one_with_negative_losses_has_no_spike() -> None:
    assert loss_spike([]) is None
    assert loss_spike([0.05] * 19 + [9.0]) is None
    assert loss_spike([-0.1] * 60 + [9.0]) is None


def features() -> dict[str, Tensor]:
    return {"mid_block": noise(1, 32, 3, 4, 4), "up_block_0": 1e-3 * noise(1, 16, 5, 8, 8) + 7}


def test_dead_channels_are_counted_by_block() -> None:
    planted = features()
    planted["up_block_0"][:, 2:5] = 24.0  # constant, whatever its value
    sign = dead_channels(planted)
    assert sign is not None and re.search("3 of 16 .*up_block_0", sign) and "mid" not in sign
    planted["up_block_0"][:] = 0
    assert "16 of 16" in str(dead_channels(planted))


def test_small_channels_and_a_few_constants_are_no_trouble() -> None:
    healthy = features()
    healthy["mid_block"][:, :10] *= 1e-3
    healthy["up_block_0"][:, :2] = 24.0
    assert dead_channels(healthy) is None
    assert dead_channels({name: 1e-6 * state for name, state in healthy.items()}) is None


def test_a_shift_of_one_colour_is_reported_with_its_size() -> None:
    source = noise(1, 3, 5, 16, 16).clamp(-1, 1)
    video = source + 0.2 * noise(1, 3, 5, 16, 16, seed=1)
    assert colour_shift(video, source) is None
    video[:, 2] -= 6.5 * LEVEL
    sign = colour_shift(video, source)
    assert sign is not None and "-6." in sign
    video[:, 2] += 2.5 * LEVEL
    assert colour_shift(video, source) is None


def wrong_by_chunk(chunks: list[int], levels: float) -> tuple[Tensor, Tensor]:
    """A video whose error changes sign with every chunk, over a little noise."""
    frames = sum(chunks)
    source = 0.5 * noise(1, 3, frames, 8, 8)
    signs = torch.cat([torch.full((n,), (-1.0) ** i) for i, n in enumerate(chunks)])
    error = 0.5 * levels * LEVEL * signs.reshape(1, 1, -1, 1, 1)
    return source + error + 0.2 * LEVEL * noise(1, 3, frames, 8, 8, seed=1), source


@pytest.mark.parametrize(
    ("chunks", "keeps_first"), [([1, 4, 4, 4], False), ([4, 4, 4], True), ([1, 2, 2], False)]
)
def test_flicker_at_the_boundaries_of_latent_frames_is_reported(
    chunks: list[int], keeps_first: bool
) -> None:
    video, source = wrong_by_chunk(chunks, levels=4)
    sign = flicker_between_chunks(video, source, frames=chunks[-1], keeps_first=keeps_first)
    assert sign is not None and f"every {chunks[-1]} frames" in sign
    moved = [chunks[0] + 1, *chunks[1:-1], chunks[-1] - 1]
    video, source = wrong_by_chunk(moved, levels=4)
    elsewhere = flicker_between_chunks(video, source, frames=chunks[-1], keeps_first=keeps_first)
    assert elsewhere is None  # the same jumps, one frame late


def test_invisible_flicker_and_a_lone_first_frame_are_no_trouble() -> None:
    video, source = wrong_by_chunk([1, 4, 4], levels=0.8)
    assert flicker_between_chunks(video, source, frames=4, keeps_first=False) is None
    video, source = wrong_by_chunk([1, 8], levels=30)
    assert flicker_between_chunks(video, source, frames=4, keeps_first=False) is None


def test_a_large_error_that_is_equal_everywhere_is_no_flicker() -> None:
    video, source = wrong_by_chunk([1, 4, 4], levels=12)
    video = video + 10 * LEVEL * noise(1, 3, 9, 8, 8, seed=2)
    assert flicker_between_chunks(video, source, frames=4, keeps_first=False) is None


@pytest.mark.parametrize(
    ("total", "frames", "keeps_first"), [(1, 4, False), (5, 4, False), (4, 4, True), (6, 1, False)]
)
def test_a_video_without_two_kinds_of_frame_steps_has_no_flicker(
    total: int, frames: int, keeps_first: bool
) -> None:
    source = noise(1, 3, total, 8, 8)
    video = noise(1, 3, total, 8, 8, seed=1)
    assert flicker_between_chunks(video, source, frames=frames, keeps_first=keeps_first) is None


def test_signs_of_trouble_have_their_kinds() -> None:
    video, source = wrong_by_chunk([1, 4, 4], levels=40)
    dead = {"mid_block": torch.zeros(1, 8, 3, 2, 2)}
    kinds = [
        kind for kind, text in signs_of_trouble(video + 0.1, source, dead, PRESETS["tiny-ltx"])
    ]
    assert kinds == ["dead channels", "colour shift", "flicker"]
    assert signs_of_trouble(source, source, features(), PRESETS["tiny-ltx"]) == []
