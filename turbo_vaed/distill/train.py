"""Distillation under Ray Train: workers, restarts, events, and the student that comes out."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo_vaed.costs.money import plain
from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.job import Job, RunCosts
from turbo_vaed.distill.stopping import GOOD_ENOUGH, good_enough
from turbo_vaed.distill.store import Store
from turbo_vaed.errors import CorruptFile, Fault, TurboVaedError, UserError

_log = logging.getLogger(__name__)
RAY = "ray"
"""Ray's own files, beside the checkpoints; nothing that a run goes on from."""
MAX_FAILURES = 20
"""Workers lost without notice in one run. What no new start mends ends the run at once."""
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""For glibc's malloc, bytes. By itself it gives every large tensor back to the system, which clears
the pages anew at each step: 6 to 12 % of a step on a CPU."""
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0
PAY_SECONDS = 5.0
"""How often the workers are told what the run has cost."""
_RESIZE_SECONDS = 10.0
"""How often a run on fewer workers looks for more."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What came out: the state at the end, with the best EMA weights and the run's history."""

    checkpoint: Checkpoint
    store: Store


def distill(
    job: Job,
    *,
    storage: str,
    take: Callable[[dict[str, Any]], None],
    costs: Callable[[], RunCosts] | None = None,
) -> Distilled:
    """Run a job to its end, its budget or until its student is good enough, on as many workers as
    there are, within its bounds.

    Args:
        job: what the workers are told.
        storage: folder or URL (`s3://bucket/prefix`) for checkpoints, which every worker reaches;
            a run of the same job that was interrupted goes on from the newest whole one in it,
            and so does one that was good enough by other limits.
        take: gets rank 0's events, in order, from one thread.
        costs: what the run has cost, asked every `PAY_SECONDS` from that thread; None where no
            ledger is kept: the workers then go by the clock.

    Raises:
        UserError: more workers than the cluster has room for, or a learning rate that diverges.
        CorruptFile: data is missing or damaged; the checkpoints are kept.
        Fault: the workers failed more than `MAX_FAILURES` times.
    """
    storage = storage.rstrip("/")
    store = Store(f"{storage}/{job.name}", keep=job.params.keep_checkpoints)
    found = store.newest(on_bad=lambda text: None)  # the workers look again, and tell
    if found is None or not is_complete(found[1], job):
        _fit(job, store, take, storage, costs)
        found = store.newest(on_bad=lambda text: None)
    if found is None or found[1].stopped == "running":
        raise Fault("distillation ended without its last checkpoint; run it again to go on")
    state = found[1]
    if state.stopped == "diverged":
        store.clear()  # nothing to go on from
        raise UserError(
            f"distillation diverged: {state.reason}; lower distill.learning_rate in params.yaml "
            f"(it is {job.params.learning_rate:g})"
        )
    if state.stopped == GOOD_ENOUGH:  # by the limits as they are now, which may be other ones
        still = good_enough(job, state.history, best_psnr=state.best_psnr)
        state = dataclasses.replace(state, reason=still.reason if still else state.reason)
    return Distilled(checkpoint=state, store=store)


def is_complete(state: Checkpoint, job: Job) -> bool:
    """Whether nothing is left to train: all steps are done, or the student is good enough by the
    limits of the job, whatever they were when it stopped."""
    if state.stopped == GOOD_ENOUGH:
        return good_enough(job, state.history, best_psnr=state.best_psnr) is not None
    return state.stopped == "finished"


def _fit(
    job: Job,
    store: Store,
    take: Callable[[dict[str, Any]], None],
    storage: str,
    costs: Callable[[], RunCosts] | None,
) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from turbo_vaed.distill.worker import train_worker

    least, most = job.params.min_workers, job.params.workers
    on_gpu = _check_room(least)
    # Train V2 puts its own classes here, whose fields are not published.
    scaling: Any = ScalingConfig
    running: Any = RunConfig
    with _letters(take, costs) as letters:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job, "store": store.url, "letters": letters},
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
            trainer.fit()
        except Exception as error:  # Ray wraps what a worker raised in its own classes
            raise _ours(error) from error


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


def _end_at_once() -> Any:
    """A callback that ends a run whose worker raised what no new start mends."""
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
    seen: list[BaseException] = [error]
    while seen:
        each = seen.pop()
        if isinstance(each, TurboVaedError):
            return each
        inner = [each.__cause__, getattr(each, "cause", None)]
        inner += list((getattr(each, "worker_failures", None) or {}).values())
        seen += [e for e in inner if isinstance(e, BaseException)]
    return None


def _ours(error: Exception) -> TurboVaedError:
    ours = _found(error)
    if ours is not None:
        return ours
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = str(root).strip().splitlines()
    return Fault(f"distillation failed: {said[-1] if said else type(root).__name__}")


def _look_at_the_machines() -> None:
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


@contextmanager
def _letters(
    take: Callable[[dict[str, Any]], None], costs: Callable[[], RunCosts] | None
) -> Iterator[Any]:
    """A letter box on this node, emptied by a thread until the block ends."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from turbo_vaed.distill.worker import LetterBox

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(LetterBox)
    box = actor.options(num_cpus=0, scheduling_strategy=here).remote()
    over = threading.Event()

    def empty() -> None:
        looked, told = time.monotonic(), -math.inf
        while True:
            last_look = over.is_set()
            for event in ray.get(box.take.remote()):
                take(event)
            if last_look:
                return
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                _look_at_the_machines()
            if costs is not None and time.monotonic() - told > PAY_SECONDS:
                told = time.monotonic()
                try:
                    box.pay.remote(costs())
                except Exception as error:  # letters go on; workers count with what they know
                    _log.warning("workers are not told what the run has cost: %s", error)
            over.wait(_POLL_SECONDS)

    thread = threading.Thread(target=empty, name="distill-events", daemon=True)
    thread.start()
    try:
        yield box
    finally:
        over.set()
        thread.join()
        ray.kill(box)


def write_student(
    done: Distilled, job: Job, folder: Path, followed: dict[str, Any]
) -> dict[str, Any]:
    """Write `student/` (best EMA weights) and `history.json`; returns the history.

    Args:
        followed: what the driver saw of the run (restarts, workers, …), for the history.
    """
    from turbo_vaed.models import TurboVaedDecoder, save_decoder

    state, limit = done.checkpoint, job.params.stop_usd_per_tenth_db
    decoder = TurboVaedDecoder(job.student)
    decoder.load_state_dict(state.best)
    save_decoder(decoder, folder / "student")
    facts = json.loads((Path(job.latents) / "latents.json").read_text())
    history = {
        "steps": state.history,
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
        **followed,
    }
    (folder / "history.json").write_text(json.dumps(history, indent=1) + "\n")
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
