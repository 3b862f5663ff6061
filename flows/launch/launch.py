"""Starts a machine, runs the PoC on it, fetches the results and ends the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flows.launch.launch_config import HOME, folder
from turbo_vaed.errors import Fault
from turbo_vaed.planning.ec2_costs import ENDS_ITSELF_MINUTES
from turbo_vaed.planning.history import PACE_FILE
from turbo_vaed.runtime.interrupts import signals_interrupt
from turbo_vaed.workspace import Workspace

EXIT_CODE = "exit-code"
MADE, PIPELINE = "made", "pipeline"
"""Among what is fetched: the customer's folder in work/, and the one in customers/."""


class LaunchResult(NamedTuple):
    """A run that has ended on its machine."""

    exit_code: int
    fetched_bytes: int


@contextmanager
def started(config: Path) -> Iterator[None]:
    """Start and set up the machine; it is ended with the block, also by a signal.

    Raises:
        Fault: it could not be started or set up.
    """
    with signals_interrupt():
        try:
            if _ray("up", "--yes", "--no-config-cache", str(config)) != 0:
                raise Fault(
                    "the machine could not be started or set up; Ray's launcher says why above"
                )
            yield
        finally:
            end(config)


def end(config: Path) -> None:
    """End the machine and remove its configuration.

    Raises:
        Fault: AWS or Ray refused; it may still cost money.
    """
    if _ray("down", "--yes", str(config)) != 0:
        raise Fault(
            f"the machine of {config} could not be ended and may still cost money: try turbo-vaed "
            "ec2 down or the EC2 console; it ends itself when its minutes are over"
        )
    config.unlink(missing_ok=True)


def run_there(workspace: Workspace, config: Path) -> LaunchResult:
    """Run the PoC on the machine and fetch its results.

    Raises:
        Fault: the machine was lost, or cannot be reached any more.
    """
    place = folder(workspace)
    code = f"{HOME}/{EXIT_CODE}"
    command = (
        # The machine ends itself soon after, where nobody is left here to end it.
        f"rm -f {code}; trap 'sudo shutdown -h +{ENDS_ITSELF_MINUTES}' EXIT; trap 'exit 129' HUP; "
        "unset OMP_NUM_THREADS; "  # 1 by Ray's launcher, for every process
        f"cd {HOME} && turbo-vaed poc {workspace.customer}; echo $? > {code}"
    )
    fetched = place / "fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    # The folder of the lock, which is there before the lock is: no stage may have succeeded.
    pipeline = workspace.dvc_lock.parent.relative_to(workspace.root)
    wanted = {EXIT_CODE: EXIT_CODE, MADE: f"work/{workspace.customer}/", PIPELINE: f"{pipeline}/"}
    is_whole = _ray("exec", str(config), command) == 0 and all(
        _ray("rsync-down", str(config), f"{HOME}/{there}", str(fetched / here)) == 0
        for here, there in wanted.items()
    )
    if not is_whole or not (fetched / EXIT_CODE).is_file():
        raise Fault(
            "the machine was lost, or cannot be reached; the same command resumes the run from its "
            "last checkpoint, on the machine that is cheapest then"
        )
    size = sum(path.stat().st_size for path in fetched.rglob("*") if path.is_file())
    _take_over(workspace, fetched)
    code_there = int((fetched / EXIT_CODE).read_text())
    shutil.rmtree(fetched)
    return LaunchResult(code_there, size)


def _take_over(workspace: Workspace, fetched: Path) -> None:
    """What the run made takes the place of what was here: of this customer alone, and whole
    folders, for files that are gone there must not stay here. The pace of this machine stays."""
    for made in (fetched / MADE).iterdir():
        here = workspace.work / made.name
        if made.name in ("ec2", PACE_FILE) or made.name.startswith("."):
            continue
        if here.is_dir():
            shutil.rmtree(here)
        os.replace(made, here)
    lock = fetched / PIPELINE / workspace.dvc_lock.name
    if lock.is_file():
        workspace.dvc_lock.parent.mkdir(parents=True, exist_ok=True)
        os.replace(lock, workspace.dvc_lock)


def _ray(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], check=False
    ).returncode
