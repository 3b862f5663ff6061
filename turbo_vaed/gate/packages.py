"""The packages that `export` left, and which of them run on the gate's device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from turbo_vaed.devices.device import Device
from turbo_vaed.devices.opened import open_device
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.export import Package, Target, load_package
from turbo_vaed.export.targets import targets_of
from turbo_vaed.runtime.files import read_json, write_json
from turbo_vaed.workspace import Workspace

PACKAGES = "packages"
LEFT_OUT = "left_out.json"
"""A mapping of the name of each package that was refused to the reason."""


def package_folder(workspace: Workspace, target: Target) -> Path:
    """Where the stage `export` leaves the package of a target."""
    return workspace.folder("export") / PACKAGES / target.folder_name


def write_left_out(left_out: Mapping[str, str], folder: Path) -> None:
    """Write `folder/left_out.json`: why packages were refused, by their names."""
    write_json(folder / LEFT_OUT, dict(left_out))


def read_left_out(workspace: Workspace) -> dict[str, str]:
    """Why packages were refused, by their names.

    Raises:
        CorruptFile: the file is missing or damaged.
    """
    path, remedy = workspace.folder("export") / LEFT_OUT, "run the export stage again"
    try:
        return read_json(path, remedy=remedy)
    except FileNotFoundError as error:
        raise CorruptFile(f"{error}; {remedy}") from None


def gate_device(workspace: Workspace) -> Device:
    """The device of `gate.device`."""
    return open_device(
        workspace.params.device,
        workspace.root,
        max_background_cpu_share=workspace.params.gate.max_background_cpu_share,
        charge=workspace.run_context.charge,
        tags=workspace.run_context.tags,
    )


def check_device(workspace: Workspace) -> None:
    """Refuse, before anything is computed, targets of which none runs on the gate's device.

    Raises:
        UserError: it names the device, its runtimes and the targets.
    """
    device, targets = gate_device(workspace), targets_of(workspace.params.export)
    if not any(target.runtime in device.runtimes for target in targets):
        raise UserError(
            f"export.targets: found {', '.join(map(str, targets))}, none of which runs on "
            f"{device.name} (gate.device); expected one for {' or '.join(device.runtimes)}: add "
            "it, or name another device"
        )


def packages_for(
    workspace: Workspace, device: Device
) -> tuple[dict[Target, Package], dict[str, str]]:
    """The packages that run on the device; and by target why each other one is not measured.

    Raises:
        CorruptFile: a package is missing or damaged.
        UserError: none of them runs there.
    """
    packages, not_measured = {}, {}
    left_out = read_left_out(workspace)
    for target in targets_of(workspace.params.export):
        folder = package_folder(workspace, target)
        if reason := left_out.get(folder.name):
            not_measured[str(target)] = reason
            continue
        try:
            package = load_package(folder)
        except (FileNotFoundError, ValueError) as error:
            raise CorruptFile(f"{error}; run the export stage again") from error
        if target.runtime in device.runtimes:
            packages[target] = package
        else:
            not_measured[str(target)] = f"its runtime does not run on {device.name}"
    if not packages:
        raise UserError(
            f"none of export.targets runs on {device.name}; add one that does, "
            "executorch-xnnpack/fp32 say: "
            + "; ".join(f"{name}: {reason}" for name, reason in not_measured.items())
        )
    return packages, not_measured
