"""Distillation under Ray Train: the driver, what every worker runs, and what goes between them.

Events go from rank 0 to the driver, and the run's costs from the driver to rank 0, through one
actor on the driver's node, a `Channel`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from turbo_vaed.distill.checkpoints import Checkpoint, Saver, Store
from turbo_vaed.distill.job import Job, RunCosts
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.stopping import GOOD_ENOUGH, Stopping, good_enough
from turbo_vaed.errors import CorruptFile, Fault, TurboVaedError, UserError

_log = logging.getLogger(__name__)
RAY = "ray"
"""Ray's own files, next to the checkpoints; no run goes on from them."""
News = tuple[RunCosts | None, float, bool]
"""What workers hear of the driver: costs, their age in seconds, whether to stop."""
_INTERRUPT_SECONDS = 45.0
"""For workers to end their step, save and return; then they are left to Ray."""
MAX_FAILURES = 20
"""Workers lost without notice in one run. What a restart cannot fix ends the run at once."""
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""For glibc's malloc, bytes. By itself it gives every large tensor back to the system, which clears
the pages anew at each step: 6 to 12 % of a step on a CPU."""
FLUSH_SECONDS = 600.0
"""How long the end of a run waits for its last checkpoint to be written."""
PATIENCE_SECONDS = 120.0
"""How long S3 is tried again for the checkpoint to begin with."""
COSTS_SECONDS = 5.0
"""How often the driver reports the run's costs."""
_POLL_SECONDS = 0.5
_REFRESH_SECONDS = 2.0
_RESIZE_SECONDS = 10.0
"""How often a run on fewer workers looks for more."""

OnEvent = Callable[[dict[str, Any]], None]
ReportCosts = Callable[[], RunCosts]


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What came out: the state at the end, with the best EMA weights and the run's history."""

    checkpoint: Checkpoint
    store: Store


def distill(
    job: Job,
    *,
    storage: str,
    on_event: OnEvent,
    costs: ReportCosts | None = None,
    token: int | None = None,
) -> Distilled:
    """Run a job to its end, its budget or until its student is good enough, on as many workers as
    there are, within its bounds.

    Args:
        job: the student, its data and its params.
        storage: folder or URL (`s3://bucket/prefix`) for checkpoints, which every worker reaches;
            a run of the same job that was interrupted goes on from the newest whole one in it,
            and so does one that was good enough by other limits.
        on_event: gets rank 0's events, in order, from one thread.
        costs: what the run has cost, called every `COSTS_SECONDS` from that thread; None without a
            ledger: the workers then go by the clock.
        token: of the run, as `Store` has it.

    Raises:
        Busy: a later run has taken the place of this one.
        UserError: more workers than the cluster has room for, or a learning rate that diverges.
        CorruptFile: data is missing or damaged; the checkpoints stay.
        Fault: the workers failed more than `MAX_FAILURES` times.
    """
    storage = storage.rstrip("/")
    store = Store(f"{storage}/{job.name}", keep=job.params.keep_checkpoints, token=token)
    store.claim()
    troubles: list[str] = []
    found = store.newest(on_trouble=lambda text: None)  # the workers look again, and report
    if found is None or not is_complete(found[1], job):
        _fit(job, store, storage, on_event, costs)
        found = store.newest(on_trouble=troubles.append)
    if found is None or found[1].stopped == "running":
        why = "".join(f"; {text}" for text in troubles)
        raise Fault(f"distillation ended without a final checkpoint{why}; run it again to resume")
    state = found[1]
    if state.stopped == "diverged":
        store.clear()  # nothing to go on from
        raise UserError(
            f"distillation diverged: {state.reason}; lower distill.learning_rate in params.yaml "
            f"(it is {job.params.learning_rate:g})"
        )
    if state.stopped == GOOD_ENOUGH:  # by the limits as they are now, which may be other ones
        enough = good_enough(job, state.history, best_psnr=state.best_psnr)
        state = dataclasses.replace(state, reason=enough.reason if enough else state.reason)
    return Distilled(checkpoint=state, store=store)


def is_complete(state: Checkpoint, job: Job) -> bool:
    """Whether nothing is left to train: all steps are done, or the student is good enough by the
    limits of the job, whatever they were when it stopped."""
    if state.stopped == GOOD_ENOUGH:
        return good_enough(job, state.history, best_psnr=state.best_psnr) is not None
    return state.stopped == "finished"


