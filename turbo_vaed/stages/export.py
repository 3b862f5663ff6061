"""Stage `export`: the student as packages for phones."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.errors import CorruptFile, Fault, TurboVaedError, UserError
from turbo_vaed.export import ExportJob, Package, Target, export_package, spread_out
from turbo_vaed.gate.parity import Parity, verify, write_parities
from turbo_vaed.gate.test_split import TestSplit, load_student, training_latents
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from turbo_vaed.models import DecoderConfig

PACKAGES = "packages"
LEFT_OUT = "left_out.json"
"""Of the packages that were refused: a mapping of each one's name to the reason."""

log = logging.getLogger(__name__)


def run(workspace: Workspace) -> dict[str, object]:
    """Write export/packages/RUNTIME-PRECISION/ for every target: with a program for latents of one
    clip, and one for each further shape of params.yaml.

    Each program is run and compared with PyTorch: parity.json. A package of which one is refused
    there, or crashes, is left out, and left_out.json says why: the others are judged all the same.

    Raises:
        UserError: a target is not known, its exporter is not installed, or a shape is none of
            this student's.
        CorruptFile: the latents or the student are missing or damaged.
        Fault: of no target the student became a program that puts out what PyTorch does.
    """
    params, targets = workspace.params.export, wanted(workspace)
    decoder, split = load_student(workspace), TestSplit.open(workspace)
    tests = split.latents(spread_out(split.indices, params.verify_clips))
    training = training_latents(workspace, params.calibration_clips)
    shapes = [split.latent_shape, *further_shapes(workspace, decoder.config)]
    figures: dict[str, object] = {"latent_shape": list(split.latent_shape)}
    parities: dict[str, Parity] = {}
    left_out: dict[str, str] = {}
    with workspace.writing("export") as folder:
        for target in targets:
            least_parity_db = getattr(params.min_parity_db, target.precision)
            place = folder / PACKAGES / target.folder_name
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    jobs = [
                        ExportJob(
                            decoder=decoder,
                            latent_shape=shape,
                            precision=target.precision,
                            folder=Path(scratch) / str(i),
                            calibration=as_tensors(fitted(training, shape)),
                            least_parity_db=least_parity_db,
                        )
                        for i, shape in enumerate(shapes)
                    ]
                    package = _exported(target, place, jobs)
                found = {
                    program.shape: verify(
                        package.shaped(program.shape),
                        decoder,
                        fitted(tests, shape),
                        limit_db=least_parity_db,
                    )
                    for program, shape in zip(package.programs, shapes, strict=True)
                }
            except CorruptFile:  # of what all packages are made of
                raise
            except Fault as error:
                log.warning("%s is left out: %s", target, error)
                shutil.rmtree(place, ignore_errors=True)
                left_out[place.name] = figures[f"{target} left out"] = str(error)
                continue
            for i, (shape, parity) in enumerate(found.items()):
                suffix = f"-{shape}" if i else ""
                parities[f"{target.folder_name}{suffix}"] = parity
                figures[f"{target}{suffix} dB from PyTorch"] = round(parity.parity_psnr_db, 1)
                size = package.shaped(shape).program_bytes
                figures[f"{target}{suffix} MB"] = round(size / 1e6, 3)
            figures[f"{target} sha256"] = package.sha256
        if not parities:
            raise Fault("no package is left: " + "; ".join(left_out.values()))
        write_parities(parities, folder)
        (folder / LEFT_OUT).write_text(json.dumps(left_out, indent=1) + "\n", encoding="utf-8")
    return figures


def _exported(target: Target, place: Path, jobs: list[ExportJob]) -> Package:
    """The package of one target.

    Raises:
        UserError: the exporter is not installed.
        Fault: the student did not become a program.
    """
    try:
        return export_package(target, place, *jobs)
    except TurboVaedError:
        raise
    except Exception as error:  # of any kind: converters of five libraries
        raise Fault(f"{target}: the student could not be exported: {error}") from error


def fitted(latents: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Latents (N, C, t, h, w) repeated and cut to the last three of `shape`, (1, C, t, h, w): for a
    program of another shape than the clips', whose seams are as much a test as any latents."""
    import numpy as np

    times = [-(-want // have) for want, have in zip(shape[2:], latents.shape[2:], strict=True)]
    t, h, w = shape[2:]
    return np.ascontiguousarray(np.tile(latents, (1, 1, *times))[:, :, :t, :h, :w])


def as_tensors(latents: NDArray[np.float32]) -> list[Tensor]:
    """Each clip as a batch of its own."""
    import torch

    return [torch.from_numpy(latents[row : row + 1]) for row in range(len(latents))]


def wanted(workspace: Workspace) -> tuple[Target, ...]:
    """The targets that params.yaml names.

    Raises:
        UserError: one is not known.
    """
    try:
        return tuple(Target.parse(name) for name in workspace.params.export.targets)
    except ValueError as error:
        raise UserError(f"params.yaml: export.targets: {error}") from None


def further_shapes(
    workspace: Workspace, config: DecoderConfig
) -> list[tuple[int, int, int, int, int]]:
    """Latent shapes of `export.shapes` and of the gate's device, but for the clips' own.

    Raises:
        UserError: the student decodes no latents to such a video.
    """
    params, found = workspace.params, []
    size = params.clip.size
    asked = [("export.shapes", shape) for shape in params.export.shapes]
    if params.device.shape is not None:
        asked.append((f"devices.{params.device.name}.shape", params.device.shape))
    done = {(params.clip.frames, size, size)}
    for where, shape in asked:
        if shape in done:
            continue
        done.add(shape)
        try:
            found.append(config.latent_shape(*shape))
        except ValueError as error:
            raise UserError(f"params.yaml: {where}: {list(shape)}: {error}") from None
    return found


def package_folder(workspace: Workspace, target: Target) -> Path:
    """Where the stage leaves the package of a target."""
    return workspace.folder("export") / PACKAGES / target.folder_name


def left_out(workspace: Workspace) -> dict[str, str]:
    """Why packages were refused, by their names.

    Raises:
        CorruptFile: the stage did not say.
    """
    path = workspace.folder("export") / LEFT_OUT
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path}: {error}; run the export stage again") from None
    return found
