"""Carry out the fault drills and write docs/drills.md: `make drills`, or some by their names.

`python -m scripts.drills [NAME …]` from the checkout, `stops` for all those that stop a run,
`restores` for a loss of everything, `kills` for a run that is killed at random; a table is written
when all of its drills have kept their promises.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import ray
import torch

from tests.costs.conftest import Postgres
from tests.drills import disturbed, faults, kills, paid, restores, servers, whole_runs
from tests.drills.drills import DRILLS, Drill, Outcome, carry_out, undisturbed
from tests.drills.kills import Survived
from tests.drills.restores import Restored
from tests.drills.toy import CHECKPOINT_EVERY, STEPS, USD_PER_HOUR
from tests.drills.whole_runs import WAYS, Ended, Way
from turbo_vaed.costs import format_usd
from turbo_vaed.settings import ENVIRONMENT

PAGE = Path("docs/drills.md")
STOPS = "## Stopped runs"
"""The heading under which the page has them."""
LOSSES = "## Lost and restored"
"""The heading under which the page has the losses of everything."""
KILLED = "## Killed at random"
"""The heading under which the page has the run that is."""
RESTORES, KILLS = "restores", "kills"
MACHINES = 2
BOUND = 1e-6
"""By which weights may differ that two workers computed, whose sums have no order."""


def main(names: list[str], *, count: int = kills.KILLS, seed: int | None = None) -> int:
    """Carry them out; returns how many broke a promise.

    Args:
        count: of random kills; with fewer than `kills.KILLS` the page stays as it is.
        seed: of what is killed when; None for any.
    """
    names = [way.name for way in WAYS] if names == ["stops"] else names
    known = [RESTORES, KILLS, *(one.name for one in (*DRILLS, *WAYS))]
    if unknown := set(names) - set(known):
        print(f"no such drill: {', '.join(unknown)}; there are: {', '.join(known)}")
        return 2
    torch.set_num_threads(1)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the requests of the small S3
    drills = [drill for drill in DRILLS if not names or drill.name in names]
    ways = [way for way in WAYS if not names or way.name in names]
    loses, kills_it = not names or RESTORES in names, not names or KILLS in names
    with faults.environment(ENVIRONMENT):
        outcomes, ended = distil(drills), stop_runs(ways)
        restored = lose_everything() if loses else {}
        survived = kill_at_random(count, seed) if kills_it else None
    rest, _, fourth = PAGE.read_text().partition(KILLED)
    rest, _, third = rest.partition(LOSSES)
    first, _, second = rest.partition(STOPS)
    fourth, third, second = KILLED + fourth, LOSSES + third, STOPS + second
    if len(outcomes) == len(DRILLS):
        first = page(outcomes)
    if len(ended) == len(WAYS):
        second = STOPS + page_of_stops(ended)
    if len(restored) == 2:
        third = LOSSES + page_of_losses(restored)
    if survived is not None and count >= kills.KILLS:
        fourth = KILLED + page_of_kills(survived)
    parts = (first, second, third, fourth)
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    broken = len(drills) - len(outcomes) + len(ways) - len(ended)
    return broken + (2 - len(restored)) * loses + (survived is None) * kills_it


def distil(chosen: list[Drill]) -> dict[Drill, Outcome]:
    """Distil while things break; what became of the drills that broke no promise."""
    outcomes: dict[Drill, Outcome] = {}
    if not chosen:
        return outcomes
    with (
        tempfile.TemporaryDirectory() as folder,
        faults.environment(faults.CLUSTER),
        contextlib.ExitStack() as cluster,
    ):
        reference = undisturbed(Path(folder, "undisturbed"))
        machines = None
        for drill in chosen:
            if drill.on_ray and machines is None:
                machines = cluster.enter_context(faults.Machines.started(MACHINES))
            place = Path(folder, drill.name.replace(" ", "-"))
            place.mkdir()
            with reported(drill.name):
                outcomes[drill] = carry_out(drill, place, reference, machines)
    return outcomes


def stop_runs(chosen: list[Way]) -> dict[Way, Ended]:
    """Stop a run in each way, and resume it in another checkout; what became of those that broke no
    promise."""
    ended: dict[Way, Ended] = {}
    if not chosen:
        return ended
    with tempfile.TemporaryDirectory() as folder:
        shared, alone = Path(folder, "shared"), Path(folder, "alone")
        shared.mkdir()
        alone.mkdir()
        roots = [whole_runs.make(Path(folder, name), shared) for name in ("one", "other")]
        for number, way in enumerate(chosen, 1):
            after_step = number * whole_runs.STEPS // (len(chosen) + 2)
            with reported(way.name):
                root = roots[number % 2]
                ended[way] = whole_runs.carry_out(way, root, shared, after_step=after_step)
        with reported("the student that came of it"):
            undisturbed_root = whole_runs.make(Path(folder, "undisturbed"), alone)
            last_root = roots[(len(chosen) + 1) % 2]
            difference = whole_runs.difference(
                whole_runs.finish(last_root, shared), whole_runs.finish(undisturbed_root, alone)
            )
            assert difference <= BOUND, f"weights differ by {difference:g}"
            saved = [one.at for one in ended.values() if one.saved_step]
            whole_runs.check_is_one_run(last_root, shared, saved_before=min(saved, default=None))
            return ended
    return {}


def lose_everything() -> dict[str, Restored]:
    """Lose a customer's run on each kind of database, and restore it; what became of those that
    came back whole."""
    restored: dict[str, Restored] = {}
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL is another user's
        root = folder / "checkout"
        with reported("everything lost, SQLite and folders"):
            restores.make(root)
            restored["SQLite"] = restores.carry_out(root, folder / "kept", {}, lambda: None)
        (folder / "server").mkdir(mode=0o755)
        server = Postgres(folder / "server")
        try:
            with (
                reported("everything lost, PostgreSQL"),
                faults.environment({"PATH": f"{server.programs}{os.pathsep}{os.environ['PATH']}"}),
            ):
                moved = restores.move_to_postgres(root, server)
                restored["PostgreSQL"] = restores.carry_out(
                    root, folder / "kept-2", moved, lambda: server.empty(moved.values())
                )
        finally:
            server.stop(signal.SIGQUIT)
    return restored


def kill_at_random(count: int, seed: int | None) -> Survived | None:
    """Kill a run and what it stands on so often; what became of it, where it broke no promise."""
    seed = random.randrange(10**6) if seed is None else seed
    print(f"{KILLS}: {count} with the seed {seed} (--seed {seed} draws the same again)", flush=True)
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as name, reported(KILLS):
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL is another user's
        return kills.carry_out(folder, seed=seed, kills=count)
    return None


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Print whether the block broke a promise, and how long it took."""
    began, found = time.monotonic(), "done"
    try:
        yield
    except AssertionError as error:
        found = f"BROKEN: {error}"
    print(f"{name}: {found} ({time.monotonic() - began:.0f} s)", flush=True)


