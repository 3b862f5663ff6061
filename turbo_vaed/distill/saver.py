"""Saves checkpoints in a thread of its own: training goes on while bytes are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.store import Store, backoff_seconds
from turbo_vaed.errors import Fault

_PLAIN = (int, float, str, bool, type(None))
_LAST_SECONDS, _LAST_SECONDS_AFTER_ERROR = 120.0, 5.0


class Saver:
    """Takes states and writes them to a store, the newest of those that wait first.

    What fails is tried again for as long as the saver lives, after 0.5 s, then 1 s, … 15 s, unless
    a newer state has taken its place. At most two copies of a state are held at a time, and their
    memory is used again: touching fresh memory takes several times as long as copying into it.

    Args:
        store: where to; this saver is its only writer.
        told: called in the saver's thread, must not raise; of each state that was written,
            `{"event": "checkpoint", step, at, name, bytes, seconds}`, and of each attempt that
            failed, `{"event": "checkpoint_failed", step, at, text}`; `at` in unix seconds.

    `submit` and `flush` are for one thread. Leaving the `with` block waits until the newest state
    is written (2 minutes at most, else Fault); leaving it by an exception waits for 5 s at most and
    raises nothing of its own.
    """

    def __init__(self, store: Store, told: Callable[[dict[str, Any]], None]) -> None:
        self._store, self._told = store, told
        self._changed = threading.Condition()  # guards all below
        self._waiting: Checkpoint | None = None
        self._spare: Checkpoint | None = None  # written: its memory may be used again
        self._writing = self._flushing = self._closed = False
        self._cause: Exception | None = None  # why the last attempt failed
        self._thread = threading.Thread(target=self._work, name="checkpoint-saver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush(_LAST_SECONDS if error is None else _LAST_SECONDS_AFTER_ERROR)
        except Fault:
            if error is None:
                raise
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def submit(self, state: Checkpoint) -> None:
        """Copy a state and have it written; one that still waits is given up for it.

        Returns when the copy is made: the state's tensors may change from then on.

        Raises:
            TypeError: the state holds something that cannot be read back.
            Fault: the saver's thread is gone.
        """
        if self._closed or not self._thread.is_alive():
            raise Fault("checkpoints are not saved any more: the saver was left, or it died")
        with self._changed:
            into, self._waiting = self._waiting or self._spare, None
            self._spare = None
        copied = {
            name: _copy(value, vars(into).get(name) if into else None, name)
            for name, value in vars(state).items()
        }
        with self._changed:
            self._waiting = replace(state, **copied)
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until the newest submitted state is written.

        Raises:
            Fault: it was not within this time; names the last cause.
        """
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._waiting is None and not self._writing, timeout_seconds
            )
            self._flushing = False
            if done:
                return
            cause = self._cause or "the write is still under way"
            raise Fault(
                f"the newest checkpoint was not written to {self._store.url} within "
                f"{timeout_seconds:g} s: {cause}"
            ) from self._cause

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._waiting is None or self._closed:
                    return
                state, self._waiting, self._writing = self._waiting, None, True
            if self._write(state):
                failures = 0
                continue
            self._wait(backoff_seconds(failures))
            failures += 1

    def _write(self, state: Checkpoint) -> bool:
        """One attempt; a state that could not be written waits again, if no newer one does."""
        try:
            saved = self._store.write(state)
        except Exception as error:  # whatever it is, it must not end the thread unheard
            with self._changed:
                self._cause, self._writing = error, False
                if self._waiting is None:
                    self._waiting = state
                else:
                    self._spare = state
            self._tell("checkpoint_failed", state, text=str(error) or type(error).__name__)
            return False
        self._tell("checkpoint", state, **vars(saved))
        with self._changed:
            self._cause, self._writing, self._spare = None, False, state
            self._changed.notify_all()
        return True

    def _tell(self, event: str, state: Checkpoint, **more: Any) -> None:
        self._told({"event": event, "step": state.step, "at": time.time(), **more})

    def _wait(self, seconds: float) -> None:
        """Until it is time to try again: earlier where somebody waits for the result."""
        shortest = backoff_seconds(0)
        with self._changed:
            self._changed.wait_for(lambda: self._flushing or self._closed, seconds - shortest)
            self._changed.wait_for(lambda: self._closed, shortest)


def _copy(value: Any, into: Any, path: str) -> Any:
    """A copy on the CPU, in the memory of the tensors of `into` where they are alike."""
    if isinstance(value, Tensor):
        return _copy_tensor(value.detach(), into)
    if isinstance(value, dict):
        known: Any = into if isinstance(into, dict) else {}
        return {
            key: item if type(item) in _PLAIN else _copy(item, known.get(key), f"{path}[{key!r}]")
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        alike = isinstance(into, list | tuple) and len(into) == len(value)
        known = into if alike else [None] * len(value)
        return type(value)(
            item if type(item) in _PLAIN else _copy(item, old, f"{path}[{number}]")
            for number, (item, old) in enumerate(zip(value, known, strict=True))
        )
    if type(value) in _PLAIN:
        return value
    raise TypeError(
        f"a checkpoint cannot hold {path}, a {type(value).__name__}: only tensors, numbers, texts, "
        "None, and dicts, lists and tuples of them are read back"
    )


def _copy_tensor(value: Tensor, into: Any) -> Tensor:
    if isinstance(into, Tensor) and (into.shape, into.dtype) == (value.shape, value.dtype):
        return into.copy_(value)
    # From a GPU several times as fast into pinned memory.
    return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)
