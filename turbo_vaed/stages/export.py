"""Stage `export`: the student as packages for phones, each compared with PyTorch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping

from turbo_vaed.errors import CorruptFile, Fault
from turbo_vaed.export import Package, Target, spread_out
from turbo_vaed.export.shapes import further_shapes
from turbo_vaed.export.targets import export_student, targets_of
from turbo_vaed.gate.packages import PACKAGES, write_left_out
from turbo_vaed.gate.parity import Parity, verify_programs, write_parities
from turbo_vaed.gate.test_split import TestSplit, load_student, training_latents
from turbo_vaed.workspace import Workspace

log = logging.getLogger(__name__)


STAGE_VERSION = 1
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Write export/packages/RUNTIME-PRECISION/ for every target: with a program for latents of one
    clip, and one for each further shape of `export.shapes` and of the gate's device.

    Each program is run and compared with PyTorch: parity.json. A package of which one program
    crashes or computes something else is left out, and left_out.json has the reason; the other
    packages are judged all the same.

    Raises:
        UserError: a target is not known, its exporter is not installed, or a shape is none of
            this student's.
        CorruptFile: the latents or the student are missing or damaged.
        Fault: no target's package puts out what PyTorch does.
    """
    params, targets = workspace.params.export, targets_of(workspace.params.export)
    decoder, split = load_student(workspace), TestSplit.open(workspace)
    tests = split.latents(spread_out(split.indices, params.verify_clips))
    training = training_latents(workspace, params.calibration_clips)
    shapes = [split.latent_shape, *further_shapes(workspace.params, decoder.config)]
    figures: dict[str, object] = {"latent_shape": list(split.latent_shape)}
    parities: dict[str, Parity] = {}
    left_out: dict[str, str] = {}
    with workspace.writing("export") as folder:
        for target in targets:
            place = folder / PACKAGES / target.folder_name
            limit_db = getattr(params.min_parity_db, target.precision)
            try:
                package = export_student(
                    target, place, decoder, shapes, training, least_parity_db=limit_db
                )
                found = verify_programs(package, decoder, tests, limit_db=limit_db)
            except CorruptFile:  # an input of all packages is damaged
                raise
            except Fault as error:
                log.warning("%s is left out: %s", target, error)
                shutil.rmtree(place, ignore_errors=True)
                left_out[place.name] = figures[f"{target} left out"] = str(error)
                continue
            parities |= {target.folder_name + suffix: one for suffix, one in found.items()}
            figures |= _figures(target, package, found)
        if not parities:
            raise Fault("no package is left: " + "; ".join(left_out.values()))
        write_parities(parities, folder)
        write_left_out(left_out, folder)
    return figures


def _figures(target: Target, package: Package, found: Mapping[str, Parity]) -> dict[str, object]:
    """What is logged of a package."""
    figures: dict[str, object] = {}
    for program, (suffix, parity) in zip(package.programs, found.items(), strict=True):
        figures[f"{target}{suffix} dB from PyTorch"] = round(parity.parity_psnr_db, 1)
        size_bytes = package.shaped(program.shape).program_bytes
        figures[f"{target}{suffix} MB"] = round(size_bytes / 1e6, 3)
    return figures | {f"{target} sha256": package.sha256}
