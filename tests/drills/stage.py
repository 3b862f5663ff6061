"""What the stage `distill` does, over the toy job: in this process, or as a process to be killed.

`python -m tests.drills.stage FOLDER STORAGE [--workers N] [--slow-seconds S] [--on-ray]`
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from tests.drills.toy import USD_PER_HOUR, make_job
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.costs import Ledger, Meter, Rate, steady
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Checkpoint
from turbo_vaed.distill.progress import ProgressRecorder
from turbo_vaed.distill.train import train_worker
from turbo_vaed.settings import ENVIRONMENT, Settings

RUN, STAGE = "drill-1", "distill"

Worker = Callable[[dict[str, Any]], None]
Listen = Callable[[dict[str, Any]], None]


def ledger_url(folder: Path) -> str:
    return f"sqlite:///{folder}/ledger.db"


def progress_file(folder: Path) -> Path:
    return folder / "checkpoints/progress.jsonl"


def run(
    folder: Path,
    storage: str,
    *,
    workers: int = 1,
    worker: Worker = train_worker,
    on_ray: bool = False,
    listen: Listen = lambda event: None,
) -> Checkpoint:
    """Distil the job of `folder`, metered and followed; the state at its end.

    Args:
        worker: what the workers run: `train_worker`, or that with a fault built around it.
        on_ray: as the product does it; else `worker` runs here, alone, which takes no cluster.
        listen: gets the events after the recorder.
    """
    job = make_job(folder, workers=workers)
    lock = threading.Lock()  # here a worker's threads report events themselves
    with Ledger.open(ledger_url(folder)) as ledger:
        meter = Meter(
            ledger,
            run=RUN,
            customer="toy",
            stage=STAGE,
            nodes=steady(
                Rate(resource="node", market="local", usd_per_hour=USD_PER_HOUR, source="a drill")
            ),
            interval_seconds=1.0,
        )
        recorder = ProgressRecorder(
            progress_file(folder),
            job=job.name,
            steps=job.params.steps,
            usd_per_hour=USD_PER_HOUR,
            run_context=RunContext(
                mark_wasted=meter.mark_wasted, mark_useful_until=meter.mark_useful_until
            ),
        )

        def take(event: dict[str, Any]) -> None:
            with lock:
                recorder.on_event(event)
                listen(event)

        with meter, recorder:
            if on_ray:
                with (
                    ray_session(Settings.from_environment().ray_address),
                    patch.object(train, "train_worker", worker),
                ):
                    return train.distill(job, storage=storage, on_event=take).checkpoint
            with patch.object(train, "_fit", fit_here(worker)):
                return train.distill(job, storage=storage, on_event=take).checkpoint


def slowed(worker: Worker, seconds: float) -> Worker:
    """`worker` with steps that last, so that a kill lands inside one."""

    def work(config: dict[str, Any]) -> None:
        from turbo_vaed.distill.student import Training

        take_step = Training.step

        def slow(self: Any, batch: Any, step: int) -> Any:
            time.sleep(seconds)
            return take_step(self, batch, step)

        with patch.object(Training, "step", slow):
            worker(config)

    return work


def poisoned(worker: Worker, read: int) -> Worker:
    """`worker` whose read number `read` of a batch comes back as NaN, as from bad memory."""

    def work(config: dict[str, Any]) -> None:
        from turbo_vaed.distill.data import Clips

        whole, reads = Clips.read, iter(range(10**9))

        def bad(self: Any, places: Any, size: int) -> Any:
            batch = whole(self, places, size)
            if next(reads) == read:
                batch.source.mul_(float("nan"))
            return batch

        with patch.object(Clips, "read", bad):
            worker(config)

    return work


def forgetful(worker: Worker) -> Worker:
    """`worker` with no memory for clips: it reads every one anew, as of data that are large."""

    def work(config: dict[str, Any]) -> None:
        with patch("turbo_vaed.distill.data.MEMORY_BYTES", 0):
            worker(config)

    return work


class NoNews:
    """Of a driver without a ledger, which nobody interrupts."""

    is_interrupted = False

    def __init__(self, channel: object) -> None:
        pass

    def __call__(self) -> None:
        pass


def fit_here(worker: Worker) -> Callable[..., None]:
    """The product's own start of workers, with this process for the only one."""

    def fit(job: Any, store: Any, storage: str, on_event: Listen, *_: Any) -> None:
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        channel = SimpleNamespace(put=SimpleNamespace(remote=on_event))
        with (
            patch("ray.train.get_context", lambda: context),
            patch("ray.train.torch.get_device", lambda: torch.device("cpu")),
            patch("ray.train.get_preemption_info", lambda: None),
            patch.object(train, "LatestCosts", NoNews),
        ):
            worker({"job": job, "store": store.url, "token": store.token, "channel": channel})

    return fit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("storage")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slow-seconds", type=float, default=0.1)
    parser.add_argument("--on-ray", action="store_true")
    given = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(1)
    run(
        given.folder,
        given.storage,
        workers=given.workers,
        worker=slowed(train_worker, given.slow_seconds),
        on_ray=given.on_ray,
    )


if __name__ == "__main__":
    main()
