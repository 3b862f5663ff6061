"""DVC as a child process: what is stale, and one stage at a time.

The command line is called and not `dvc.repo.Repo`, which resolves dvc.yaml from the working
directory of the process and so breaks in tasks.
"""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from flows import stage_log
from turbo_vaed.config import pipeline
from turbo_vaed.costs.db.engine import BUSY_SECONDS
from turbo_vaed.errors import Fault, Refused, TimedOut, TurboVaedError
from turbo_vaed.metering.outcome import Expected, raised
from turbo_vaed.runtime.processes import environment_of_children

P = ParamSpec("P")
T = TypeVar("T")
_BUSY = "is busy, it is being blocked by"
"""DVC's message about a path that another of its processes works on."""
_NOT_THERE = "do not exist neither locally nor on remote"
"""Of its message about objects that are lost."""
_BUSY_SECONDS = 90.0
"""How long that is waited for."""
_INTERRUPT_SECONDS = 2 * BUSY_SECONDS + 15.0
"""What a stage gets to end its charges and its children, before it is killed: the slice that it
writes and its last one may each have to wait for another writer of the ledger."""
_RUN_DVC = """
import runpy, signal
from turbo_vaed.runtime import garbage
garbage.skip_last_collections()
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("dvc", run_name="__main__", alter_sys=True)
"""
"""As `python -m dvc`, with an ear for interrupts: what cron or nohup starts ignores them, and its
children would with it, so that a stage which takes too long would be killed uncharged."""
_HASHING_SECONDS = 6 * 3600.0
"""`dvc status` hashes a customer's whole folder the first time."""
_RUNS = "Running stage "
"""How DVC's line begins when it starts the command of a stage."""
_HIDDEN = (
    "Updating lock file",
    "To track the changes with git",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "ERROR: failed to reproduce",
    "interrupted; run the same command again",
)
"""Not printed: advice that the flow follows, and how a stage ended, which the flow reports."""
_RAY_RESTARTS = "has constructor arguments in the object store and max_restarts > 0"
"""Of a line that Ray's core worker prints as an error for every actor of Ray Data: its arguments
live as long as the pass over the data, so that a lost actor is started again. Not printed."""
_TAIL_LINES = 30
_KEPT_LINES = 1000


@dataclass(frozen=True, kw_only=True)
class Status:
    """What DVC finds of a customer's stages; both in the order of the stages."""

    changed: list[str]
    """Those whose inputs, params or outputs are other ones than it has recorded."""
    missing: list[str]
    """Those whose outputs are not here, though it has recorded some; nothing else has changed."""


def status(root: Path, customer: str, stages: tuple[str, ...]) -> Status:
    """Compare a customer's stages with what DVC has recorded of them.

    Raises:
        Fault: DVC itself failed.
    """
    targets = [_target(customer, stage) for stage in stages]
    command = ["status", "--json", *targets]
    output, errors = _dvc(root, command, {}, timeout_seconds=_HASHING_SECONDS)
    try:
        found = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = None
    if not isinstance(found, dict):
        raise Fault(f"dvc status printed no JSON object: {output[-500:]} {errors[-500:]}")
    differences = {
        stage: list(_differences(root, customer, found.get(target, [])))
        for stage, target in zip(stages, targets, strict=True)
    }
    changed = [stage for stage, kinds in differences.items() if "changed" in kinds]
    missing = [stage for stage, kinds in differences.items() if "missing" in kinds]
    return Status(changed=changed, missing=[stage for stage in missing if stage not in changed])


def _differences(root: Path, customer: str, found: list[Any]) -> Iterator[str]:
    """For each difference of a stage, `changed`; or `missing` where an output is not here. An input
    that is not here is another stage's output."""
    for one in found:
        if not isinstance(one, dict):  # its command, or it always changes
            yield "changed"
            continue
        for path in (one.get("changed deps") or {}) | (one.get("changed outs") or {}):
            is_made = path.startswith(f"work/{customer}/")
            if not is_made or (root / path).exists():
                yield "changed"
            elif "changed outs" in one:
                yield "missing"


def reproduce(
    root: Path,
    customer: str,
    stage: str,
    *,
    environment: Mapping[str, str],
    timeout_seconds: float,
    force: bool = False,
) -> None:
    """Run `dvc repro --single-item` for one stage of a customer, its output shown as it comes.

    Args:
        force: also where nothing has changed, and although DVC knows what came of it before.

    Raises:
        TurboVaedError: what the stage ended in, in the class in which it was raised there.
        TimedOut: the stage took too long.
        Fault: the stage was killed, or DVC itself failed.
        Refused: another process works on the same stage.
    """
    command = ["repro", "--single-item", *(["--force"] if force else []), _target(customer, stage)]
    expected = Expected.at(root / "work" / customer / "outcome" / f"{stage}.json")
    try:
        _dvc(
            root,
            command,
            {**environment, **expected.environment, **environment_of_children()},
            timeout_seconds=timeout_seconds,
            stage=stage,
            has_ended=lambda: expected.read() is not None,
        )
    except _Failed as failed:
        outcome = expected.read()
        if outcome is None or not outcome.error:  # killed; or DVC failed after it
            raise Fault(str(failed)) from None
        raise raised(outcome, stage) from None


def push(root: Path, customer: str, stages: Sequence[str]) -> str:
    """`dvc push` of a customer's outputs to the configured remote; returns DVC's last line."""
    targets = [_target(customer, stage) for stage in stages]
    out, _ = _dvc(root, ["push", *targets], {}, timeout_seconds=_HASHING_SECONDS)
    return out.strip().splitlines()[-1] if out.strip() else "nothing to push"