def _fit(
    job: Job, store: Store, storage: str, on_event: OnEvent, costs: ReportCosts | None
) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    least, most = job.params.min_workers, job.params.workers
    on_gpu = _check_room(least)
    # Train V2 puts its own classes here, whose fields are not published.
    scaling: Any = ScalingConfig
    running: Any = RunConfig
    with _channel(on_event, costs) as channel:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "job": job,
                "store": store.url,
                "token": store.token,
                "channel": channel,
            },
            scaling_config=scaling(
                num_workers=most if least == most else (least, most),
                use_gpu=on_gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if on_gpu else {})},
                elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            ),
            run_config=running(
                name=f"{job.name}-{uuid.uuid4().hex[:8]}",  # Ray must not restore a run by itself
                storage_path=f"{storage}/{RAY}",
                # A node that is gone counts as several failures of the controller: no limit to
                # those, nor to machines that are taken back with notice.
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[_end_at_once()],
                worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
            ),
        )
        try:
            _run_interruptibly(trainer.fit, channel)
        except Exception as error:  # Ray wraps what a worker raised in its own classes
            raise _ours(error) from error


def _run_interruptibly(fit: Callable[[], Any], channel: Any) -> None:
    """Run `fit` in a thread of its own. An interrupt is raised here once the workers have saved a
    checkpoint and returned; where Ray gets it, it aborts them, and all since their last checkpoint
    is lost."""
    import ray

    ended: Future[None] = Future()

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=run, name="distill-fit", daemon=True).start()
    try:
        while not wait([ended], timeout=1.0).done:  # for ever, it could miss a signal
            pass
        ended.result()
    except KeyboardInterrupt:
        print("interrupted: saving a checkpoint", flush=True)
        ray.get(channel.interrupt.remote())
        with suppress(Exception):
            ended.result(_INTERRUPT_SECONDS)
        raise


def train_worker(config: dict[str, Any]) -> None:
    """Run the loop on this worker.

    Args:
        config: `job`, a `Job`; `store`, the URL of its checkpoints; `token`, of the run that may
            write them; `channel`, the handle of a `Channel`.

    Raises:
        TurboVaedError: what the run cannot go on from; what a new start can mend is retried.
    """
    import ray.train
    import torch
    from ray.train.torch import get_device

    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # the CPU that this worker holds

    on_event = config["channel"].put.remote
    store = Store(config["store"], keep=job.params.keep_checkpoints, token=config["token"])
    name, resume = _agreed_start(store, rank, world, on_event)
    warned = [warning["kind"] for warning in resume.warnings] if resume else []
    latest = LatestCosts(config["channel"])
    with Saver(store, on_event) as saver:
        loop = Loop(
            job,
            rank=rank,
            world=world,
            device=device,
            on_event=on_event,
            save=saver.submit,
            decide=Stopping(
                job,
                warned=warned,
                latest_costs=latest,
                is_interrupted=lambda: latest.is_interrupted,
            ),
            interruption=_interruption,
            resume=resume,
        )
        loop.emit_start(name)
        loop.run()
        saver.flush(FLUSH_SECONDS)


def _agreed_start(
    store: Store, rank: int, world: int, on_event: OnEvent
) -> tuple[str | None, Checkpoint | None]:
    """The newest whole checkpoint: rank 0 chooses, all read the same."""
    import torch.distributed as dist

    found = None
    chosen: list[str | None] = [None]
    if rank == 0:
        found = store.newest(
            on_trouble=lambda text: on_event(_read_retried(text)), patience_seconds=PATIENCE_SECONDS
        )
        chosen = [found[0] if found else None]
    if world > 1:
        dist.broadcast_object_list(chosen)
    (name,) = chosen
    if name is None:
        return None, None
    return name, found[1] if found else store.read(name, patience_seconds=PATIENCE_SECONDS)


def _read_retried(text: str) -> dict[str, Any]:
    return {"event": "warning", "step": 0, "at": time.time(), "kind": "checkpoint", "text": text}


def _interruption() -> dict[str, Any] | None:
    """What Ray knows of a worker's node that is being taken away. Every rank joins in."""
    import ray.train

    found = ray.train.get_preemption_info()
    if found is None:
        return None
    left = None if found.deadline_ms is None else max(0.0, found.deadline_ms / 1000 - time.time())
    return {"deadline_seconds": left, "ranks": found.preempted_ranks}


