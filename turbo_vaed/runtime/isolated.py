"""Child processes: started fresh, waited for, stopped in time, and nothing they started left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turbo_vaed.errors import Fault

_TAIL_CHARACTERS = 2000


class ChildFailed(Fault):
    """A process that crashed, was killed or took too long, for its program or the machine."""

    def __init__(self, message: str, *, ending: str = "", output: str = "") -> None:
        super().__init__(message)
        self.ending = ending
        """How it ended, as a predicate: `crashed (SIGSEGV)`."""
        self.output = output
        """The end of what it wrote to stdout and stderr."""


def run_module(
    module: str, arguments: Sequence[str], *, threads: int, timeout_seconds: float, what: str
) -> dict[str, Any]:
    """Run `python -m module RESULT *arguments` and read the JSON mapping it left in RESULT.

    `what` names the process in messages.

    Raises:
        ChildFailed: it crashed, was killed, or took longer than `timeout_seconds`.
        Fault: it left no mapping.
    """
    home = str(Path(__file__).resolve().parents[2])  # the folder that holds turbo_vaed
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
    }
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-m", module, str(result), *arguments]
        run_command(command, timeout_seconds=timeout_seconds, what=what, environment=environment)
        return _read(result, what)


def run_command(
    command: Sequence[str],
    *,
    timeout_seconds: float,
    what: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a command to its good end, in `folder`; nothing it started is left behind.

    `what` names the process in messages; `environment` is this process's where it is None.

    Raises:
        ChildFailed: it crashed, was killed, or took longer than `timeout_seconds`.
        FileNotFoundError: there is no such command.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, to be killed as a whole
        )
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            ending = f"was stopped after {timeout_seconds:g} s without an end"
            raise _failed(what, ending, _tail(log)) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            raise _failed(what, _ending(code), _tail(log))


def _failed(what: str, ending: str, output: str) -> ChildFailed:
    message = f"{what} {ending}; its last words: {output or 'none'}"
    return ChildFailed(message, ending=ending, output=output)


def _read(result: Path, what: str) -> dict[str, Any]:
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fault(f"{what} ended well and left no result") from None
    except ValueError as error:
        raise Fault(f"{what} left a result that is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Fault(f"{what} left {type(document).__name__} for a result, expected a mapping")
    return document


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), as happens when memory runs out"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"failed with exit code {code}"


def _tail(log: Any) -> str:
    log.seek(0)
    text: str = log.read().decode("utf-8", "replace").strip()[-_TAIL_CHARACTERS:]
    return text
