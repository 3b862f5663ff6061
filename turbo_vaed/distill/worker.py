"""What Ray Train runs on every worker, and the letter box between rank 0 and the driver."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.job import Job, RunCosts
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.saver import Saver
from turbo_vaed.distill.store import Store

FLUSH_SECONDS = 600.0
"""How long the end of a run waits for its last checkpoint to be written."""


PATIENCE_SECONDS = 120.0
"""How long S3 is asked again for a checkpoint to begin with."""


class LetterBox:
    """A Ray actor: events in the order they were told, until the driver takes them; and the
    driver's word on what the run has cost."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._paid: tuple[RunCosts, float] | None = None

    def put(self, event: dict[str, Any]) -> None:
        """Leave an event."""
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        taken, self.events = self.events, []
        return taken

    def pay(self, paid: RunCosts) -> None:
        """Leave what the run has cost."""
        self._paid = paid, time.monotonic()

    def last_paid(self) -> tuple[RunCosts, float] | None:
        """What was left last, and how many seconds ago; workers that start later ask again."""
        if self._paid is None:
            return None
        paid, at = self._paid
        return paid, time.monotonic() - at


class _News:
    """The driver's word on what the run has cost: waited for once, for this group of workers may
    begin long after the job was handed over, and then asked for without waiting."""

    def __init__(self, letters: Any) -> None:
        self._letters, self._is_first = letters, True
        self._ask()

    def _ask(self) -> None:
        self._asked, self._asked_at = self._letters.last_paid.remote(), time.monotonic()

    def __call__(self) -> RunCosts | None:
        import ray

        done, _ = ray.wait([self._asked], timeout=None if self._is_first else 0)
        self._is_first = False
        if not done:
            return None
        found: tuple[RunCosts, float] | None = ray.get(done[0])
        waited = time.monotonic() - self._asked_at
        self._ask()
        if found is None:
            return None
        costs, age_seconds = found  # by a clock of this machine from here on
        return replace(costs, at=time.time() - age_seconds - waited)


def train_worker(config: dict[str, Any]) -> None:
    """Run the loop on this worker.

    Args:
        config: `job`, a `Job`; `store`, the URL of its checkpoints; `letters`, the handle of a
            `LetterBox`.

    Raises:
        TurboVaedError: what the run cannot go on from; what a new start can mend is retried.
    """
    import ray.train
    from ray.train.torch import get_device

    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # the CPU that this worker holds

    def tell(event: dict[str, Any]) -> None:
        config["letters"].put.remote(event)

    store = Store(config["store"], keep=job.params.keep_checkpoints)
    name, resume = _agreed_start(store, rank, world, tell)
    loop = Loop(
        job,
        rank=rank,
        world=world,
        device=device,
        tell=tell,
        save=lambda state: saver.submit(state),
        resume=resume,
        notice=_notice,
        costs=_News(config["letters"]),
    )
    loop.say_start(name)

    def saved(event: dict[str, Any]) -> None:
        failed = event["event"] == "checkpoint_failed"
        tell(_warning(event["text"], event["step"]) if failed else event)

    with Saver(store, told=saved) as saver:
        loop.run()
        saver.flush(FLUSH_SECONDS)


def _agreed_start(
    store: Store, rank: int, world: int, tell: Any
) -> tuple[str | None, Checkpoint | None]:
    """The newest whole checkpoint: rank 0 chooses, all read the same."""
    if rank == 0:
        found = store.newest(
            on_bad=lambda text: tell(_warning(text, 0)), patience_seconds=PATIENCE_SECONDS
        )
        chosen: list[str | None] = [found[0] if found else None]
    else:
        found, chosen = None, [None]
    if world > 1:
        dist.broadcast_object_list(chosen)
    if chosen[0] is None:
        return None, None
    return chosen[0], found[1] if found else store.read(
        chosen[0], patience_seconds=PATIENCE_SECONDS
    )


def _warning(text: str, step: int) -> dict[str, Any]:
    return {"event": "warning", "step": step, "at": time.time(), "kind": "checkpoint", "text": text}


def _notice() -> dict[str, Any] | None:
    """What Ray knows of a worker's node that is being taken away. Every rank joins in."""
    import ray.train

    found = ray.train.get_preemption_info()
    if found is None:
        return None
    left = None if found.deadline_ms is None else max(0.0, found.deadline_ms / 1000 - time.time())
    return {"deadline_seconds": left, "ranks": found.preempted_ranks}
