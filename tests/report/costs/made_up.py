"""A made-up ledger of summer 2026, and the checkout around it. Nothing in it depends on now.

| customer | what is special |
|---|---|
| acme | spot machines; a run across two months; waste; a credit; a month's limit; a verdict |
| beta | two runs at once, one of a name full of HTML; a spot machine whose price is not known |
| idle | no charge |
| tiny | one amount of 1e-12 USD, a formula for a run's name; its verdict fails |
| whale | one amount of 1e6 USD |
| gone | charges, but not in params.yaml any more |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests import configs
from tests.gate.made_up import evidence as passing
from tests.roi.made_up import exact
from turbo_vaed.costs import Charge, Ledger
from turbo_vaed.costs.waste import waste_corrections
from turbo_vaed.gate import Evidence, judge
from turbo_vaed.report.costs.facts import Gathered, gather
from turbo_vaed.roi.roi import Roi, calculate

ROOT = Path(__file__).parents[3]
HTML_RUN = 'beta-<script>alert("2")</script>&co'
FORMULA_RUN = '=HYPERLINK("http://example.org")'
SPOT, ON_DEMAND, LOCAL = Decimal("0.36"), Decimal("1.08"), Decimal("0.072")
PRICES = {"g5.xlarge": ON_DEMAND}


def at(text: str) -> datetime:
    """`07-30 22:00`, of 2026 and UTC."""
    return datetime.strptime(f"2026-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


def charge(
    run: str, stage: str, start: str, seconds: int, usd_per_hour: Decimal, **changes: Any
) -> Charge:
    """Some machine time of a customer, which is the run's first word."""
    price = usd_per_hour / 3600
    values: dict[str, Any] = {
        "run": run,
        "customer": run.partition("-")[0],
        "stage": stage,
        "resource": "node",
        "market": "local",
        "quantity": Decimal(seconds),
        "unit": "node-second",
        "unit_price_usd": price.quantize(Decimal("1e-18")),
        "amount_usd": (price * seconds).quantize(Decimal("1e-12")),
        "started_at": at(start),
        "ended_at": at(start) + timedelta(seconds=seconds),
        "useful": "useful",
        "price_source": "params.yaml",
    }
    return Charge(**{**values, **changes})


def spot(run: str, stage: str, start: str, seconds: int, **changes: Any) -> Charge:
    """As above, on a spot machine that has a price on demand."""
    given = {"resource": "g5.xlarge", "market": "spot", "price_source": "EC2 spot price history"}
    return charge(run, stage, start, seconds, SPOT, **{**given, **changes})


def charges() -> Iterator[Charge]:
    """All of them."""
    yield charge("acme-1", "validate", "07-31 20:00", 600, LOCAL)
    distill = [spot("acme-1", "distill", f"07-31 {hour}:00", 3600) for hour in (21, 22, 23)]
    distill.append(spot("acme-1", "distill", "08-01 00:00", 3600))
    yield from distill
    yield from waste_corrections(distill, at("07-31 23:30"), at("08-01 00:30"), "worker lost")
    yield charge("acme-1", "gate", "08-01 02:00", 900, ON_DEMAND, market="on-demand",
                 resource="g5.xlarge")  # fmt: skip
    yield spot("acme-2", "distill", "08-20 10:00", 7200)
    yield charge("acme-2", "gate", "08-20 13:00", 300, LOCAL)
    yield charge("acme-2", "reconcile", "08-21 00:00", 0, Decimal(0), unit="credit",
                 quantity=Decimal(-1), unit_price_usd=Decimal("0.05"),
                 amount_usd=Decimal("-0.05"), price_source="invoice of August")  # fmt: skip
    for run in ("beta-1", HTML_RUN):
        yield charge(run, "encode", "08-20 10:30", 1800, LOCAL)
    yield spot("beta-1", "distill", "08-20 11:00", 3600, resource="zz9.huge")
    yield charge("gone-1", "distill", "05-03 09:00", 5400, LOCAL)
    yield charge(FORMULA_RUN, "validate", "08-22 00:00", 1, Decimal(0), customer="tiny",
                 unit_price_usd=Decimal("1e-12"), amount_usd=Decimal("1e-12"))  # fmt: skip
    yield charge("whale-1", "distill", "08-23 00:00", 1_000_000, Decimal(3600))


