"""`turbo-vaed devices …`: where packages are measured."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbo_vaed.cli.tables import Format, show
from turbo_vaed.errors import Refused, Unreachable, UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from turbo_vaed.config.load import ConfigFiles
    from turbo_vaed.config.schema import GateParams
    from turbo_vaed.costs.run_context import Usage
    from turbo_vaed.devices import Measurement, Plan
    from turbo_vaed.devices.device import Device, ReportProgress
    from turbo_vaed.export import Package

_TIMEOUT_SECONDS = 1800.0
"""Of one measuring process, as in the gate."""

app = typer.Typer(no_args_is_help=True, help="Where packages are measured.")


@app.command("list")
def list_devices(form: Format = "table") -> None:
    """The devices of devices.yaml, and how each is reached.

    For example: turbo-vaed devices list
    """
    files = _files()
    rows = [
        {
            "name": name,
            "kind": profile.get("kind") if isinstance(profile, Mapping) else None,
            "reached": _reached(files, name),
        }
        for name, profile in files.profiles.items()
    ]
    show(rows, form, "devices of devices.yaml")


@app.command("probe")
def probe(name: str, form: Format = "table") -> None:
    """What a device reports about itself, and what is missing; exits with 1 if something is.

    For example: turbo-vaed devices probe host
    """
    facts = _open(_files(), name).probe()
    if form == "json":
        print(json.dumps(asdict(facts)))
    else:
        show([{"fact": k, "found": v} for k, v in asdict(facts).items()], form, name)
    if facts.missing:
        raise Refused("; ".join(facts.missing))


@app.command("bench")
def bench(
    package: Annotated[Path, typer.Argument(help="a package's folder")],
    name: Annotated[str, typer.Option("--device", help="a name in devices.yaml")] = "host",
    latents: Annotated[
        Path | None, typer.Option("--latents", help=".npy of float32 (N, C, t, h, w); else random")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="shape of a program, 9x720x1280  [default: the device's own, else the clips']"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="threads of the program  [default: gate.threads]")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=2, help="most samples per process  [default: gate.max_samples]"),
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(
            help="width of the median's interval to stop at, 0.05 say  [default: gate.max_spread]"
        ),
    ] = None,
    form: Format = "table",
) -> None:
    """Measure a package on a device; exits with 1 if it failed or its times are unreliable.

    It is measured as by the gate; where an option is not given, `gate` of the defaults in
    params.yaml counts.

    For example: turbo-vaed devices bench work/demo/gate/package --device host --threads 2
    """
    from turbo_vaed.config import load
    from turbo_vaed.devices import Failed
    from turbo_vaed.devices.device import measure_on

    files = _files()
    gate = load.team_gate(files)
    plan = _plan(gate, threads=threads, samples=samples, spread=spread)
    opened = _package(package)
    if name in files.profiles:
        load.profile(files, name)  # an invalid one is refused before a package is cut
    opened = _shaped(opened, shape, files.profiles.get(name) or {}, name)
    with (
        tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch,
        _progress_bar(name, opened.target, form) as report_progress,
    ):
        given = latents or _random_latents(opened, Path(scratch) / "latents.npy")
        device = _open(files, name, gate.max_background_cpu_share, report_progress)
        found = measure_on(
            device, opened, given, plan=plan, out_folder=Path(scratch) / "out",
            timeout_seconds=_TIMEOUT_SECONDS,
        )  # fmt: skip
    output = "two random clips" if latents is None else str(latents)
    if form == "json":
        print(json.dumps(found.to_json() | {"target": opened.target, "latents": output}))
    if isinstance(found, Failed):
        raise Refused(f"{opened.target} failed on {name}: {found.reason}")
    if form != "json":
        title = f"{opened.target} on {name}: {found.machine}, {found.runtime}"
        of = [
            {"figure": "program", "found": opened.programs[opened.at].shape},
            {"figure": "latents", "found": output},
        ]
        show([*_figures(found), *of], form, title)
    if found.unreliable_reason:
        raise Refused(found.unreliable_reason)


def _shaped(package: Package, shape: str | None, profile: dict[str, Any], name: str) -> Package:
    """The package as its program of that shape, or of the device's own, or of the clips.

    Raises:
        UserError: it has no program of the shape that is asked for.
    """
    has = [program.shape for program in package.programs]
    own = "x".join(map(str, profile.get("shape") or ()))
    if shape is None and own in has:
        return package.shaped(own)
    if shape is None:
        if own:
            print(f"{package.folder} has no program of {name}'s own shape {own}: {has[0]} is "
                  f"measured. turbo-vaed poc CUSTOMER makes one where gate.device is {name}.",
                  file=sys.stderr)  # fmt: skip
        return package
    wanted = shape.replace(",", "x").replace(" ", "")
    if wanted not in has:
        frames = wanted.replace("x", ", ")
        raise UserError(
            f"{package.folder}: found --shape {shape}, the package has {', '.join(has)}; to get "
            f"another add [{frames}] (frames, height, width) to export.shapes in params.yaml, or "
            f"set devices.{name}.shape to it where gate.device is {name}, and run turbo-vaed poc "
            "CUSTOMER"
        )
    return package.shaped(wanted)


def _figures(found: Measurement) -> list[dict[str, Any]]:
    at, coolest, hottest = found.latency, found.coolest_celsius, found.hottest_celsius
    heat = "—"
    if coolest is not None and hottest is not None:
        slowed = {None: "", True: ", slowed itself down", False: ", did not slow down"}
        heat = f"{coolest:.0f} to {hottest:.0f} °C{slowed[found.throttled]}"
    counts = ", ".join(str(len(seconds)) for seconds in found.seconds_by_process)
    figures = {
        "median": f"{at.median:.4g} s ({at.low:.4g} to {at.high:.4g})",
        "frames per second": f"{found.fps:.1f}",
        "cold start": f"{found.cold_start_seconds:.3g} s",
        "peak memory": f"{found.peak_memory_bytes / 1e6:.0f} MB",
        "heat": heat,
        "energy": "—" if found.energy_joules is None else f"{found.energy_joules:.3g} J a run",
        "background CPU share": "—"
        if found.background_cpu_share is None
        else f"{found.background_cpu_share:.0%}",
        "threads": str(found.threads),
        "samples": f"{counts} in {len(found.seconds_by_process)} of {found.processes} processes",
    }
    return [{"figure": figure, "found": value} for figure, value in figures.items()]


@contextmanager
def _progress_bar(name: str, target: str, form: str) -> Iterator[ReportProgress]:
    """A progress bar of what a device does, with the seconds since it began; yields the callback
    that moves it.

    The seconds go on by themselves: a process of a measurement may take minutes. There is no bar
    where stdout is for a program.
    """
    from turbo_vaed.devices.device import no_report
    from turbo_vaed.runtime.progress import progress

    if form == "json":
        print(f"{name} measures {target}", file=sys.stderr)
        yield no_report
        return
    began, now, is_over = time.monotonic(), (0, ""), threading.Event()
    with progress(f"{name}, %", 100, has_own_estimate=True) as update:

        def draw() -> None:
            update(now[0], f"{now[1]}, {time.monotonic() - began:.0f} s")

        def report_progress(share: float, text: str) -> None:
            nonlocal now
            now = (min(99, round(100 * share)), text)
            draw()

        def tick() -> None:
            while not is_over.wait(1.0):
                draw()

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield report_progress
        finally:
            is_over.set()
            ticking.join()
        now = (100, "done")
        draw()


def _package(folder: Path) -> Package:
    from turbo_vaed.devices.host import open_package

    if not (folder / "package.json").is_file():
        found = "no such folder" if not folder.exists() else "no package.json there"
        raise UserError(
            f"{folder}: {found}; expected a package's folder, for instance work/NAME/gate/package, "
            "or one of work/NAME/export/packages (turbo-vaed poc NAME makes them)"
        )
    return open_package(folder)


def _random_latents(package: Package, path: Path) -> Path:
    """Two clips as the package takes them, the same each time."""
    import numpy as np

    shape = (2, *package.io.latent_shape[1:])
    np.save(path, np.random.default_rng(0).normal(size=shape).astype(np.float32))
    return path


def _files() -> ConfigFiles:
    from turbo_vaed.config import load

    return load.read(Settings.from_environment().root)


def _plan(
    gate: GateParams, *, threads: int | None, samples: int | None, spread: float | None
) -> Plan:
    """The gate's plan, changed by what is not None.

    Raises:
        UserError: an impossible value.
    """
    from turbo_vaed.devices import Plan

    values = {field.name: getattr(gate, field.name) for field in fields(Plan)}
    if threads is not None:
        values["threads"] = threads
    if samples is not None:
        values["max_samples"] = samples
        values["min_samples"] = min(gate.min_samples, samples)
    if spread is not None:
        values["max_spread"] = spread
    try:
        return Plan(**values)
    except ValueError as error:
        raise UserError(f"--threads, --samples, --spread: {error}") from None


def _reached(files: ConfigFiles, name: str) -> str:
    """How a profile's device is reached, or what is wrong with the profile."""
    from turbo_vaed.config import load
    from turbo_vaed.config.devices import AdbProfile, AppleProfile, FarmProfile
    from turbo_vaed.devices.adb import chosen_phone

    try:
        parsed = load.profile(files, name)
        if isinstance(parsed, AdbProfile):
            return chosen_phone(parsed).by
    except UserError as error:
        return str(error)
    if isinstance(parsed, AppleProfile):
        phone = "" if parsed.iphone is None else f", there the iPhone {parsed.iphone}"
        return f"ssh {parsed.host}{phone}"
    return parsed.device if isinstance(parsed, FarmProfile) else "here"


