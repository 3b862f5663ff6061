"""Checkpoints and restarts of a distillation: what they cost; parts of `bench/distill.py`."""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.distill_sides import NEVER, PUBLISHED, Demo, Ours, in_turns, make_job, say
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.loop import Loop


class _Saved(Exception):
    """The run has a checkpoint: it may be lost now."""


def checkpoints(demo: Demo, folder: Path, rounds: int, every: int, threads: int) -> dict[str, Any]:
    """What a checkpoint every so many steps costs: blocks of steps with one and without, in turns,
    of one group of workers, for two groups differ by more than a checkpoint takes."""
    job, _ = make_job(
        demo, folder, **PUBLISHED, steps=NEVER, validate_every=NEVER, checkpoint_every=2 * every
    )
    ours = Ours(job, threads=threads, store=str(folder.parent / "checkpoints"))
    ours.advance(every // 2)  # so that a checkpoint falls into the middle of every second block
    ours.advance(2 * every)
    forms = {name: partial(ours.advance, every) for name in ("without", "with")}
    taken = in_turns(forms, rounds)
    end = ours.finish()
    copied, written = end["copied"], end["written"]
    assert len(written) == rounds + 1, "one in the warm-up, and one in every second block"
    medians = {name: statistics.median(each) for name, each in taken.items()}
    writing = statistics.median(event["seconds"] for event in written)
    return {
        "every_steps": every,
        "bytes": written[-1]["bytes"],
        "seconds_per_block": {name: round(each, 3) for name, each in medians.items()},
        "share": round(1 - medians["without"] / medians["with"], 4),
        "loop_waits_seconds": round(statistics.median(copied), 4),
        "background_seconds": round(writing, 4),
        "share_if_nothing_overlapped": round(
            (statistics.median(copied) + writing) / medians["without"], 4
        ),
    }


def resumed_start(demo: Demo, folder: Path, script: str) -> float:
    """Seconds from the start of a process that resumes a run to the end of its first step.

    Args:
        script: calls `resume` when it gets `--resume FILE`.
    """
    job, _ = make_job(
        demo, folder, **PUBLISHED, steps=6, checkpoint_every=3, workers=2, validate_every=NEVER
    )
    storage = folder.parent / "resumed"
    store = Store(f"{storage}/{job.name}")

    def save(state: Any) -> None:
        store.write(state)
        raise _Saved

    loop = Loop(job, on_event=lambda _: None, save=save)
    try:
        loop.run()
    except _Saved:
        say(f"  saved at step {loop.step}")
    job_file = folder.parent / "job.pickle"
    job_file.write_bytes(pickle.dumps((job, str(storage))))
    start = time.time()
    done = subprocess.run(
        [sys.executable, script, "--resume", str(job_file)], check=True, stdout=subprocess.PIPE
    )
    resumed_from, at = json.loads(done.stdout.splitlines()[-1])
    assert resumed_from == loop.step, f"resumed from {resumed_from}, not from {loop.step}"
    return round(float(at) - start, 1)


def resume(job_file: Path) -> None:
    """In a process of its own: go on with a run; its first new step and when, as JSON."""
    from turbo_vaed.cluster.session import ray_session

    job, storage = pickle.loads(job_file.read_bytes())
    events: list[dict[str, Any]] = []
    with ray_session():
        train.distill(job, storage=storage, on_event=events.append)
    (start, *_) = [event for event in events if event["event"] == "start"]
    (step, *_) = [event for event in events if event["event"] == "step"]
    print(json.dumps([start["resumed_from"], step["at"]]))