def pull(root: Path, customer: str, stages: Sequence[str]) -> bool:
    """`dvc pull` of outputs of a customer from the configured remote; false where it does not have
    all of them.

    Raises:
        Fault: the remote does not answer, or DVC failed.
    """
    targets = [_target(customer, stage) for stage in stages]
    try:
        _dvc(root, ["pull", "--force", *targets], {}, timeout_seconds=_HASHING_SECONDS)
    except _Failed as failed:
        if _NOT_THERE not in str(failed):
            raise
        return False
    return True


def missing_objects(root: Path, remote: str) -> str:
    """What a remote lacks of the objects that the checkout at `root` refers to, as DVC names them;
    empty where it has all.

    Raises:
        Fault: the remote does not answer, or DVC failed.
    """
    command = ["gc", "--workspace", "--cloud", "--remote", remote, "--force", "--dry"]
    _, errors = _dvc(root, command, {}, timeout_seconds=_HASHING_SECONDS)
    lines = errors.splitlines()
    return ", ".join(line for line in lines if line.startswith("name: "))


def collect_garbage(root: Path, remote: str, *, is_dry: bool) -> str:
    """`dvc gc` of a remote: what the checkout at `root` refers to stays; returns what it says.

    Raises:
        Fault: the remote does not answer, or DVC failed.
    """
    command = ["gc", "--workspace", "--cloud", "--remote", remote, "--force"]
    out, _ = _dvc(
        root, [*command, *(["--dry"] if is_dry else [])], {}, timeout_seconds=_HASHING_SECONDS
    )
    said = [line for line in out.splitlines() if "from remote" in line and "No unused" not in line]
    removed = [line for line in out.splitlines() if line.startswith("Removing ")]
    if is_dry:
        return f"{len(removed)} objects would be removed"
    return " ".join(said) or "nothing to remove"


def _target(customer: str, stage: str) -> str:
    """A stage as DVC addresses it from the top of the checkout."""
    return f"{pipeline.FOLDER}/{customer}/dvc.yaml:{stage}"


class _Failed(Fault):
    """DVC ended with an error: its own, or that of the stage it ran."""


def _again_while_busy(call: Callable[P, T]) -> Callable[P, T]:
    """A call of DVC, made again where another DVC works on the same files: that of a run which was
    killed ends within a minute. It raises `Refused` where it still does after `_BUSY_SECONDS`."""

    @functools.wraps(call)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return call(*args, **kwargs)
            except Refused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_BUSY_SECONDS / 20)

    return patient


@_again_while_busy
def _dvc(
    root: Path,
    arguments: list[str],
    environment: Mapping[str, str],
    *,
    timeout_seconds: float,
    stage: str = "",
    has_ended: Callable[[], bool] = lambda: False,
) -> tuple[str, str]:
    """Run DVC in `root` and return its output and errors; those of a stage are shown as they come.

    DVC waits for its lock, which another customer's stage may have for a while: without that, a
    stage of ten hours that ends at such a moment would be lost. A stage's timeout is its own: what
    DVC waits for and hashes before it runs the stage, and after the stage `has_ended`, has a limit
    of its own.
    """
    # The venv's `turbo-vaed` must be the one that dvc.yaml names.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN_DVC, "--wait-for-lock", *arguments],
        cwd=root,
        env={**os.environ, **environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    most = _KEPT_LINES if stage else None  # a stage may print for days
    output: dict[str, deque[str]] = {name: deque(maxlen=most) for name in ("out", "err")}
    clock = [time.monotonic()]  # and when DVC ran the stage

    def drain(name: str, pipe: IO[bytes], record: Callable[[str], None]) -> None:
        # A carriage return ends a line and stays, so that a bar drawn again is known by it.
        for line in io.TextIOWrapper(pipe, encoding="utf-8", errors="replace", newline=""):
            output[name].append(line)
            if line.startswith(_RUNS):
                clock.append(time.monotonic())
            is_noise = line.strip().startswith(_HIDDEN) or _RAY_RESTARTS in line
            if stage and line.strip() and not is_noise:
                stream = sys.stdout if name == "out" else sys.stderr
                print(line.rstrip("\r\n"), flush=True, file=stream)
                record(line)

    pipes = {"out": process.stdout, "err": process.stderr}
    with stage_log.opened(stage) as record:
        readers = [
            threading.Thread(target=drain, args=(name, pipe, record), daemon=True)
            for name, pipe in pipes.items()
        ]
        for reader in readers:
            reader.start()
        try:
            while (code := _ended_within(process, 1.0)) is None:
                is_run = not stage or len(clock) > 1
                limit = timeout_seconds
                if not is_run or has_ended():
                    limit += _HASHING_SECONDS
                if time.monotonic() - clock[-1] > limit:
                    what = stage or arguments[0]
                    raise TimedOut(f"{what} took more than {limit:.0f} s and was stopped")
        finally:
            _stop(process)
            for reader in readers:
                reader.join(5)
    out, errors = "".join(output["out"]), "".join(output["err"])
    if code:
        raise _failure(stage or f"dvc {arguments[0]}", code, errors)
    return out, errors


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code; None where it still runs after so many seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process group that still runs, so that it charges its waste; then kill it."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_INTERRUPT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(what: str, code: int, errors: str) -> TurboVaedError:
    """The error for a DVC that failed by itself, from its last messages."""
    lines = errors.splitlines()
    if any(line.startswith("ERROR:") and _BUSY in line for line in lines):
        return Refused(f"{what}: another DVC process works on the same files; wait for its end")
    return _Failed(f"{what} ended with exit code {code}:\n" + "\n".join(lines[-_TAIL_LINES:]))
