"""The curves of a training as CSV, which `dvc plots` draws."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turbo_vaed.runtime.files import atomic_file

LOSS, VALIDATION = "loss.csv", "validation.csv"
"""Columns: step, loss; and step, psnr_db of the student on the validation clips."""


def write_curves(steps: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write `LOSS` and `VALIDATION` into `folder`.

    Args:
        steps: the training's history: `step`, `loss` after a step of training, `val_psnr` in dB
            where it was validated.
    """
    for name, key, column in ((LOSS, "loss", "loss"), (VALIDATION, "val_psnr", "psnr_db")):
        with atomic_file(folder / name) as path, path.open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(("step", column))
            rows.writerows((row["step"], row[key]) for row in steps if row.get(key) is not None)
