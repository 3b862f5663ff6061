"""A checkpoint is whole or it is refused."""

from __future__ import annotations

import pytest
import torch

from turbo_vaed.distill.checkpoint import Checkpoint, load, save
from turbo_vaed.errors import CorruptFile


@pytest.fixture
def state():
    weights = {"w": torch.arange(4.0)}
    return Checkpoint(
        step=3,
        weights=weights,
        ema=weights,
        best=weights,
        best_step=2,
        best_psnr=30.0,
        optimizer={"state": {}, "param_groups": []},
        random_state=torch.get_rng_state(),
        spent_usd="0.01",
        stopped="running",
        reason="",
        history=[{"step": 3, "loss": 0.1}],
    )


def test_round_trip(state, tmp_path):
    save(state, tmp_path / "c")
    found = load(tmp_path / "c")
    assert found.step == 3
    assert torch.equal(found.weights["w"], state.weights["w"])
    assert found.history == state.history


def test_cut_short(state, tmp_path):
    save(state, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match="sha256"):
        load(tmp_path)


def test_no_hash_is_no_checkpoint(state, tmp_path):
    save(state, tmp_path)
    (tmp_path / "checkpoint.sha256").unlink()
    with pytest.raises(CorruptFile, match="no whole checkpoint"):
        load(tmp_path)
