"""The outcome of a stage as a file, for whoever has DVC run it: DVC passes on no more than that a
command failed.

The flow names the file, and a token of this attempt, in the environment of the stage. Where nobody
does, as by hand, nothing is written.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from turbo_vaed import errors
from turbo_vaed.errors import CorruptFile, Fault, TurboVaedError
from turbo_vaed.runtime import files

_PATH, _TOKEN = "TURBO_VAED_OUTCOME", "TURBO_VAED_OUTCOME_TOKEN"


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """How one attempt of a stage ended."""

    token: str
    """Of the attempt: the file of an earlier one is not taken for this one's."""
    error: str = ""
    """A class of turbo_vaed.errors; empty for a stage that succeeded."""
    exit_code: int = 0
    message: str = ""
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An outcome that a stage is to write."""

    path: Path
    token: str

    @classmethod
    def at(cls, path: Path) -> Expected:
        """That of an attempt which is about to begin."""
        return cls(path=path, token=uuid4().hex)

    @property
    def environment(self) -> Mapping[str, str]:
        """What the stage has to be started with."""
        return {_PATH: str(self.path), _TOKEN: self.token}

    def read(self) -> StageOutcome | None:
        """What the stage has written; None where it was killed before, or never started."""
        try:
            found = StageOutcome(**files.read_json(self.path))
        except (FileNotFoundError, CorruptFile, TypeError):
            return None
        return found if found.token == self.token else None


@contextmanager
def recorded() -> Iterator[dict[str, Any]]:
    """Record how the block ends, where somebody expects an outcome. It gets a dict for its figures.

    An interrupt is not recorded: nobody is left to read it.

    Raises:
        SystemExit: the block failed, and that is recorded; whoever reads it prints it.
    """
    path, token = os.environ.get(_PATH, ""), os.environ.get(_TOKEN, "")
    figures: dict[str, Any] = {}

    def write(outcome: StageOutcome) -> bool:
        if not path:
            return False
        try:
            files.write_text(Path(path), json.dumps(asdict(outcome), default=str))
        except OSError:  # a full disk, say: what the stage ended in matters more
            return False
        return True

    try:
        yield figures
    except Exception as error:
        outcome = _failed(error, token)
        if not write(outcome):
            raise
        if not isinstance(error, TurboVaedError):
            traceback.print_exc()
        raise SystemExit(outcome.exit_code) from None
    write(StageOutcome(token=token, figures=figures))


def _failed(error: Exception, token: str) -> StageOutcome:
    if isinstance(error, TurboVaedError):
        kind = next(one for one in type(error).__mro__ if one.__module__ == errors.__name__)
        name, code, message = kind.__name__, error.exit_code, str(error)
    else:
        name, code = Fault.__name__, Fault.exit_code
        message = f"{type(error).__name__}: {error}"
    notes = list(getattr(error, "__notes__", ()))
    return StageOutcome(token=token, error=name, exit_code=code, message=message, notes=notes)


def raised(outcome: StageOutcome, stage: str) -> TurboVaedError:
    """The error of a stage that failed, in the class in which it was raised there."""
    kind = getattr(errors, outcome.error, Fault)
    error: TurboVaedError = kind(f"{stage}: {outcome.message}")
    for note in outcome.notes:
        error.add_note(note)
    return error
