"""What the values of a teacher's config.json must be, for the keys that are read here.

A config comes from elsewhere: a number may be a text, a list too short, a divisor 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_MOST = 2**16
"""Of a count: far above every network's, and small enough to make a list of."""
_SCALED = ("spatial", "temporal", "spatiotemporal")


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse a value of the wrong kind; keys that are not read and nulls pass.

    Raises:
        ValueError: it names the key, what was found and what is allowed.
    """
    for key, value in config.items():
        allowed, is_one = _KINDS.get(key, _ANY)
        if value is not None and not is_one(value):
            raise ValueError(f"{key} is {str(value)[:80]!r}; allowed: {allowed}")


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
        and abs(value) < 1e30
    )


def _is_above_zero(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return _is_number(value) and 1 <= value <= _MOST and value == int(value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_scaled(value: object) -> bool:
    return value in _SCALED


def _list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(is_one, value))


_ANY = ("anything", lambda _value: True)
_COUNT = (f"a whole number from 1 to {_MOST}", _is_count)
_COUNTS = (f"a list of whole numbers from 1 to {_MOST}", _list_of(_is_count))
_FLAG = ("true or false", _is_flag)
_FLAGS = ("a list of true and false", _list_of(_is_flag))
_ABOVE_ZERO = ("a number above 0", _is_above_zero)
_NUMBERS = ("a list of finite numbers", _list_of(_is_number))
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = MappingProxyType(
    {
        **dict.fromkeys(("latent_channels", "z_dim", "base_dim"), _COUNT),
        **dict.fromkeys(("patch_size", "patch_size_t"), _COUNT),
        **dict.fromkeys(("spatial_compression_ratio", "temporal_compression_ratio"), _COUNT),
        **dict.fromkeys(("block_out_channels", "dim_mult"), _COUNTS),
        **dict.fromkeys(("temporal_expansions", "spatial_expansions"), _COUNTS),
        **dict.fromkeys(("timestep_conditioning", "is_residual"), _FLAG),
        **dict.fromkeys(("decoder_spatio_temporal_scaling", "temperal_downsample"), _FLAGS),
        "decoder_inject_noise": _FLAGS,
        "upsample_type": (f"a list of {', '.join(_SCALED)}", _list_of(_is_scaled)),
        "scaling_factor": _ABOVE_ZERO,
        "shift_factor": ("a finite number", _is_number),
        "latents_mean": _NUMBERS,
        "latents_std": ("a list of numbers above 0", _list_of(_is_above_zero)),
    }
)
