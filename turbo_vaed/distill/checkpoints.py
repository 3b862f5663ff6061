"""Checkpoints: the state of a run, a store of them, and a thread that saves while training goes on.

A store holds objects that are hashed and whole, the last few and the best of them; a bad one is
passed over for the one before.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import re
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from turbo_vaed.distill.checkpoint_storage import Digest, Reader, copied, serialise, storage_at
from turbo_vaed.errors import Busy, CorruptFile, Fault, Unreachable, UserError

_T = TypeVar("_T")
_NAME = re.compile(r"(\d{8,})-([0-9a-f]{64})\.pt")
_CLAIM = "holder"
"""The object with the token of the run that may write."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.5, 15.0
_LAST_SECONDS, _LAST_SECONDS_AFTER_ERROR = 120.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a resumed run needs, after `step` steps; its size does not grow with them.

    Data and noise are not in it: they are functions of the step.
    """

    step: int
    student: dict[str, Any]
    """Weights in training: the decoder's, and those of its alignment heads."""
    ema: dict[str, Any]
    """Of the decoder."""
    best: dict[str, Any]
    """EMA weights of the best validation."""
    best_step: int
    best_psnr: float
    optimizer: dict[str, Any]
    adversary: dict[str, Any] | None
    """Discriminator, its optimizer and the adaptive weight, where there is one."""
    precision: str
    """`bf16` or `fp32`: on another machine a run goes on as it began."""
    skipped: int
    """Steps in a row that were left out, up to this one."""
    validate_seconds: float
    """What the last validation took: the budget must hold another."""
    reached_at: float
    """Unix seconds at which the run was at `step`."""
    spent_usd: str
    stopped: str
    """`running`, `finished`, `good enough`, `budget` or `diverged`."""
    reason: str
    """Of a stop, in words."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the validated steps and of the last ones (`history.bounded`)."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """The last one of each kind: `step`, `kind` and `text`."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that was written."""

    name: str
    bytes: int
    seconds: float
    """To serialise, hash and write it, and to remove those that are not needed any more."""


