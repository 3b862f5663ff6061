"""A team's servers on one machine: `make team`, `make team-down`, `make team-clean`.

`python -m scripts.team up|run|status|down|clean` from the checkout.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from scripts.team import customers
from scripts.team.layout import ROOT, Layout, find, prepare
from scripts.team.servers import STOP_ORDER, keep_objects, start_all
from scripts.team.supervision import Supervisor
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.settings import set_environment_defaults


def main() -> int:
    """Carry out a verb; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.team", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start what does not run, and write team.env")
    verbs.add_parser("run", help="run two scheduled customers through, by the worker")
    verbs.add_parser("status", help="the servers and their processes")
    verbs.add_parser("down", help="stop everything; the data stay")
    verbs.add_parser("clean", help="stop everything and remove the data")
    verb = parser.parse_args().verb
    set_environment_defaults()
    try:
        if verb == "up":
            return up()
        layout = find()
        if layout is None:
            raise UserError("there is no stack here; make one: make team")
        if verb == "run":
            return customers.run(layout, lambda line: print(line, flush=True))
        if verb == "status":
            return status(layout)
        return down(layout, remove=verb == "clean")
    except TurboVaedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def up() -> int:
    began = time.monotonic()
    layout = prepare()
    start_all(layout, Supervisor(layout), lambda line: print(line, flush=True))
    print(f"all servers are up after {time.monotonic() - began:.0f} s")
    print(f"MLflow   {layout.url('mlflow')}")
    print(f"Prefect  {layout.url('prefect')}")
    print(f"logs     {_shown(layout, 'logs')}")
    print(f"log in as {_shown(layout, 'team.env')} says; a shell reads it with:")
    print(f"  set -a; . {_shown(layout, 'team.env')}; set +a; turbo-vaed doctor")
    return 0


def status(layout: Layout) -> int:
    supervisor = Supervisor(layout)
    if not supervisor.is_up():
        print("stopped")
        return 1
    for one in supervisor.programs():
        print(f"{one['name']:10} {one['statename']:10} {one['description']}")
    return 0


def down(layout: Layout, *, remove: bool) -> int:
    """Stop everything; returns 3 where a process had to be killed."""
    supervisor = Supervisor(layout)
    keep = {} if remove else {"s3": partial(keep_objects, layout)}
    is_up = supervisor.is_up()
    killed = supervisor.stop(STOP_ORDER, keep) if is_up else []
    if not is_up and (left := processes_of(layout.home)):
        raise Fault(
            f"supervisord is gone, and processes that it started run on in {layout.home}: "
            f"{', '.join(map(str, left))}; end them (kill), PostgreSQL's first, and run this again"
        )
    (layout.home / "supervisord.pid").unlink(missing_ok=True)
    shutil.rmtree(layout.sockets, ignore_errors=True)
    if remove:
        shutil.rmtree(layout.home)
    print("the stack is down, its data are " + ("gone" if remove else f"in {layout.home}"))
    if killed:
        print(f"processes that did not end and were killed: {killed}", file=sys.stderr)
    return 3 if killed else 0


def processes_of(home: Path) -> list[int]:
    """Processes that were started with a file of this folder, by their numbers."""
    mine = f"{home}/"
    return [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if one.pid != os.getpid() and any(mine in word for word in one.info["cmdline"] or ())
    ]


def _shown(layout: Layout, name: str) -> str:
    path = layout.home / name
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    sys.exit(main())
