"""A whole run on a team's servers that is killed at random, a few times."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.drills import kills

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]


def test_a_run_that_is_killed_at_random_ends_as_an_undisturbed_one() -> None:
    # Not pytest's folder: PostgreSQL, which is not root, must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as name:
        Path(name).chmod(0o755)
        assert kills.carry_out(Path(name), seed=3, kills=8).kills.total() == 8
