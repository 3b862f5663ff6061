"""States of a run to save, made up."""

from __future__ import annotations

import torch

from turbo_vaed.distill.checkpoints import Checkpoint


def make_checkpoint(step: int, *, best_step: int = 0, numbers: int = 4) -> Checkpoint:
    """The state at a step, with so many numbers in each of its three sets of weights."""
    weights = {"w": torch.arange(float(numbers)) + step, "half": torch.ones(2).bfloat16()}
    return Checkpoint(
        step=step,
        student=weights,
        ema=weights,
        best={"w": torch.zeros(numbers)},
        best_step=best_step,
        best_psnr=30.0,
        optimizer={
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0], "foreach": None}],
        },
        adversary=None,
        precision="fp32",
        skipped=0,
        validate_seconds=0.5,
        reached_at=1e9,
        spent_usd="0.01",
        stopped="running",
        reason="",
        history=[{"step": step, "loss": 0.1}],
    )
