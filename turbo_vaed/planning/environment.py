"""What a run needs of the machine that drives it: git, folders to write into, room on the disk."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from turbo_vaed.config import pipeline
from turbo_vaed.errors import Fault, UserError

MIN_FREE_BYTES = 2 * 10**9
"""Below it a run is not begun: even the demo's stages, checkpoints and Ray's files take about one
GB, and a disk that fills up fails whatever writes next."""


def check_environment(root: Path, work: Path) -> None:
    """Refuse what DVC, Ray and the ledger would otherwise end in a traceback over, minutes later.

    Args:
        root: the checkout.
        work: the customer's folder in it, which need not exist yet.

    Raises:
        UserError: no git, no git repository, or a folder that cannot be written.
        Fault: the disk is nearly full.
    """
    _check_git(root)
    customers = pipeline.folder(root, work.name)
    for folder in (root, root / ".dvc", customers, work, work / "params", root / "state"):
        _check_writable(_nearest(folder))
    for folder in {_nearest(work), _nearest(root / "state")}:
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_BYTES:
            raise Fault(
                f"the disk of {folder} has {free / 1e9:.1f} GB free, and a run needs at least "
                f"{MIN_FREE_BYTES / 1e9:.0f} GB: make room there, then run the same command again"
            )


def _check_git(root: Path) -> None:
    """DVC works in git repositories only, and a verdict names the commit that it is about."""
    command = ["git", "rev-parse", "--git-dir"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired as error:
        raise Fault(
            f"git did not answer in {error.timeout:g} s: check the disk that {root} lies on"
        ) from None
    except OSError as error:
        raise UserError(
            f"git does not start ({error.strerror}); install it: a run is recorded by its commit"
        ) from None
    if done.returncode:
        found = (done.stderr.strip().splitlines() or ["git gave no reason"])[0]
        raise UserError(
            f"{root} is no git repository that can be used ({found}): clone the project with git, "
            "or run `git init` and commit there"
        )


def _nearest(folder: Path) -> Path:
    """The folder, or where it does not exist yet the one that it will be made in."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _check_writable(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): make it writable for this user, or "
            "work in a checkout on a disk that can be written"
        ) from None
