"""Carry out the fault drills and write docs/drills.md: `make drills`, or some by their names.

`python -m scripts.drills [NAME …]` from the checkout; without names the table is written.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import ray
import torch

from tests.drills import faults
from tests.drills.drills import DRILLS, Drill, Outcome, carry_out, undisturbed
from tests.drills.toy import CHECKPOINT_EVERY, STEPS, USD_PER_HOUR
from turbo_vaed.costs import format_usd
from turbo_vaed.settings import ENVIRONMENT

PAGE = Path("docs/drills.md")
MACHINES = 2


def main(names: list[str]) -> int:
    """Carry them out; returns how many broke a promise."""
    unknown = set(names) - {drill.name for drill in DRILLS}
    if unknown:
        print(
            f"no such drill: {', '.join(unknown)}; there are: {', '.join(d.name for d in DRILLS)}"
        )
        return 2
    torch.set_num_threads(1)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the requests of the small S3
    chosen = [drill for drill in DRILLS if not names or drill.name in names]
    outcomes: dict[Drill, Outcome] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        faults.environment(ENVIRONMENT | faults.CLUSTER),
        contextlib.ExitStack() as cluster,
    ):
        reference = undisturbed(Path(folder, "undisturbed"))
        machines = None
        for drill in chosen:
            if drill.on_ray and machines is None:
                machines = cluster.enter_context(faults.Machines.started(MACHINES))
            began = time.monotonic()
            place = Path(folder, drill.name.replace(" ", "-"))
            place.mkdir()
            try:
                outcomes[drill] = carry_out(drill, place, reference, machines)
                found = str(outcomes[drill])
            except AssertionError as error:
                found = f"BROKEN: {error}"
            print(f"{drill.name}: {found} ({time.monotonic() - began:.0f} s)", flush=True)
    broken = len(chosen) - len(outcomes)
    if not names and not broken:
        PAGE.write_text(page(outcomes))
    return broken


def page(outcomes: dict[Drill, Outcome]) -> str:
    """The table of the drills, in Markdown."""
    memory = psutil.virtual_memory().total / 2**30
    heads = ("drill", "what is done", "workers, and the step they began at", "seconds lost")
    heads += ("steps lost", "wasted", "difference", "allowed")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows += [
        f"| {drill.name} | {drill.about} | {outcome.starts} | {outcome.seconds_lost:.1f} "
        f"| {outcome.steps_lost} | {format_usd(outcome.wasted_usd)} "
        f"| {outcome.difference:.1e} | {drill.bound:g} |"
        for drill, outcome in outcomes.items()
    ]
    return f"""\
# Fault drills

`make drills` writes this page; the short ones are part of `make test`. Each distils a toy student
({STEPS} steps, a checkpoint every {CHECKPOINT_EVERY}) to its end while something is broken from
outside, and compares its weights with those of a run that nothing disturbed.

Measured {datetime.now(UTC):%Y-%m-%d} on {psutil.cpu_count()} CPU cores, {memory:.0f} GiB,
{platform.system()}; Ray {ray.__version__}, PyTorch {torch.__version__}. Machines are processes on
it: a head that computes nothing and {MACHINES} of one CPU each, whose loss Ray's head finds out
after {" ".join(f"{k}={v}" for k, v in faults.CLUSTER.items() if "health" in k)}. The price is
{format_usd(USD_PER_HOUR)} per hour, that is {format_usd(USD_PER_HOUR / 3600)} per second.

- *seconds lost*: paid for, and nothing came of them: the steps that were computed again, the time
  until they began, most of it the start of processes, and what the end had to wait for the last
  checkpoint.
- *steps lost*: those that were computed again; never more than followed the last checkpoint.
- *wasted*: in the ledger, by correcting charges. Less than the seconds where a process was killed
  that had not yet written its last slice.
- *difference*: the largest of any weight, EMA weight or best weight from the undisturbed run's.

""" + "\n".join(rows) + "\n"  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
