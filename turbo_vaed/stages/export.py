"""Stage `export`: the student as packages for phones."""

from __future__ import annotations

import tempfile
from pathlib import Path

from turbo_vaed.errors import Fault, UserError
from turbo_vaed.export import ExportError, Job, Target, export_package
from turbo_vaed.poc import Poc
from turbo_vaed.stages._held_out import HeldOut, load_student

PACKAGES = "packages"


def run(poc: Poc) -> dict[str, object]:
    """Write export/packages/RUNTIME-PRECISION/ for every target, for latents of one clip.

    Raises:
        UserError: a target is not known.
        CorruptFile: the latents or the student are missing or damaged.
        Fault: the student did not become a program, or does not fit the latents.
    """
    targets = wanted(poc)
    decoder = load_student(poc)
    shape = HeldOut.open(poc).latent_shape
    figures: dict[str, object] = {"latent_shape": list(shape)}
    with poc.writing("export") as folder:
        for target in targets:
            with tempfile.TemporaryDirectory() as scratch:
                job = Job(
                    decoder=decoder,
                    latent_shape=shape,
                    precision=target.precision,
                    folder=Path(scratch),
                )
                try:
                    package = export_package(target, folder / PACKAGES / target.folder_name, job)
                except (ExportError, ValueError) as error:
                    raise Fault(f"the student could not be exported: {error}") from error
            figures[f"{target} MB"] = round(package.size_bytes / 1e6, 3)
            figures[f"{target} sha256"] = package.sha256
    return figures


def wanted(poc: Poc) -> tuple[Target, ...]:
    """The targets that params.yaml names.

    Raises:
        UserError: one is not known.
    """
    try:
        return tuple(Target.parse(name) for name in poc.params.export.targets)
    except ValueError as error:
        raise UserError(f"params.yaml: export.targets: {error}") from None


def package_folder(poc: Poc, target: Target) -> Path:
    """Where the stage leaves the package of a target."""
    return poc.folder("export") / PACKAGES / target.folder_name
