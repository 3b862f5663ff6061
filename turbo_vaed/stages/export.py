"""Stage `export`: the student as packages for phones."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.errors import Fault, UserError
from turbo_vaed.export import ExportError, Job, Target, export_package
from turbo_vaed.poc import Poc
from turbo_vaed.stages._held_out import HeldOut, load_student

if TYPE_CHECKING:
    from turbo_vaed.models import DecoderConfig

PACKAGES = "packages"


def run(poc: Poc) -> dict[str, object]:
    """Write export/packages/RUNTIME-PRECISION/ for every target, for latents of one clip.

    And RUNTIME-PRECISION-TxHxW/ for every further shape of params.yaml.

    Raises:
        UserError: a target is not known, its exporter is not installed, or a shape is none of
            this student's.
        CorruptFile: the latents or the student are missing or damaged.
        Fault: the student did not become a program, or does not fit the latents.
    """
    targets = wanted(poc)
    decoder = load_student(poc)
    shape = HeldOut.open(poc).latent_shape
    shapes = {"": shape, **further_shapes(poc, decoder.config)}
    figures: dict[str, object] = {"latent_shape": list(shape)}
    with poc.writing("export") as folder:
        for target, (suffix, latent_shape) in product(targets, shapes.items()):
            with tempfile.TemporaryDirectory() as scratch:
                job = Job(
                    decoder=decoder,
                    latent_shape=latent_shape,
                    precision=target.precision,
                    folder=Path(scratch),
                )
                place = folder / PACKAGES / f"{target.folder_name}{suffix}"
                try:
                    package = export_package(target, place, job)
                except UserError:  # a ValueError too, and nothing is wrong with the student
                    raise
                except (ExportError, ValueError) as error:
                    raise Fault(f"the student could not be exported: {error}") from error
            figures[f"{target}{suffix} MB"] = round(package.size_bytes / 1e6, 3)
            figures[f"{target}{suffix} sha256"] = package.sha256
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


def further_shapes(poc: Poc, config: DecoderConfig) -> dict[str, tuple[int, int, int, int, int]]:
    """Latent shapes of `export.shapes`, by the suffix of their packages: `-17x256x256`.

    Raises:
        UserError: the student decodes no latents to such a video.
    """
    shapes = {}
    for frames, height, width in poc.params.export.shapes:
        try:
            latents = config.latent_shape(frames, height, width)
        except ValueError as error:
            raise UserError(
                f"params.yaml: export.shapes: [{frames}, {height}, {width}]: {error}"
            ) from None
        shapes[f"-{frames}x{height}x{width}"] = latents
    return shapes


def package_folder(poc: Poc, target: Target) -> Path:
    """Where the stage leaves the package of a target."""
    return poc.folder("export") / PACKAGES / target.folder_name
