"""What a customer's next run will cost, by what the last one took."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import Any

from turbo_vaed.costs import Ledger
from turbo_vaed.costs.estimate import Estimate, Pace, estimate, pace, require_fit, steps_that_fit
from turbo_vaed.costs.money import plain
from turbo_vaed.poc import STAGES, Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages.prices import most_usd_per_hour

ESTIMATE = "estimate.json"
"""In the customer's folder: what was said before the last run."""


def measured_pace(poc: Poc) -> Pace | None:
    """Seconds per step of the customer's last distillation; None where too little was measured."""
    path = poc.folder("distill") / "history.json"
    if not path.is_file():
        return None
    history: dict[str, Any] = json.loads(path.read_text())
    return pace([row["at"] for row in history["steps"]])


def other_seconds(poc: Poc, ledger: Ledger, stages: Collection[str], measured: Pace) -> float:
    """What `stages` took when they ran last, but for the steps of `distill`: by the ledger."""
    found: dict[str, dict[str, tuple[datetime, datetime]]] = {}
    for group in ledger.grouped(customer=poc.customer):
        runs = found.setdefault(group.stage, {})
        began, ended = runs.get(group.run, (group.first_at, group.last_at))
        runs[group.run] = (min(began, group.first_at), max(ended, group.last_at))
    seconds = 0.0
    for stage in stages:
        if stage in found:
            began, ended = max(found[stage].values(), key=lambda span: span[1])
            seconds += (ended - began).total_seconds()
    if "distill" in stages and "distill" in found:
        history = json.loads((poc.folder("distill") / "history.json").read_text())
        seconds -= len(history["steps"]) * measured.mean
    return max(0.0, seconds)


def estimate_run(
    poc: Poc,
    settings: Settings,
    ledger: Ledger,
    *,
    stages: Collection[str] = STAGES,
    may_spend_usd: Decimal,
) -> Estimate | None:
    """What a run of `stages` will cost; None where nothing was measured that it could rest on. Kept
    in work/CUSTOMER/estimate.json, for the report.

    Raises:
        BudgetRefused: it cannot fit `may_spend_usd`; says with how many steps it would.
        Unreachable: the ledger, or Ray, does not answer.
    """
    path, measured = poc.work / ESTIMATE, measured_pace(poc)
    path.unlink(missing_ok=True)
    if measured is None or "distill" not in stages:
        return None
    usd_per_hour = most_usd_per_hour(poc.params, settings, "distill")
    facts: dict[str, Any] = {
        "measured": measured,
        "other_seconds": other_seconds(poc, ledger, stages, measured),
        "usd_per_hour": usd_per_hour,
    }
    steps = poc.params.distill.steps
    found = estimate(
        steps=steps,
        **facts,
        basis=f"at {measured.mean:.3g} s a step and {facts['other_seconds']:.0f} s for the rest, "
        "as in the last run",
    )
    document = {
        name: plain(getattr(found, name)) for name in ("low_usd", "likely_usd", "high_usd")
    } | {"basis": found.basis, "seconds": found.seconds, "steps": steps}
    path.write_text(json.dumps(document, indent=1) + "\n")
    if usd_per_hour > 0:
        fitting = min(steps, steps_that_fit(may_spend_usd, **facts))
        change = (
            f"with distill.steps of {fitting} it would, or on a cheaper machine "
            f"(turbo-vaed cost quote {poc.customer})"
            if fitting
            else "not even its other stages fit: raise the budget, or lower clip.clips_per_video"
        )
        require_fit(found, may_spend_usd, change=change)
    return found
