"""A store of checkpoints: hashed, atomic, the last few of them kept, a bad one passed over."""

from __future__ import annotations

import errno
import hashlib
import itertools
import re
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.places import Reader, place_at
from turbo_vaed.errors import CorruptFile, Fault, Unreachable, UserError

_T = TypeVar("_T")
_NAME = re.compile(r"(\d{8,})-([0-9a-f]{64})\.pt")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.5, 15.0


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint became."""

    name: str
    bytes: int
    seconds: float
    """To serialise, hash and write it, and to remove those that are no longer kept."""


class Store:
    """Checkpoints of one run, each an object `{step:08d}-{sha256 of its bytes}.pt`.

    One process writes, any number read. Nothing is connected to before the first call.

    Args:
        url: a folder, or `s3://BUCKET/PREFIX` (endpoint and credentials as AWS' clients find them).
        keep: so many of the last ones stay, and the one of the best step.

    Raises:
        UserError: another kind of URL, or `keep` below 1.
    """

    def __init__(self, url: str, *, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints to keep: a run needs at least one to go on from")
        self.url, self.keep = url, keep
        self._place = place_at(url)

    def write(self, state: Checkpoint) -> Saved:
        """Add a checkpoint; then those that need not be kept are removed.

        What lies at or beyond the state's step under another name is removed too: the run goes on
        from before it, so it could not be read, or a resume would choose it over this one.

        Raises:
            UserError: the place does not exist or may not be written to.
            Unreachable: S3 does not answer, or with errors; worth trying again.
            Fault: disk full, or another failure of the disk. From a full disk the oldest
                checkpoint is removed, if it is not the last whole one: worth trying again.
        """
        began = time.perf_counter()
        try:
            name, size = self._place.write(
                lambda file: _serialise(state, file), lambda sha256: f"{state.step:08d}-{sha256}.pt"
            )
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UserError(f"checkpoints cannot be written to {self.url}: {error}") from error
        except OSError as error:
            told = self._make_room() if error.errno in _FULL else ""
            raise Fault(f"no checkpoint written to {self.url}: {error}{told}") from error
        self._prune(name, state)
        return Saved(name=name, bytes=size, seconds=time.perf_counter() - began)

    def names(self) -> list[str]:
        """Of the checkpoints, newest first; what has another kind of name is none.

        Raises:
            UserError, Unreachable: as `write`.
        """
        found = [name for name in self._place.names() if _NAME.fullmatch(name)]
        return sorted(found, key=lambda name: (step_of(name), name), reverse=True)

    def read(self, name: str, *, patience_seconds: float = 0.0) -> Checkpoint:
        """A checkpoint, its tensors on the CPU; S3 is asked again for so long.

        Raises:
            CorruptFile: cut short, altered, or not one at all.
            FileNotFoundError: there is none of this name (any more).
            UserError: written by another version of the project.
            Unreachable: S3 does not answer, or with errors.
        """
        give_up = time.monotonic() + patience_seconds
        return _patiently(partial(self._read, name), lambda text: None, give_up)

    def newest(
        self, on_bad: Callable[[str], None], *, patience_seconds: float = 120.0
    ) -> tuple[str, Checkpoint] | None:
        """The newest checkpoint that is whole, with its name; None where there is none.

        Args:
            on_bad: told of every one that is passed over, and of every failure to reach S3.
            patience_seconds: how long S3 is asked again before it is given up.

        Raises:
            Unreachable: S3 did not answer for that long.
            UserError: as `read` and `write`.
        """
        give_up = time.monotonic() + patience_seconds
        passed: set[str] = set()
        while True:
            names = _patiently(self.names, on_bad, give_up)
            name = next((name for name in names if name not in passed), None)
            if name is None:
                return None
            try:
                return name, _patiently(partial(self._read, name), on_bad, give_up)
            except FileNotFoundError:
                pass  # removed by the writer since it was listed: list again
            except CorruptFile as error:
                on_bad(f"{error}; the checkpoint before it is taken")
            passed.add(name)

    def clear(self, *, before: int | None = None) -> None:
        """Remove the checkpoints of the store, and nothing else.

        Args:
            before: those of earlier steps only; None: all.

        Raises:
            UserError, Unreachable: as `write`.
        """
        for name in self.names():
            if before is None or step_of(name) < before:
                self._place.remove(name)

    def _read(self, name: str) -> Checkpoint:
        import torch

        with self._verified(name) as file:
            if not zipfile.is_zipfile(file):
                raise CorruptFile(f"{self.url}/{name} is no checkpoint, whatever its name says")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        try:
            return Checkpoint(**content)
        except TypeError as error:
            raise UserError(
                f"{self.url}/{name} was written by another version of turbo_vaed ({error}): finish "
                "the run with that version, or remove its checkpoints to begin anew"
            ) from error

    def _verified(self, name: str) -> Reader:
        """An object whose bytes are those that were written, at its beginning."""
        file = self._place.open(name)
        try:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
        except OSError as error:  # a disk that gives out
            file.close()
            raise CorruptFile(f"{self.url}/{name} cannot be read: {error}") from error
        if found != _hash_of(name):
            file.close()
            raise CorruptFile(
                f"{self.url}/{name}: its bytes have sha256 {found[:12]}…, not the one in its name"
            )
        return file

    def _prune(self, written: str, state: Checkpoint) -> None:
        names = self.names()
        earlier = [name for name in names if step_of(name) < state.step]
        keep = {written, *earlier[: self.keep - 1]}
        keep |= {name for name in earlier if step_of(name) == state.best_step}
        for name in names:
            if name not in keep:
                self._place.remove(name)

    def _make_room(self) -> str:
        """Remove the oldest checkpoint that is not the newest whole one; says what was done."""
        names = self.names()
        for whole in names:
            try:
                self._verified(whole).close()
            except CorruptFile:
                continue
            names.remove(whole)
            break
        if not names:
            return "; no older checkpoint is left to remove: free space there"
        self._place.remove(names[-1])
        return f"; removed {names[-1]} to make room"


def step_of(name: str) -> int:
    """The step of a checkpoint by its name."""
    return int(name.partition("-")[0])


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures before this one: 0.5 s doubled, 15 s at most."""
    return min(_FIRST_DELAY_SECONDS * 2.0 ** min(failures, 10), _LONGEST_DELAY_SECONDS)


def _patiently(call: Callable[[], _T], told: Callable[[str], None], give_up: float) -> _T:
    """Call until S3 answers, or until that moment of the monotonic clock."""
    for failures in itertools.count():
        try:
            return call()
        except Unreachable as error:
            delay = backoff_seconds(failures)
            if time.monotonic() + delay > give_up:
                raise
            told(f"{error}; trying again in {delay:g} s")
        time.sleep(delay)
    raise AssertionError("unreachable")


def _hash_of(name: str) -> str:
    return name.partition("-")[2].removesuffix(".pt")


def _serialise(state: Checkpoint, file: Any) -> None:
    import torch

    outer = sys.exception()
    try:
        torch.save(vars(state), file)  # not `asdict`: that copies every tensor
    except RuntimeError as error:
        # Torch's zip writer, unwound by an error of the file, puts a complaint of its own on top.
        beneath = error.__context__
        if beneath is None or beneath is outer:
            raise
        raise beneath from None
