"""The teacher's work on many clips: one pass of Ray Data, or one task, wherever Ray has room.

Workers read and write the Zarr arrays themselves, a chunk per clip, so that no two write the same
chunk and only indices travel through Ray. A worker holds a GPU where the cluster has any, else a
CPU.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

from turbo_vaed import errors
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.errors import Fault, TurboVaedError
from turbo_vaed.runtime.progress import track

BATCHES_PER_WORKER = 4
"""At least so many for every worker: loading a teacher takes as long as some batches."""

Device = Literal["cpu", "cuda"]
T = TypeVar("T")


def pass_over_clips(
    worker: type,
    arguments: tuple[Any, ...],
    clips: Sequence[int],
    *,
    batch_size: int,
    label: str,
    ray_address: str | None = None,
    workers: int | None = None,
    check_budget: Callable[[float], None] = lambda seconds: None,
    report_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Call a worker with every clip once; a batch whose machine was lost is called again.

    Args:
        worker: a class; `worker(*arguments, device=…)` is made once in each process, and called
            with {"index": clips of a batch}, which it hands back.
        arguments: must pickle.
        clips: indices.
        batch_size: clips of one call.
        label: of the progress.
        ray_address: as `ray_session` takes it.
        workers: at most so many; as many as Ray has GPUs or CPUs by default.
        check_budget: called before the start with 0.0 and after every clip with the seconds that
            the rest will take at the pace so far; what it raises ends the pass.
        report_progress: called after every clip with the number done.

    Raises:
        Unreachable: no Ray answers at the address.
        TurboVaedError: a worker's own, or what `check_budget` raises.
        Fault: a worker failed in another way.
    """
    import ray

    check_budget(0.0)
    with ray_session(ray_address):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        batches = -(-len(clips) // batch_size)
        device, most = room()
        size = max(1, min(workers or most, most, batches // BATCHES_PER_WORKER))
        # Items are blocks already. `range` would need a CPU for its read task, and where the
        # workers hold every CPU that task, and with it the stage, would wait for ever.
        items = [{"index": clip} for clip in clips]
        dataset = ray.data.from_items(items, override_num_blocks=batches).map_batches(
            worker,
            batch_size=batch_size,
            fn_constructor_args=arguments,
            fn_constructor_kwargs={"device": device},
            compute=ray.data.ActorPoolStrategy(size=size),
            **_resources(device),
        )
        try:
            rows = _within_budget(
                (r["index"] for r in dataset.iter_rows()), len(clips), check_budget
            )
            done = []
            for clip in track(rows, label, len(clips)):
                done.append(clip)
                report_progress(len(done))
        except ray.exceptions.RayError as error:
            raise _cause(error) from error
    if sorted(done) != sorted(clips):
        raise Fault(f"Ray Data did {len(done)} of {len(clips)} clips; run the stage again")


def _within_budget(
    items: Iterable[T], count: int, check_budget: Callable[[float], None]
) -> Iterator[T]:
    """`items`, `count` of them, with a call of `check_budget` after each.

    Timed from the first one on, before which Ray and the workers start.
    """
    began = 0.0
    for done, item in enumerate(items, 1):
        yield item
        if done == 1:
            began = time.monotonic()
        elif done < count:
            check_budget((time.monotonic() - began) / (done - 1) * (count - done))


def run_on_worker(function: Callable[..., T], *arguments: Any, ray_address: str | None = None) -> T:
    """`function(*arguments, device=…)` in a process like those of `pass_over_clips`.

    Raises: as `pass_over_clips`.
    """
    import ray

    with ray_session(ray_address):
        device, _ = room()
        remote: Any = ray.remote  # its type knows each option by name only
        task = remote(**_resources(device))(function)
        try:
            return cast(T, ray.get(task.remote(*arguments, device=device)))
        except ray.exceptions.RayError as error:
            raise _cause(error) from error


def room() -> tuple[Device, int]:
    """What a worker computes on, and how many of it the connected Ray has."""
    import ray

    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if gpus := int(found.get("GPU", 0)):
        return "cuda", gpus
    return "cpu", int(found.get("CPU", 1))


def _resources(device: Device) -> dict[str, Any]:
    return {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": 1}


def _cause(error: BaseException) -> TurboVaedError:
    """The project's own error that a worker raised, or a Fault with Ray's last words.

    Ray hands over what a worker's start raised as text alone: the class is found by its name.
    """
    text = str(error).strip()
    own = re.findall(r"^turbo_vaed\.errors\.(\w+): (.+?)(?:\n\n|\Z)", text, re.M | re.S)
    if own:
        name, message = own[-1]
        return cast(TurboVaedError, getattr(errors, name)(message))
    return Fault(f"a worker of Ray failed: {text.splitlines()[-1] if text else error!r}")