def _open(
    files: ConfigFiles,
    name: str,
    max_background_cpu_share: float = 1.0,
    report_progress: ReportProgress | None = None,
) -> Device:
    """The device of a name in devices.yaml. Raises UserError where there is none."""
    from turbo_vaed.config import load
    from turbo_vaed.devices.device import no_report
    from turbo_vaed.devices.opened import open_device

    if not name:
        raise UserError("name a device of devices.yaml: turbo-vaed devices list")
    return open_device(
        load.profile(files, name),
        Settings.from_environment().root,
        max_background_cpu_share=max_background_cpu_share,
        charge=_charge,
        report_progress=report_progress or no_report,
    )


def _charge(usage: Usage) -> None:
    """Charge what a device costs outside a run to a customer of its own, `devices`."""
    from turbo_vaed.costs import Ledger, outbox
    from turbo_vaed.metering.run_stage import usage_charge
    from turbo_vaed.settings import new_run_id

    settings = Settings.from_environment()
    charge = usage_charge(usage, new_run_id("devices"), "devices", "bench")
    try:
        with Ledger.open(settings.ledger_url) as ledger:
            ledger.add(charge)
    except Unreachable as error:
        path = outbox.store((charge,), settings.outbox_folder)
        print(f"warning: {error}; the charge is stored in {path}", file=sys.stderr)
    print(f"charged: {usage.quantity:g} {usage.unit}s of {usage.resource}", file=sys.stderr)
