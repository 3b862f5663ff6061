"""One stage, run and metered: what `turbo-vaed stage NAME CUSTOMER` does."""

from __future__ import annotations

import dataclasses
import importlib
import json

from turbo_vaed.costs import Ledger, Meter
from turbo_vaed.errors import UserError
from turbo_vaed.poc import STAGES, Poc
from turbo_vaed.settings import Settings, new_run_id
from turbo_vaed.stages.prices import price_of
from turbo_vaed.stages.telemetry import LiveRun
from turbo_vaed.tracker import Tracker

FIGURES = "figures.json"
"""Headline figures of a stage, in its output folder."""


def run_metered(settings: Settings, name: str, customer: str) -> None:
    """Run a stage of a customer and charge its seconds to the run.

    Raises:
        UserError: no such stage or customer, invalid params.
        TurboVaedError: whatever the stage ends in.
    """
    if name == "params":
        importlib.import_module("turbo_vaed.stages.params").run(Poc.load(settings.root, customer))
        return
    if name not in STAGES:
        raise UserError(f"unknown stage {name!r}; allowed: params, {', '.join(STAGES)}")
    run = settings.run_id or new_run_id(customer)
    with Ledger.open(settings.ledger_url) as ledger:
        poc = Poc.load(settings.root, customer)
        price = price_of(poc.params, settings, name)
        meter = Meter(
            ledger,
            run=run,
            customer=customer,
            stage=name,
            resource="node",
            usd_per_hour=price.usd_per_hour,
            price_source=price.source,
        )
        live = LiveRun(settings.mlflow_tracking_uri, customer=customer, run_id=run, kind=name)
        tracker = Tracker(
            spent_usd=lambda: ledger.total(run=run) + meter.unwritten_usd(),
            mark_wasted=meter.mark_wasted,
            keep=meter.keep,
            log_metrics=live.log_metrics,
            log_picture=live.log_picture,
        )
        with live, meter:
            poc = dataclasses.replace(poc, tracker=tracker)
            figures = importlib.import_module(f"turbo_vaed.stages.{name}").run(poc)
    text = json.dumps(figures, indent=1, default=str)
    (poc.folder(name) / FIGURES).write_text(text + "\n")
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
