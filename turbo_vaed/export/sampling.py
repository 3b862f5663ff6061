"""Which of many clips stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread_out(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, in their order, from all parts of it: clips lie video by video."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]
