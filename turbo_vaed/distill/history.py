"""What a run remembers of its steps: a bounded part in its checkpoints; at its end history.json,
and the curves as CSV, which `dvc plots` draws.

A row of a step has `step`, `at` (Unix seconds), `step_seconds`, losses, `learning_rate`, costs and,
where the step was validated, `val_*`. All of them go to the event log as the run goes on.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from turbo_vaed.costs.money import plain
from turbo_vaed.dataset.latents import LATENTS_REMEDY
from turbo_vaed.distill.checkpoints import Checkpoint
from turbo_vaed.distill.data import read_json
from turbo_vaed.distill.events import read_events
from turbo_vaed.distill.job import Job
from turbo_vaed.runtime.files import atomic_file, write_text

RECENT_STEPS = 64
"""Of a checkpoint, whatever they are: more than what a loss spike or the next step's time need."""
MOST_VALIDATIONS = 1000
"""Of a checkpoint: the last ones, and the best. A trend is taken from fewer."""
MOST_STEPS, LAST_STEPS = 2000, 500
"""Of history.json: about so many rows of a long run, spread evenly, and its last ones."""

LOSS, VALIDATION = "loss.csv", "validation.csv"
"""Columns: step, loss; and step, psnr_db of the student on the validation clips."""

Row = dict[str, Any]


def bounded(rows: list[Row]) -> list[Row]:
    """The rows that a checkpoint holds, whatever the number of steps: validations, and the last
    ones. A function of the rows alone: a resumed run and an uninterrupted one have the same."""
    validated = [row for row in rows[:-RECENT_STEPS] if "val_psnr" in row]
    if len(validated) > MOST_VALIDATIONS:
        best = max(validated, key=_psnr)
        validated = validated[-MOST_VALIDATIONS:]
        if best["step"] < validated[0]["step"]:
            validated.insert(0, best)
    return [*validated, *rows[-RECENT_STEPS:]]


def _psnr(row: Row) -> float:
    psnr = float(row["val_psnr"])
    return -math.inf if math.isnan(psnr) else psnr


def logged_rows(events: Iterable[Mapping[str, Any]], *, job: str, steps: int) -> dict[int, Row]:
    """The rows of a run's first `steps` steps by its event log, thinned where they are many.

    Args:
        events: of the progress file, in order; those of another job are passed over.
        job: its name.
    """
    every = max(1, math.ceil(steps / MOST_STEPS))
    rows: dict[int, Row] = {}
    is_job = False
    for event in events:
        match event["event"]:
            case "open":
                is_job = event["job"] == job
                rows = rows if is_job else {}
            case "start":  # what came after it is computed again
                resumed_from = event["resumed_from"] or 0
                rows = {step: row for step, row in rows.items() if step <= resumed_from}
            case "step" if is_job:
                step, is_last = event["step"], event["step"] > steps - LAST_STEPS
                if step == 1 or step % every == 0 or is_last or "val_psnr" in event:
                    rows[step] = {key: value for key, value in event.items() if key != "event"}
            case "validated" if event["step"] in rows:
                rows[event["step"]] |= {k: v for k, v in event.items() if k.startswith("val_")}
    return {step: row for step, row in rows.items() if step <= steps}


def write_student(
    state: Checkpoint, job: Job, folder: Path, *, progress_file: Path, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `student/` (the best EMA weights) and `history.json`; returns the history.

    Args:
        state: at the end of the run.
        progress_file: with the rows of the steps that the state does not hold; without it the
            history has no more of them than the state.
        summary: what the driver saw of the run (restarts, workers, …), for the history.
    """
    from turbo_vaed.models import TurboVaedDecoder, save_decoder

    decoder = TurboVaedDecoder(job.student)
    decoder.load_state_dict(state.best)
    save_decoder(decoder, folder / "student")
    facts = read_json(f"{job.latents}/latents.json", LATENTS_REMEDY)
    events = read_events(progress_file) if progress_file.is_file() else ()
    rows = logged_rows(events, job=job.name, steps=state.step)
    rows |= {row["step"]: row for row in state.history}
    limit = job.params.stop_usd_per_tenth_db
    history = {
        "steps": [rows[step] for step in sorted(rows)],
        "stopped": state.stopped,
        "reason": state.reason,
        "steps_done": state.step,
        "steps_planned": job.params.steps,
        "best_step": state.best_step,
        "best_val_psnr": state.best_psnr,
        "student_parameters": sum(p.numel() for p in decoder.parameters()),
        "teacher_decoder_parameters": facts["teacher_decoder_parameters"],
        "start": job.params.start,
        "recipe": recipe(job),
        "targets": {"mode": job.plan.mode, "reason": job.plan.reason, **job.plan.figures},
        "spent_usd": state.spent_usd,
        "target_psnr": None if job.quality_target is None else job.quality_target.psnr,
        "limit_usd_per_tenth_db": None if limit is None else plain(limit),
        **summary,
    }
    write_text(folder / "history.json", json.dumps(history, indent=1) + "\n")
    return history


def recipe(job: Job) -> dict[str, float]:
    """The losses that ran, and their weights."""
    params = job.params
    weights = {
        "L1 to the source": params.weight_source,
        "L1 to the teacher": params.weight_teacher,
        f"perceptual ({params.perceptual})": (
            params.weight_perceptual if params.perceptual != "none" else 0.0
        ),
        "features": params.weight_feature,
        "adversarial": params.weight_adversarial,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


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
