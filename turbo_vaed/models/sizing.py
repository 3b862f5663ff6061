"""A student for any teacher: the nearest published layout, its widths scaled to a budget.

Layers, kernels and what is depthwise stay as published (arXiv 2508.09136); which levels scale
follows from the teacher's compression, and the widths from the budget of parameters.
"""

from dataclasses import replace

import torch

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.decoder import TurboVaedDecoder
from turbo_vaed.models.presets import PRESETS
from turbo_vaed.models.teachers.base import LatentSpec

_STEP = 8
"""Widths are multiples of it: narrower steps gain nothing on a phone's vector units."""
_PIXEL_CHANNELS = 4
"""What each pixel has at least before the last convolution: three colours, and one more, for the
norm divides by their size. Of one alone only the sign passes, and a student learns nothing."""
_GRID = 128
"""Steps of the scale to a published width; a width of at most 512 changes at these alone."""


def student_for(spec: LatentSpec, budget_fraction: float = 0.175) -> DecoderConfig:
    """A student for the latents of any teacher: the nearest published layout, its widths scaled so
    that it has as nearly as possible, and not more than, `budget_fraction` of the parameters of the
    teacher's decoder.

    Raises:
        ValueError: no layout has that compression, or no student is so small.
    """
    if not 0 < budget_fraction <= 1:
        raise ValueError(f"budget_fraction: found {budget_fraction}, allowed: above 0, at most 1")
    layout = _layout(spec)
    budget = int(budget_fraction * spec.decoder_parameters)
    smallest = count_parameters(scaled(layout, 1))
    if smallest > budget:
        raise ValueError(
            f"budget_fraction: found {budget_fraction}, {budget} of the teacher's "
            f"{spec.decoder_parameters} parameters; allowed: at least "
            f"{smallest / spec.decoder_parameters:.4g}, the smallest student has {smallest}"
        )
    # Parameters grow about as the square of the widths: look near there first.
    published = count_parameters(scaled(layout, _GRID))
    low, step = max(1, int(_GRID * (budget / published) ** 0.5)), 1
    while count_parameters(scaled(layout, low)) > budget:
        low, step = max(1, low - step), 2 * step
    high, step = low + 1, 1
    while count_parameters(scaled(layout, high)) <= budget:
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if count_parameters(scaled(layout, middle)) <= budget:
            low = middle
        else:
            high = middle
    return _filled(scaled(layout, low), budget)


def _filled(config: DecoderConfig, budget: int) -> DecoderConfig:
    """What is left of the budget goes into single widths, the deepest first, a step at a time.

    Widths are coarse: one step of the widest dense level is several percent of a small student.
    """
    levels = list(reversed(range(len(config.decoder_block_out_channels))))
    while levels:
        for level in tuple(levels):
            widths = list(config.decoder_block_out_channels)
            widths[level] += _multiples(config)[level]
            wider = replace(config, decoder_block_out_channels=tuple(widths))
            if count_parameters(wider) <= budget:
                config = wider
            else:
                levels.remove(level)  # what is too much now will be too much later
    return config


def count_parameters(config: DecoderConfig) -> int:
    """Parameters of the decoder that a config describes, without making its weights."""
    with torch.device("meta"):
        decoder = TurboVaedDecoder(config)
    return sum(parameter.numel() for parameter in decoder.parameters())


def scaled(layout: DecoderConfig, steps: int) -> DecoderConfig:
    """The layout with its widths times `steps` / 128, each the nearest that is allowed."""
    return replace(
        layout,
        decoder_block_out_channels=tuple(
            max(least, int(width * steps / _GRID / multiple + 0.5) * multiple)
            for width, least, multiple in zip(
                layout.decoder_block_out_channels, _least(layout), _multiples(layout), strict=True
            )
        ),
    )


def _multiples(config: DecoderConfig) -> list[int]:
    """What each width is a multiple of; the finest is divided by the pixels of a patch."""
    coarser = len(config.decoder_block_out_channels) - 1
    return [max(_STEP, config.patch_size**2)] + [_STEP] * coarser


def _least(config: DecoderConfig) -> list[int]:
    """The least of each width."""
    coarser = len(config.decoder_block_out_channels) - 1
    return [max(_STEP, _PIXEL_CHANNELS * config.patch_size**2)] + [_STEP] * coarser


def _layout(spec: LatentSpec) -> DecoderConfig:
    """The published layout nearest to a latent space, at its published widths."""
    if not spec.has_lone_first_frame:
        nearest = PRESETS["turbo-vaed-dc"]
    elif spec.compression_h >= 32:
        nearest = PRESETS["turbo-vaed-ltx"]
    else:
        nearest = PRESETS["turbo-vaed-hunyuan"]
    levels = len(nearest.decoder_block_out_channels)
    patch, scaling = _spatial(spec, levels)
    factors = _temporal(spec.compression_t, scaling)
    is_published = max(factors) <= 2
    return replace(
        nearest,
        latent_channels=spec.channels,
        patch_size=patch,
        spatio_temporal_scaling=scaling,
        decoder_spatio_only=tuple(
            scales and factor == 1 for scales, factor in zip(scaling, factors, strict=True)
        ),
        decoder_temporal_factors=() if is_published else factors,
        is_video_dc_ae=not spec.has_lone_first_frame,
        aligned_blks_indices=(),
        aligned_feature_projection_dim=(),
    )


def _spatial(spec: LatentSpec, levels: int) -> tuple[int, tuple[bool, ...]]:
    """Patch size, and which levels double height and width, the finest first.

    Three levels do, as published, and patches the rest.
    """
    space = spec.compression_h
    if space != spec.compression_w or space & (space - 1) or not 1 <= space <= 4 * 2**levels:
        raise ValueError(
            f"compression in space: found {space}x{spec.compression_w}, allowed: the same power "
            f"of two in height and width, at most {4 * 2**levels}"
        )
    patch = min(4, max(1, space // 8))
    doublings = (space // patch).bit_length() - 1
    return patch, tuple(i < doublings for i in range(levels))


def _temporal(compression: int, scaling: tuple[bool, ...]) -> tuple[int, ...]:
    """How many frames each level makes of one: the prime factors, the largest deepest."""
    primes, rest = [], compression
    for prime in range(2, compression + 1):
        while rest % prime == 0:
            primes.append(prime)
            rest //= prime
    slots = sum(scaling)
    if primes and not slots:
        raise ValueError(
            f"compression in time: found {compression}, allowed: 1 where space is not compressed"
        )
    while len(primes) > slots:
        primes = sorted([primes[0] * primes[1], *primes[2:]])
    factors = (1,) * (slots - len(primes)) + tuple(primes)
    return factors + (1,) * (len(scaling) - slots)