def page_of_stops(ended: dict[Way, Ended]) -> str:
    """The table of the stopped runs, in Markdown."""
    heads = ("how", "what is done", "seconds to the prompt", "to its last process")
    heads += ("stopped at step", "saved at step")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows += [
        f"| {way.name} | {way.about} | {one.seconds:.1f} | {one.seconds_to_last:.1f} "
        f"| {one.at_step} | {one.saved_step} |"
        for way, one in ended.items()
    ]
    return f"""

`turbo-vaed poc` of a small customer ({whole_runs.STEPS} steps on 2 workers, no checkpoint but those
that an end asks for) is ended in each of these ways, one after the other, and resumed each time in
the other of two checkouts, which have a ledger, MLflow, DVC's remote and checkpoints in common.
Then it goes to its end, and its student differs from that of an undisturbed run by at most
{BOUND:g}; its history has every step, and its checkpoints are charged from the first one on.
But for `kill -9`, the run's process ends with 130 and one sentence, its reservation is
released, and no run is open in the ledger, in MLflow or in Prefect.

""" + "\n".join(rows) + "\n"  # fmt: skip


def page_of_losses(restored: dict[str, Restored]) -> str:
    """The table of the losses, in Markdown."""
    heads = ("databases", "seconds to back up", "to restore", "MB kept", "charges", "spent")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows += [
        f"| {kind} | {one.create_seconds:.0f} | {one.restore_seconds:.0f} "
        f"| {one.stored_bytes / 1e6:.1f} | {one.facts.charges} "
        f"| {format_usd(one.facts.charged_usd)} |"
        for kind, one in restored.items()
    ]
    return """

A small customer's run is backed up ([how](upgrades-and-backups.md)). Then state, stage outputs,
locks, DVC's cache and remote, MLflow's artifacts and both databases are removed, and restored.
The same as before are: what the ledger charged, to the last digit; the versions in the registry,
and the champion, whose bytes and verdict an audit examines; every file that the stages made. An
upgrade plan has nothing to run, and the next run finds nothing changed and charges nothing.
On PostgreSQL are ledger and MLflow's database, to which the run's charges and package were moved.

""" + "\n".join(rows) + "\n"  # fmt: skip


