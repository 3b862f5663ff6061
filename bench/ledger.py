"""A month's report of a ledger of a million charges, and what metering costs a training step.

Run: python bench/ledger.py [--help]. Its last line is JSON, also written to bench/results.
The charges are what meters write: slices of 15 s of many runs, side by side in one month, a few of
them wasted. The plain way reads every charge and sums in Python; the bench fails where both do not
give the same. `metering_share` is what a slice takes, written into that ledger of a million, of the
15 s between two: as if a step stood still meanwhile. `metering_share_by_steps` is how much more CPU
time steps take with a meter that slices a hundred times as often than with none, by a hundred.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.decode import cpu_name  # noqa: E402
from turbo_vaed.config.load import FILES  # noqa: E402
from turbo_vaed.config.stages import STAGES  # noqa: E402
from turbo_vaed.costs import Charge, ChargeGroup, Ledger, Meter, Rate, steady, total_usd  # noqa: E402
from turbo_vaed.costs.db.schema import GROUP_NAMES  # noqa: E402
from turbo_vaed.costs.money import per_second, time_usd  # noqa: E402

MONTH = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
SLICE_SECONDS = 15
SLICES_PER_STAGE = 240
USD_PER_HOUR = Decimal("0.7519")
RATE = Rate(resource="node", market="local", usd_per_hour=USD_PER_HOUR, source="bench/ledger.py")
BATCH = 20_000
OFTEN = 100
STEPS = 20
MATRIX = np.random.default_rng(0).random((256, 256), dtype=np.float32)


def charges(count: int) -> Iterator[Charge]:
    """Runs of seven stages of an hour each, begun every few minutes through the month."""
    since, until = MONTH
    runs = -(-count // (len(STAGES) * SLICES_PER_STAGE))
    last_start = until - since - timedelta(hours=len(STAGES) + 1)
    for number in range(count):
        run, slice_of_run = divmod(number, len(STAGES) * SLICES_PER_STAGE)
        stage, slice_of_stage = divmod(slice_of_run, SLICES_PER_STAGE)
        micro = SLICE_SECONDS * 1_000_000 + number % 997  # a slice is never 15 s to the microsecond
        started = (
            since
            + last_start * run / max(runs, 1)
            + timedelta(seconds=(SLICE_SECONDS + 0.001) * slice_of_run)
        )
        wasted = STAGES[stage] == "distill" and slice_of_stage % 50 == 49
        yield Charge(
            run=f"customer-{run % 20}-{run:012x}",
            customer=f"customer-{run % 20}",
            stage=STAGES[stage],
            resource=f"node-{slice_of_stage % 2}",
            market="spot",
            quantity=Decimal(micro).scaleb(-6),
            unit="node-second",
            unit_price_usd=per_second(USD_PER_HOUR),
            amount_usd=time_usd(micro, USD_PER_HOUR),
            started_at=started,
            ended_at=started + timedelta(microseconds=micro),
            useful="wasted" if wasted else "useful",
            price_source="EC2 spot history, g5.xlarge in us-east-1a",
        )


def plainly(ledger: Ledger) -> tuple[ChargeGroup, ...]:
    """The same report by reading every charge."""
    since, until = MONTH
    groups: dict[tuple[str, ...], list[Charge]] = {}
    for charge in ledger.charges():
        if since <= charge.started_at < until:
            names = tuple(getattr(charge, name) for name in GROUP_NAMES)
            groups.setdefault(names, []).append(charge)
    made = [
        ChargeGroup(
            **dict(zip(GROUP_NAMES, names, strict=True)),  # type: ignore[arg-type]
            quantity=total_usd(c.quantity for c in found),
            amount_usd=total_usd(c.amount_usd for c in found),
            charges=len(found),
            first_at=min(c.started_at for c in found),
            last_at=max(c.ended_at for c in found),
        )
        for names, found in groups.items()
    ]
    return tuple(sorted(made, key=lambda g: (g.first_at, *(getattr(g, n) for n in GROUP_NAMES))))


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def report_seconds(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Fill a ledger, and ask it for its month in both ways."""
    since, until = MONTH
    path = folder / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        made = charges(count)
        say(f"writing {count:,} charges")
        fill, _ = seconds_of(lambda: [ledger.add_all(b) for b in iter(lambda: take(made), [])])
        say("the month by groups")
        timed = [
            seconds_of(lambda: ledger.grouped(since=since, until=until)) for _ in range(rounds)
        ]
        seconds = statistics.median(took for took, _ in timed)
        groups = timed[0][1]
        one, _ = seconds_of(lambda: ledger.total(run=groups[0].run))
        say("turbo-vaed cost report --month, as a command")
        command = [seconds_of(lambda: commanded(folder, path)) for _ in range(rounds)]
        alone, _ = seconds_of(lambda: commanded(folder, folder / "empty.db"))
        say("the month by reading every charge")
        plain_seconds, plain_groups = seconds_of(lambda: plainly(ledger))
    assert groups == plain_groups, "both ways give the same"
    assert sum(group.charges for group in groups) == count
    return {
        "charges": count,
        "groups": len(groups),
        "month_usd": str(total_usd(group.amount_usd for group in groups)),
        "seconds": round(seconds, 3),
        "plain_seconds": round(plain_seconds, 3),
        "ratio_vs_plain": round(plain_seconds / seconds, 1),
        "total_of_a_run_seconds": round(one, 4),
        "command_seconds": round(statistics.median(took for took, _ in command), 3),
        "command_seconds_of_an_empty_ledger": round(alone, 3),
        "write_seconds": round(fill, 1),
        "database_mb": round(path.stat().st_size / 1e6, 1),
    }


