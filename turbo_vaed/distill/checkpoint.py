"""Checkpoints: one object with everything that a resumed run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after `step` steps. Data and noise are keyed by the step."""

    step: int
    student: dict[str, Any]
    """Weights in training: the decoder's, and those of its alignment heads."""
    ema: dict[str, Any]
    """Of the decoder."""
    best: dict[str, Any]
    """EMA weights of the best validation."""
    best_step: int
    best_psnr: float
    optimizer: dict[str, Any]
    adversary: dict[str, Any] | None
    """Discriminator, its optimizer and the adaptive weight, where there is one."""
    precision: str
    """`bf16` or `fp32`: a run that goes on on another machine computes as it began."""
    skipped: int
    """Steps in a row that were left out, up to this one."""
    validate_seconds: float
    """That the last validation took: the budget is asked whether it holds another."""
    reached_at: float
    """Unix seconds at which the run was at `step`: time after it is lost with what comes next."""
    spent_usd: str
    stopped: str
    """`running`, `finished`, `good enough`, `budget` or `diverged`."""
    reason: str
    """Why, in words."""
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