class Store:
    """Checkpoints of one run, each an object `{step:08d}-{sha256 of its bytes}.pt`.

    One process writes, any number read. Nothing is connected to before the first call.

    Args:
        url: a folder, or `s3://BUCKET/PREFIX` (endpoint and credentials as AWS' clients find them).
        keep: how many of the last ones stay, besides the one of the best step.
        token: of the run that writes, larger than that of every run of the customer before. Once a
            run with a larger one has claimed the store, this one writes and removes nothing. None
            where nobody else can write.

    Raises:
        UserError: another kind of URL, or `keep` below 1.
    """

    def __init__(self, url: str, *, keep: int = 3, token: int | None = None) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints to keep: a run needs at least one to go on from")
        self.url, self.keep, self.token = url, keep, token
        self._storage = storage_at(url)

    def claim(self, *, patience_seconds: float = 120.0) -> None:
        """Let no run with a smaller token write here any more; S3 is tried again for so long.

        Raises:
            Busy: a run with a larger token has claimed it.
            UserError, Unreachable: as `write`.
        """
        give_up = time.monotonic() + patience_seconds
        _retrying(self._claim, lambda text: None, give_up)

    def _claim(self) -> None:
        if self.token is None:
            return
        self._require_claim()
        token = str(self.token).encode()
        self._storage.write(_CLAIM, lambda file: file.write(token))

    def _require_claim(self) -> None:
        if self.token is None:
            return
        try:
            with self._storage.open(_CLAIM) as file:
                found = int(file.read())
        except FileNotFoundError:
            return
        except ValueError:
            raise CorruptFile(
                f"{self.url}/{_CLAIM} is not the token of a run; remove it, if no run is going on"
            ) from None
        if found > self.token:
            raise Busy(
                f"checkpoints at {self.url} belong to a run that has taken this one's place, since "
                "this one was cut off; it writes none any more"
            )

    def write(self, state: Checkpoint) -> Saved:
        """Add a checkpoint, and remove those that are not needed any more.

        What lies at or beyond the state's step under another name is removed too: the run goes on
        from before it, so it could not be read, or a resume would choose it over this one.

        Raises:
            Busy: another run has claimed the store.
            UserError: the storage does not exist or may not be written to.
            Unreachable: S3 does not answer, or with errors; worth trying again.
            Fault: disk full, or another failure of the disk. From a full disk the oldest
                checkpoint is removed, if it is not the last whole one: worth trying again.
        """
        began = time.perf_counter()
        self._require_claim()
        # Serialised twice, for the name stands before the first byte is written: that takes a
        # second per GB, where a copy of the bytes would take as much memory again.
        digest = Digest()
        serialise(vars(state), digest)  # not `asdict`: that copies every tensor
        name = f"{state.step:08d}-{digest.sha256.hexdigest()}.pt"
        try:
            self._storage.write(name, partial(serialise, vars(state)))
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UserError(f"checkpoints cannot be written to {self.url}: {error}") from error
        except OSError as error:
            room = self._make_room() if error.errno in _FULL else ""
            raise Fault(f"no checkpoint written to {self.url}: {error}{room}") from error
        self._require_claim()  # writing may have taken minutes
        self._prune(name, state)
        return Saved(name=name, bytes=digest.size, seconds=time.perf_counter() - began)

    def put(self, name: str, data: bytes) -> None:
        """Add an object that is no checkpoint, or replace it.

        Raises:
            Busy: another run has claimed the store.
            UserError, Unreachable: as `write`, of S3.
            OSError: of a disk.
        """
        self._require_claim()
        self._storage.write(name, lambda file: file.write(data))

    def get(self, name: str, *, patience_seconds: float = 0.0) -> bytes:
        """An object that is no checkpoint; S3 is tried again for so long.

        Raises:
            FileNotFoundError: there is none of this name.
            UserError, Unreachable: as `write`, of S3.
            OSError: of a disk.
        """

        def read() -> bytes:
            with self._storage.open(name) as file:
                return file.read()

        return _retrying(read, lambda text: None, time.monotonic() + patience_seconds)

    def names(self) -> list[str]:
        """The checkpoints, newest first; objects with another kind of name are none.

        Raises:
            UserError, Unreachable: as `write`.
        """
        found = [name for name in self._storage.names() if _NAME.fullmatch(name)]
        return sorted(found, key=lambda name: (step_of(name), name), reverse=True)

    def read(self, name: str, *, patience_seconds: float = 0.0) -> Checkpoint:
        """A checkpoint, its tensors on the CPU; S3 is tried again for so long.

        Raises:
            CorruptFile: cut short, altered, or not one at all.
            FileNotFoundError: there is none of this name (any more).
            UserError: written by another version of the project.
            Unreachable: S3 does not answer, or with errors.
        """
        give_up = time.monotonic() + patience_seconds
        return _retrying(partial(self._read, name), lambda text: None, give_up)

    def newest(
        self, on_trouble: Callable[[str], None], *, patience_seconds: float = 120.0
    ) -> tuple[str, Checkpoint] | None:
        """The newest checkpoint that is whole, with its name; None where there is none.

        Args:
            on_trouble: gets a line for every one that is passed over, and for every failure to
                reach S3.
            patience_seconds: how long S3 is tried again before it is given up.

        Raises:
            Unreachable: S3 did not answer for that long.
            UserError: as `read` and `write`.
        """
        give_up = time.monotonic() + patience_seconds
        passed: set[str] = set()
        while True:
            names = _retrying(self.names, on_trouble, give_up)
            name = next((name for name in names if name not in passed), None)
            if name is None:
                return None
            try:
                return name, _retrying(partial(self._read, name), on_trouble, give_up)
            except FileNotFoundError:
                pass  # removed by the writer since it was listed: list again
            except CorruptFile as error:
                on_trouble(f"{error}; the checkpoint before it is taken")
            passed.add(name)

    def clear(self, *, before: int | None = None) -> None:
        """Remove the checkpoints of the store, and nothing else.

        Args:
            before: those of earlier steps only; None: all.

        Raises:
            Busy, UserError, Unreachable: as `write`.
        """
        self._require_claim()
        for name in self.names():
            if before is None or step_of(name) < before:
                self._storage.remove(name)

    def _read(self, name: str) -> Checkpoint:
        with self._verified(name) as file:
            if not zipfile.is_zipfile(file):
                raise CorruptFile(f"{self.url}/{name} is not a checkpoint despite its name")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        try:
            state = Checkpoint(**content)
        except TypeError as error:
            raise UserError(
                f"{self.url}/{name} was written by another version of turbo_vaed ({error}): finish "
                "the run with that version, or remove its checkpoints to begin anew"
            ) from error
        return replace(state, history=_with_training_usd(state.history))

    def _verified(self, name: str) -> Reader:
        """An object with the bytes that were written, at its beginning."""
        file = self._storage.open(name)
        try:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
        except OSError as error:  # a disk that gives out
            file.close()
            raise CorruptFile(f"{self.url}/{name} cannot be read: {error}") from error
        if found != name.partition("-")[2].removesuffix(".pt"):
            file.close()
            raise CorruptFile(
                f"{self.url}/{name}: its bytes have sha256 {found[:12]}…, not the one in its name"
            )
        return file

    def _prune(self, written: str, state: Checkpoint) -> None:
        names = self.names()
        earlier = [name for name in names if step_of(name) < state.step]
        needed = {written, *earlier[: self.keep - 1]}
        needed |= {name for name in earlier if step_of(name) == state.best_step}
        for name in names:
            if name not in needed:
                self._storage.remove(name)

    def _make_room(self) -> str:
        """Remove the oldest checkpoint that is not the newest whole one; returns what was done."""
        names = self.names()
        for name in names:
            try:
                self._verified(name).close()
            except CorruptFile:
                continue
            names.remove(name)
            break
        if not names:
            return "; no older checkpoint is left to remove: free space there"
        self._storage.remove(names[-1])
        return f"; removed {names[-1]} to make room"


