"""Progress over the items of an iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from turbo_vaed.progress import progress

T = TypeVar("T")


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """`items`, counted up to `total` where a person can follow."""
    with progress(label, total) as update:
        for done, item in enumerate(items, 1):
            yield item
            update(done, "")
