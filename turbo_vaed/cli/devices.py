"""`turbo-vaed devices …`: where packages are measured."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turbo_vaed.cli.tables import Format, show
from turbo_vaed.errors import Refused, UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from turbo_vaed.devices.device import Device
    from turbo_vaed.tracker import Used

app = typer.Typer(no_args_is_help=True, help="Where packages are measured.")


@app.command("list")
def list_devices(form: Format = "table") -> None:
    """The devices of params.yaml. For example: turbo-vaed devices list"""
    from turbo_vaed import params

    found = params.read_yaml(Settings.from_environment().root / "params.yaml").get("devices") or {}
    rows = [{"name": name, "kind": profile.get("kind")} for name, profile in found.items()]
    show(rows, form, "devices of params.yaml")


@app.command("probe")
def probe(name: str, form: Format = "table") -> None:
    """What a device tells of itself, and what is missing; 1 where something is.

    For example: turbo-vaed devices probe host
    """
    facts = _open(name).probe()
    if form == "json":
        print(json.dumps(asdict(facts)))
    else:
        show([{"fact": k, "found": v} for k, v in asdict(facts).items()], form, name)
    if facts.missing:
        raise Refused("; ".join(facts.missing))


@app.command("bench")
def bench(
    package: Annotated[Path, typer.Argument(help="a package's folder")],
    name: Annotated[str, typer.Option("--device", help="a name in params.yaml")] = "host",
    latents: Annotated[
        Path | None, typer.Option("--latents", help=".npy of float32 (N, C, t, h, w); else random")
    ] = None,
    form: Format = "table",
) -> None:
    """Measure a package on a device; 1 where it failed or its times cannot be trusted.

    For example: turbo-vaed devices bench work/demo/gate/package --device host
    """
    import numpy as np

    from turbo_vaed.devices import Failed, Plan
    from turbo_vaed.devices.device import measure_on
    from turbo_vaed.devices.host import open_package

    device, opened = _open(name), open_package(package)
    plan = Plan(
        threads=1, max_warmup=10, min_samples=10, max_samples=30, max_spread=0.1, confidence=0.95
    )
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        given = latents or Path(scratch) / "latents.npy"
        if latents is None:
            shape = (2, *opened.io.latent_shape[1:])
            np.save(given, np.random.default_rng(0).normal(size=shape).astype(np.float32))
        print(f"{name} measures {opened.target}, at most {plan.max_samples} runs per process",
              file=sys.stderr)  # fmt: skip
        found = measure_on(
            device, opened, given, plan=plan, out_folder=Path(scratch) / "out", timeout_seconds=1800
        )
    if isinstance(found, Failed):
        raise Refused(found.reason)
    said = "two random clips" if latents is None else str(latents)
    if form == "json":
        print(json.dumps(found.to_json() | {"latents": said}))
    else:
        at = found.latency
        rows = [
            {"figure": "median", "found": f"{at.median:.4g} s ({at.low:.4g} to {at.high:.4g})"},
            {"figure": "cold start", "found": f"{found.cold_start_seconds:.3g} s"},
            {"figure": "peak memory", "found": f"{found.peak_memory_bytes / 1e6:.0f} MB"},
            {"figure": "frames per second", "found": f"{found.fps:.1f}"},
            {"figure": "temperature", "found": _celsius(found.temperature_celsius)},
            {"figure": "latents", "found": said},
        ]
        show(rows, form, f"{opened.target} on {name}: {found.machine}, {found.runtime}")
    if found.distrust:
        raise Refused(found.distrust)


def _celsius(found: float | None) -> str:
    return "—" if found is None else f"{found:.0f} °C"


def _open(name: str) -> Device:
    from turbo_vaed import params
    from turbo_vaed.device_params import parse_profile
    from turbo_vaed.devices.opened import open_device

    root = Settings.from_environment().root
    document = params.read_yaml(root / "params.yaml")
    if not name:
        raise UserError("name a device of params.yaml: turbo-vaed devices list")
    return open_device(
        parse_profile(params.device_of(document, name, "devices")), root, charge=_charge
    )


def _charge(used: Used) -> None:
    """What a device costs without a run, in the ledger under a customer of its own."""
    from turbo_vaed.costs import Ledger
    from turbo_vaed.settings import new_run_id
    from turbo_vaed.stages.running import charge_of

    with Ledger.open(Settings.from_environment().ledger_url) as ledger:
        ledger.add(charge_of(used, new_run_id("devices"), "devices", "bench"))
    print(f"charged: {used.quantity:g} {used.unit}s of {used.resource}", file=sys.stderr)