def evidence(psnr_db: float) -> Evidence:
    """Of a package that passes where its PSNR does."""
    return passing(
        psnr_db=psnr_db,
        ssim=0.91,
        ms_ssim=0.97,
        worst_psnr_db=psnr_db - 3,
        teacher_psnr_db=31.0,
        parity_psnr_db=100.0,
        latency_seconds=0.1,
        teacher_latency_seconds=0.4,
    )


def history(first: datetime, last: datetime, validations: list[float | None]) -> dict[str, Any]:
    """`history.json` of as many steps, some of them validated."""
    between = (last - first) / max(1, len(validations) - 1)
    return {
        "steps": [
            {"step": i + 1, "at": (first + i * between).timestamp()}
            | ({} if psnr is None else {"val_psnr": psnr})
            for i, psnr in enumerate(validations)
        ],
        "steps_done": len(validations),
    }


def write(path: Path, document: Any) -> None:
    """A JSON file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def checkout(root: Path) -> Path:
    """The configuration and the work folders of the customers."""
    root.mkdir(parents=True, exist_ok=True)
    document = configs.read()
    budgets = {"acme": 12.5, "beta": 5, "idle": 95, "tiny": 1, "whale": 900_000}
    document["customers"] = {
        name: {"source": f"data/{name}", "use_case": "education", "budget": {"run_usd": usd}}
        for name, usd in budgets.items()
    }
    document["customers"]["acme"]["budget"]["customer_month_usd"] = 20
    document["budget"]["total_month_usd"] = 850_000
    configs.write(root, document)
    validations = [None, 24.0, None, 28.5, 29.25, None, 29.0, None]
    write(root / "work/acme/distill/history.json",
          history(at("08-20 10:05"), at("08-20 11:55"), validations))  # fmt: skip
    write(root / "work/tiny/distill/history.json",
          history(at("08-01 00:00"), at("08-01 01:00"), [20.0, 21.0]))  # fmt: skip
    from turbo_vaed.config import load

    for name, psnr_db in (("acme", 30.5), ("tiny", 19.0)):
        verdict = judge(
            evidence(psnr_db), customer=name, use_case="education",
            thresholds=load.load(root, name).thresholds, min_parity_psnr=60.0,
            package_sha256="9a" * 32, data_sha256="da" * 32, git_revision="8c1d5e0f77",
            created="2026-08-20T13:05:00+00:00",
        )  # fmt: skip
        write(root / f"work/{name}/gate/verdict.json", verdict.to_json())
    return root


def ledger(root: Path) -> Ledger:
    """The ledger of the checkout, filled; to be closed."""
    found = Ledger.open(f"sqlite:///{root}/state/ledger.db")
    found.add_all(charges())
    return found


def gathered(root: Path, **options: Any) -> Gathered:
    """`gather` over a made-up checkout that lies at `root`."""
    with ledger(root) as found:
        return gather(root, found, on_demand_usd_per_hour=PRICES.get, **options)


def returns(found: Gathered) -> dict[str, Roi | str]:
    """One that was calculated by hand, of acme."""
    known: dict[str, Roi | str] = {"acme": calculate(exact())}
    return {one.name: known.get(one.name, "no run measured it") for one in found.known}


def champions(found: Gathered) -> dict[str, int | str]:
    """As the registry would list them."""
    known: dict[str, int | str | None] = {"acme": 3, "tiny": None}
    return {one.name: known.get(one.name, str(one.verdict)) for one in found.known}
