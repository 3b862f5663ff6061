"""Stage `export`: the student as packages for phones."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.export import ExportError, Job, Package, Target, export_package, spread_out
from turbo_vaed.poc import Poc
from turbo_vaed.stages._held_out import HeldOut, load_student, training_latents
from turbo_vaed.stages._verify import Parity, verify, write_parities

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from turbo_vaed.models import DecoderConfig

PACKAGES = "packages"
LEFT_OUT = "left_out.json"
"""Of the packages that were refused: a mapping of each one's name to the reason."""

log = logging.getLogger(__name__)


def run(poc: Poc) -> dict[str, object]:
    """Write export/packages/RUNTIME-PRECISION/ for every target, for latents of one clip.

    And RUNTIME-PRECISION-TxHxW/ for every further shape of params.yaml. Each is run and compared
    with PyTorch: parity.json. A package that is refused there, or crashes, is left out, and
    left_out.json says why: the others are judged all the same.

    Raises:
        UserError: a target is not known, its exporter is not installed, or a shape is none of
            this student's.
        CorruptFile: the latents or the student are missing or damaged.
        Fault: of no target the student became a program that puts out what PyTorch does.
    """
    params, targets = poc.params.export, wanted(poc)
    decoder, split = load_student(poc), HeldOut.open(poc)
    tests = split.latents(spread_out(split.indices, params.verify_clips))
    training = training_latents(poc, params.calibration_clips)
    shapes = {"": split.latent_shape, **further_shapes(poc, decoder.config)}
    figures: dict[str, object] = {"latent_shape": list(split.latent_shape)}
    parities: dict[str, Parity] = {}
    left_out: dict[str, str] = {}
    with poc.writing("export") as folder:
        for target, (suffix, latent_shape) in product(targets, shapes.items()):
            least_parity_db = getattr(params.min_parity_db, target.precision)
            place = folder / PACKAGES / f"{target.folder_name}{suffix}"
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    job = Job(
                        decoder=decoder,
                        latent_shape=latent_shape,
                        precision=target.precision,
                        folder=Path(scratch),
                        calibration=as_tensors(fitted(training, latent_shape)),
                        least_parity_db=least_parity_db,
                    )
                    package = _exported(target, place, job)
                parity = verify(
                    package, decoder, fitted(tests, latent_shape), limit_db=least_parity_db
                )
            except CorruptFile:  # of what all packages are made of
                raise
            except Fault as error:
                log.warning("%s%s is left out: %s", target, suffix, error)
                shutil.rmtree(place, ignore_errors=True)
                left_out[place.name] = figures[f"{target}{suffix} left out"] = str(error)
                continue
            parities[package.folder.name] = parity
            figures[f"{target}{suffix} dB from PyTorch"] = round(parity.parity_psnr_db, 1)
            figures[f"{target}{suffix} MB"] = round(package.size_bytes / 1e6, 3)
            figures[f"{target}{suffix} sha256"] = package.sha256
        if not parities:
            raise Fault("no package is left: " + "; ".join(left_out.values()))
        write_parities(parities, folder)
        (folder / LEFT_OUT).write_text(json.dumps(left_out, indent=1) + "\n", encoding="utf-8")
    return figures


def _exported(target: Target, place: Path, job: Job) -> Package:
    """The package of one target.

    Raises:
        UserError: the exporter is not installed.
        Fault: the student did not become a program.
    """
    try:
        return export_package(target, place, job)
    except UserError:  # a ValueError too, and nothing is wrong with the student
        raise
    except (ExportError, ValueError) as error:
        raise Fault(f"{target}: the student could not be exported: {error}") from error


def fitted(
    latents: NDArray[np.float32], shape: tuple[int, int, int, int, int]
) -> NDArray[np.float32]:
    """Latents (N, C, t, h, w) repeated and cut to (N, C, *shape[2:]): for a program of another
    shape than the clips', whose seams are as much a test as any other latents."""
    import numpy as np

    times = [-(-want // have) for want, have in zip(shape[2:], latents.shape[2:], strict=True)]
    t, h, w = shape[2:]
    return np.ascontiguousarray(np.tile(latents, (1, 1, *times))[:, :, :t, :h, :w])


def as_tensors(latents: NDArray[np.float32]) -> list[Tensor]:
    """Each clip as a batch of its own."""
    import torch

    return [torch.from_numpy(latents[row : row + 1]) for row in range(len(latents))]


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


def left_out(poc: Poc) -> dict[str, str]:
    """Why packages were refused, by their names.

    Raises:
        CorruptFile: the stage did not say.
    """
    path = poc.folder("export") / LEFT_OUT
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path}: {error}; run the export stage again") from None
    return found