class Saver:
    """Takes states and writes them to a store, in a thread of its own, the newest first.

    What fails is tried again for as long as the saver lives, after 0.5 s, then 1 s, … 15 s, unless
    a newer state has taken its place. At most two copies of a state are held at a time, and their
    memory is used again: touching fresh memory takes several times as long as copying into it.

    Args:
        store: where to; this saver is its only writer.
        on_event: called in the saver's thread, must not raise; for each state that was written,
            `{"event": "checkpoint", step, at, name, bytes, seconds}`, and for each attempt that
            failed, `{"event": "checkpoint_failed", step, at, text}`; `at` in Unix seconds.

    `submit` and `flush` are for one thread. Leaving the `with` block waits until the newest state
    is written (2 minutes at most, else Fault); leaving it by an exception waits for 5 s at most and
    raises nothing of its own.
    """

    def __init__(self, store: Store, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._store, self._on_event = store, on_event
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
        fields = {
            name: copied(value, vars(into).get(name) if into else None, name)
            for name, value in vars(state).items()
        }
        with self._changed:
            self._waiting = replace(state, **fields)
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
            shortest = backoff_seconds(0)
            with self._changed:  # until it is time to try again; earlier where a flush waits
                self._changed.wait_for(
                    lambda: self._flushing or self._closed, backoff_seconds(failures) - shortest
                )
                self._changed.wait_for(lambda: self._closed, shortest)
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
            self._report("checkpoint_failed", state, text=str(error) or type(error).__name__)
            return False
        self._report("checkpoint", state, **vars(saved))
        with self._changed:
            self._cause, self._writing, self._spare = None, False, state
            self._changed.notify_all()
        return True

    def _report(self, event: str, state: Checkpoint, **facts: Any) -> None:
        self._on_event({"event": event, "step": state.step, "at": time.time(), **facts})


def _with_training_usd(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history with dollars up to each step. Earlier versions had each step's own (`step_usd`),
    of all steps: without a sum a run that its price of quality has stopped would train on."""
    usd, rows = Decimal(0), []
    for row in history:
        usd += Decimal(row.get("step_usd", 0))
        is_earlier = "step_usd" in row and "training_usd" not in row
        rows.append(row | {"training_usd": f"{usd:.12f}"} if is_earlier else row)
    return rows


def step_of(name: str) -> int:
    """The step of a checkpoint by its name."""
    return int(name.partition("-")[0])


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures before this one: 0.5 s doubled, 15 s at most."""
    return min(_FIRST_DELAY_SECONDS * 2.0 ** min(failures, 10), _LONGEST_DELAY_SECONDS)


def _retrying(call: Callable[[], _T], on_trouble: Callable[[str], None], give_up: float) -> _T:
    """Call until S3 answers, or until that moment of the monotonic clock."""
    for failures in itertools.count():
        try:
            return call()
        except Unreachable as error:
            delay = backoff_seconds(failures)
            if time.monotonic() + delay > give_up:
                raise
            on_trouble(f"{error}; trying again in {delay:g} s")
        time.sleep(delay)
    raise AssertionError("unreachable")
