"""Checkpoints: one object with everything that a resumed run needs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from turbo_vaed.errors import CorruptFile

_FILE, _HASH = "checkpoint.pt", "checkpoint.sha256"


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
    reached_at: float
    """Unix seconds at which the run was at `step`: time after it is lost with what comes next."""
    spent_usd: str
    stopped: str
    """`running`, `finished`, `budget` or `diverged`."""
    reason: str
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write atomically: the hash goes last, and a folder without it is no checkpoint."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_FILE}.partial"
    torch.save(asdict(checkpoint), partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    os.replace(partial, folder / _FILE)
    (folder / _HASH).write_text(digest)


def load(folder: Path) -> Checkpoint:
    """Read and verify.

    Raises:
        CorruptFile: cut short, altered or incomplete.
    """
    import torch

    path, hashed = folder / _FILE, folder / _HASH
    if not path.is_file() or not hashed.is_file():
        raise CorruptFile(f"{folder} holds no whole checkpoint ({_FILE} and {_HASH})")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != hashed.read_text().strip():
        raise CorruptFile(f"{path}: sha256 {found[:12]}… is not the one it was saved with")
    return Checkpoint(**torch.load(path, weights_only=True))
