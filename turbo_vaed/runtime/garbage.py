"""Python's garbage collector in processes that import torch, MLflow or an exporter: hundreds of
thousands of objects that live as long as the process, and that each full collection visits."""

from __future__ import annotations

import atexit
import gc

_ALLOCATIONS, _YOUNG_COLLECTIONS, _MIDDLE_COLLECTIONS = 50_000, 20, 20


def collect_rarely() -> None:
    """Collect after 50,000 new containers, and not after 700: most of an import's live on."""
    gc.set_threshold(_ALLOCATIONS, _YOUNG_COLLECTIONS, _MIDDLE_COLLECTIONS)


def skip_last_collections() -> None:
    """Collect nothing when this process ends: the interpreter would do so four times, for seconds,
    and the system takes all of its memory anyway. What is registered with `atexit` still runs;
    `__del__` of an object that only a cycle keeps does not."""
    atexit.register(gc.freeze)