def commanded(folder: Path, ledger: Path) -> None:
    """`turbo-vaed cost report` of the month, as a person runs it: a process of its own."""
    (folder / "checkout").mkdir(exist_ok=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "checkout")
    (folder / "checkout" / "dvc.yaml").touch()
    environment = os.environ | {
        "TURBO_VAED_ROOT": str(folder / "checkout"),
        "TURBO_VAED_LEDGER_URL": f"sqlite:///{ledger}",
    }
    words = [
        sys.executable,
        "-m",
        "turbo_vaed.cli",
        "cost",
        "report",
        "--month",
        f"{MONTH[0]:%Y-%m}",
    ]
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def take(made: Iterator[Charge]) -> list[Charge]:
    return list(islice(made, BATCH))


def metering(folder: Path, blocks: int, step_seconds: float, slices: int) -> dict[str, Any]:
    """What the meter and the ledger's writes take of training, as a share of its time."""
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:

        def meter(stage: str, interval_seconds: float) -> Meter:
            return Meter(
                ledger,
                run="bench-1",
                customer="bench",
                stage=stage,
                nodes=steady(RATE),
                interval_seconds=interval_seconds,
            )

        say(f"{slices} slices")
        with meter("slices", 3600) as running:
            timed = [seconds_of(running.cut)[0] for _ in range(slices)]
        say(f"{blocks} blocks of steps with a meter and without, in turns")
        rounds, ratios = rounds_of(step_seconds), []
        for number in range(blocks):
            began = time.process_time()
            steps(rounds)
            alone = time.process_time() - began
            with meter(f"steps-{number}", SLICE_SECONDS / OFTEN):
                began = time.process_time()
                steps(rounds)
                ratios.append((time.process_time() - began) / alone)
    return {
        "metering_share": round(statistics.mean(timed) / SLICE_SECONDS, 6),
        "metering_share_by_steps": round((statistics.median(ratios) - 1) / OFTEN, 6),
        "slice_write_seconds": round(statistics.mean(timed), 5),
        "slice_write_seconds_p95": round(statistics.quantiles(timed, n=20)[-1], 5),
        "slice_seconds": SLICE_SECONDS,
        "step_seconds": step_seconds,
    }


def steps(rounds: int) -> None:
    """A block of training steps: products, as the GIL is free in them in training."""
    for _ in range(STEPS):
        for _ in range(rounds):
            MATRIX @ MATRIX


def rounds_of(step_seconds: float) -> int:
    """How many products take a step's time."""
    took, _ = seconds_of(lambda: [MATRIX @ MATRIX for _ in range(50)])
    return max(1, round(50 * step_seconds / took))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--charges", type=int, default=1_000_000)
    arguments.add_argument(
        "--rounds", type=int, default=5, help="of the fast report; medians count"
    )
    arguments.add_argument("--blocks", type=int, default=15, help=f"of {STEPS} steps, each way")
    arguments.add_argument("--step-seconds", type=float, default=0.1)
    arguments.add_argument("--slices", type=int, default=300)
    arguments.add_argument("--out", type=Path, default=ROOT / "bench/results/ledger.json")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = report_seconds(Path(scratch), given.charges, given.rounds)
        result |= metering(Path(scratch), given.blocks, given.step_seconds, given.slices)
    result |= {
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {
            "sqlite": sqlite3.sqlite_version,
            **{name: version(name) for name in ("sqlalchemy", "alembic")},
        },
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