def page_of_kills(survived: Survived) -> str:
    """What a run came through that was killed at random, in Markdown."""
    rows = ["| killed | what that is | times |", "|---|---|---|"]
    rows += [
        f"| {name} | {about} | {survived.kills[name]} |" for name, about in disturbed.ABOUT.items()
    ]
    stages = [f"{name or 'between stages'} {n}" for name, n in survived.at.most_common()]
    wasted_usd = format_usd(survived.wasted_usd)
    share = survived.wasted_seconds / survived.charged_seconds
    return f"""

`turbo-vaed poc` of a small customer ({kills.STEPS} steps on {servers.MACHINES} workers, a
checkpoint every {kills.TRAINING["checkpoint_every"]}) runs on a team's servers: PostgreSQL, an
MLflow server, S3, Prefect, and a Ray cluster of a head and {servers.MACHINES} machines, all of them
processes. At random moments before, in and after the training something of it gets SIGKILL, what
was killed least first. A server comes back within seconds at its address, a machine after 15 to 25
seconds; a run that ends is started again at once, each time in the other of two checkouts. After
the last kill it goes to its end.

Then the gate has passed; the student differs from that of an undisturbed run on one machine by at
most {BOUND:g}, and so does every weight after the last step; the registry has one version, the
champion, and an audit finds nothing wrong; nothing is reserved, and no run is open in the ledger,
in MLflow or in Prefect; the other checkout finds nothing changed; of all that was started no
process is left. In the ledger, no moment has more machines than there are, but for
{2 * paid.CHANGE_SECONDS:.0f} seconds around one that was lost or came; and every process of a stage
that was seen from outside is charged, but for its start and what a killed one had not yet written,
a slice at most.

moto's S3 has its objects in memory: what is killed is the process that answers at its address,
which passes whole requests on to it. PostgreSQL does not wait for its disk (`fsync=off`): a process
was killed, not the machine.

""" + "\n".join(rows) + f"""

| | |
|---|---|
| kills, by the stage that ran | {', '.join(stages)} |
| seed | {survived.seed} |
| starts of `turbo-vaed poc` | {survived.starts} |
| minutes from the first start to the end | {survived.seconds / 60:.0f} |
| charged | {survived.charged_seconds:.0f} machine-seconds, {format_usd(survived.charged_usd)} |
| wasted | {survived.wasted_seconds:.0f} machine-seconds ({share:.0%}), {wasted_usd} |
| lived and not charged | {survived.lost_seconds:.1f} s of processes, all of them killed |
| charged twice | {survived.doubled_seconds:.1f} machine-seconds |
| difference of the student's weights | {survived.difference:.1e} |
| of all that was trained, after the last step | {survived.last_difference:.1e} |

Measured {datetime.now(UTC):%Y-%m-%d} on {psutil.cpu_count()} CPU cores. The seed draws the same
again, but processes take their time.
"""  # fmt: skip


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--kills", type=int, default=kills.KILLS, help="how many, at random")
    parser.add_argument("--seed", type=int, help="of the random kills")
    given = parser.parse_args()
    sys.exit(main(given.names, count=given.kills, seed=given.seed))
