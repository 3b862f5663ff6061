"""The families of teachers that a test runs for, of which the fast loop takes two."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

FAST = {"ltx-video", "wan-2.1"}
"""One that decodes a clip at once, and one that goes through it in chunks."""


def for_every(families: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrise a test by `family`; all but `FAST` are slow."""
    params = [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in families]
    return pytest.mark.parametrize("family", params)
