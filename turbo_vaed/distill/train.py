"""Distillation under Ray Train: workers, restarts, progress, and the student that comes out."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbo_vaed.distill import checkpoint as checkpoints
from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.progress import progress

MAX_FAILURES = 2
_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What came out: the best EMA weights and the run's history."""

    checkpoint: Checkpoint
    workers: int


def distill(job: Any, *, storage: Path) -> Distilled:
    """Run a `turbo_vaed.distill.loop.Job` to its end or its budget.

    Args:
        job: what the workers are told; its progress file is followed for the bar.
        storage: a folder for checkpoints, kept until `clean`; a run of the same job that was
            interrupted goes on from the last one in it.

    Raises:
        UserError: more workers than CPUs in the cluster, or a learning rate that diverges.
        Fault: the workers failed more than `MAX_FAILURES` times.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from turbo_vaed.distill.loop import train_worker

    _check_room(job.params.workers)
    storage.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.params.workers, resources_per_worker={"CPU": 1}
        ),
        run_config=RunConfig(
            name=run_name(job),
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(  # the class of Train V2, whose type is not published
                max_failures=MAX_FAILURES,
                controller_failure_limit=MAX_FAILURES,  # type: ignore[call-arg]
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    job.progress_file.parent.mkdir(parents=True, exist_ok=True)
    job.progress_file.unlink(missing_ok=True)
    with _following(job.progress_file, job.params.steps):
        try:
            result = trainer.fit()
        except Exception as error:  # Ray wraps what a worker raised in its own classes
            raise Fault(f"distillation failed: {_root_cause(error)}") from error
    if result.checkpoint is None:
        raise Fault("distillation ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        state = checkpoints.load(Path(folder))
    if state.stopped == "diverged":
        clean(storage)  # nothing to go on from
        raise UserError(
            f"distillation diverged: {state.reason}; lower distill.learning_rate in params.yaml "
            f"(it is {job.params.learning_rate:g})"
        )
    return Distilled(checkpoint=state, workers=job.params.workers)


def _check_room(workers: int) -> None:
    """Ray waits for workers that never fit, for ever and at a price."""
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if workers > cpus:
        raise UserError(
            f"distill.workers is {workers}, a CPU each; Ray has {cpus}: lower it in params.yaml"
        )


def run_name(job: Any) -> str:
    """The same for the same job over the same data, so that an interrupted run is found again."""
    digest = hashlib.sha256()
    told = {"student": asdict(job.student), "params": asdict(job.params)}
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for path in (job.clips / "clips.json", job.latents / "latents.json"):
        digest.update(path.read_bytes())
    return f"distill-{digest.hexdigest()[:16]}"


def clean(storage: Path) -> None:
    """Forget the checkpoints of runs that are over."""
    shutil.rmtree(storage, ignore_errors=True)


def write_student(done: Distilled, job: Any, folder: Path) -> dict[str, Any]:
    """Write `student/` (best EMA weights) and `history.json`; returns the history."""
    from turbo_vaed.distill.loop import has_bf16
    from turbo_vaed.models import TurboVaedDecoder

    state = done.checkpoint
    decoder = TurboVaedDecoder(job.student)
    decoder.load_state_dict(state.best)
    decoder.save_pretrained(folder / "student")
    facts = json.loads((job.latents / "latents.json").read_text())
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
        "workers": done.workers,
        "precision": "bf16" if job.params.precision == "bf16" and has_bf16() else "fp32",
        "start": job.params.start,
        "spent_usd": state.spent_usd,
    }
    (folder / "history.json").write_text(json.dumps(history, indent=1) + "\n")
    return history


def _root_cause(error: BaseException) -> str:
    seen: BaseException = error
    failures = getattr(error, "worker_failures", None)
    if failures:
        seen = next(iter(failures.values()))
    while seen.__cause__ is not None:
        seen = seen.__cause__
    return str(seen).strip().splitlines()[-1] if str(seen).strip() else type(seen).__name__


@contextmanager
def _following(path: Path, steps: int) -> Iterator[None]:
    """Show the rows that rank 0 appends to `path` as they come."""
    over = threading.Event()

    def follow() -> None:
        read = 0
        with progress("distill", steps) as update:
            while True:
                last_look = over.is_set()
                lines = path.read_text().split("\n")[:-1] if path.exists() else []
                for row in map(json.loads, lines[read:]):
                    psnr = f" val {row['val_psnr']:.2f} dB" if "val_psnr" in row else ""
                    spent = row.get("budget_warning") or f"${row['spent_usd'][:7]}"
                    update(row["step"], f"loss {row['loss']:.4f}{psnr} {spent}")
                read = len(lines)
                if last_look:
                    return
                over.wait(_POLL_SECONDS)

    thread = threading.Thread(target=follow, name="distill-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
