"""Everything that runs have made is lost, and comes back from a backup: with a real run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drills import restores

pytestmark = pytest.mark.nightly


def test_a_customer_goes_on_after_everything_is_lost(tmp_path: Path) -> None:
    root = restores.make(tmp_path / "checkout")
    assert restores.carry_out(root, tmp_path / "kept", {}, lambda: None).facts.charges > 0
