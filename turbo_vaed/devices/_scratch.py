"""Scratch folders on a phone: named after the process that they belong to, and those that nobody
uses any more, because the phone was unplugged before they could be removed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import uuid
from pathlib import Path

PREFIX = "turbo-vaed-"
IDLE_SECONDS = 24 * 3600
"""After so long without a new file a folder is nobody's, whoever made it: no command and no
program of a measurement may take that long."""
_NAME = re.compile(rf"(\d+) ({PREFIX}([0-9a-f]{{8}})-(\d+)-[0-9a-f]{{12}})")


def new_name() -> str:
    """A folder's name that identifies this machine and this process."""
    return f"{PREFIX}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def listing(folder: str) -> str:
    """For a phone's shell: its clock, our folders below `folder` with the time of their last new
    file, and the working folder of every process, which `leftovers` reads."""
    return (
        f"cd {folder} 2>/dev/null || exit 0; date +%s; stat -c '%Y %n' {PREFIX}* 2>/dev/null; "
        "ls -l /proc/[0-9]*/cwd 2>/dev/null; true"
    )


def leftovers(listed: str) -> list[str]:
    """Names of the folders that no live process uses.

    One is in use where a process on the phone works in it, or the process of this machine that made
    it is alive. A process of another machine cannot be asked: its folder is kept for a day.
    """
    clock, _, rest = listed.partition("\n")
    if not clock.strip().isdigit():
        return []
    now, found = int(clock), []
    for line in rest.splitlines():
        named = _NAME.fullmatch(line.strip())
        if named is None or re.search(rf"/{named[2]}(/|$)", rest, re.MULTILINE):
            continue
        is_ours = named[3] == _machine()
        if now - int(named[1]) > IDLE_SECONDS or (is_ours and not _is_alive(int(named[4]))):
            found.append(named[2])
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is, and somebody else's
        return True
    return True


def _machine() -> str:
    """This machine, or this container: where process ids mean the same."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux, no containers
        space = ""
    identity = f"{platform.node()} {uuid.getnode()} {space}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