class Channel:
    """A Ray actor: events in order, until the driver takes them; and the driver's news for the
    workers, the run's latest costs and whether they are to stop."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._costs: tuple[RunCosts, float] | None = None
        self._is_interrupted = False

    def put(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        taken, self._events = self._events, []
        return taken

    def put_costs(self, costs: RunCosts) -> None:
        """Replace the costs."""
        self._costs = costs, time.monotonic()

    def interrupt(self) -> None:
        """Ask the workers to save and to stop."""
        self._is_interrupted = True

    def news(self) -> News:
        """The latest costs and their age in seconds, for machines' clocks differ; and whether the
        workers are to stop."""
        if self._costs is None:
            return None, 0.0, self._is_interrupted
        return self._costs[0], time.monotonic() - self._costs[1], self._is_interrupted


class LatestCosts:
    """The costs that the driver reported last: waited for once, since this group of workers may
    begin long after the job was handed over, and then polled without waiting."""

    def __init__(self, channel: Any) -> None:
        self._channel, self._is_first = channel, True
        self.is_interrupted = False
        self._request()

    def _request(self) -> None:
        self._requested, self._requested_at = self._channel.news.remote(), time.monotonic()

    def __call__(self) -> RunCosts | None:
        import ray

        done, _ = ray.wait([self._requested], timeout=None if self._is_first else 0)
        self._is_first = False
        if not done:
            return None
        news: News = ray.get(done[0])
        costs, age_seconds, self.is_interrupted = news
        waited = time.monotonic() - self._requested_at
        self._request()
        if costs is None:
            return None
        return dataclasses.replace(costs, at=time.time() - age_seconds - waited)


@contextmanager
def _channel(on_event: OnEvent, costs: ReportCosts | None) -> Iterator[Any]:
    """A channel on this node, emptied by a thread until the block ends.

    Raises:
        Fault: the thread failed, so that events and costs are missing from then on.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Channel)
    channel = actor.options(num_cpus=0, scheduling_strategy=here).remote()
    is_over = threading.Event()

    def poll() -> None:
        refreshed, reported = time.monotonic(), -math.inf
        while True:
            is_last = is_over.is_set()
            for event in ray.get(channel.take.remote()):
                on_event(event)
            if is_last:
                return
            if time.monotonic() - refreshed > _REFRESH_SECONDS:
                refreshed = time.monotonic()
                _refresh_machines()
            if costs is not None and time.monotonic() - reported > COSTS_SECONDS:
                reported = time.monotonic()
                try:
                    channel.put_costs.remote(costs())
                except Exception as error:  # events go on; workers go by what they know
                    _log.warning("the run's costs do not reach its workers: %s", error)
            is_over.wait(_POLL_SECONDS)

    failures: list[Exception] = []

    def poll_safely() -> None:
        try:
            poll()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=poll_safely, name="distill-events", daemon=True)
    thread.start()
    try:
        yield channel
    finally:
        is_over.set()
        thread.join()
        ray.kill(channel)
    if failures:
        raise Fault(f"what the training reported was lost: {failures[0]}") from failures[0]


def _check_room(least: int) -> bool:
    """Whether the cluster has GPUs; Ray waits for workers that never fit, for ever, at a price."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    on_gpu = bool(resources.get("GPU", 0) > 0)
    kind = "GPU" if on_gpu else "CPU"
    if least > int(resources.get(kind, 0)):
        raise UserError(
            f"distill.min_workers is {least}, a {kind} each; Ray has "
            f"{int(resources.get(kind, 0))}: lower it in params.yaml"
        )
    return on_gpu


def _refresh_machines() -> None:
    """Have Ray Train see at once what became of the machines: by itself it looks every 20 s, and
    tries in between to place workers on those that are gone."""
    import ray

    try:
        coordinator: Any = ray.get_actor(
            "AutoscalingCoordinator", namespace="AutoscalingCoordinator"
        )
    except ValueError:  # not started yet
        return
    # A requester that it does not know gets nothing, and all others' share is worked out anew.
    coordinator.get_reserved_resources.remote("turbo-vaed", recompute=True)


def _end_at_once() -> Any:
    """A callback that ends a run when a worker raises what no new start mends."""
    from ray.train import UserCallback

    class EndAtOnce(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            for error in worker_exceptions.values():
                ours = _found(error)
                if isinstance(ours, CorruptFile) or (ours and not isinstance(ours, Fault)):
                    raise ours

    return EndAtOnce()


def _found(error: BaseException) -> TurboVaedError | None:
    """The project's own error in a chain of Ray's wrappers."""
    chain: list[BaseException] = [error]
    while chain:
        each = chain.pop()
        if isinstance(each, TurboVaedError):
            return each
        inner = [each.__cause__, getattr(each, "cause", None)]
        inner += list((getattr(each, "worker_failures", None) or {}).values())
        chain += [e for e in inner if isinstance(e, BaseException)]
    return None


def _ours(error: Exception) -> TurboVaedError:
    ours = _found(error)
    if ours is not None:
        return ours
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = str(root).strip().splitlines()
    return Fault(f"distillation failed: {lines[-1] if lines else type(root).__name__}")
