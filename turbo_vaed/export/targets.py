"""What a decoder can become: a runtime and a precision, by one name.

`RUNTIMES` is the only list of them; the configuration, the command line and the tests read it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.config.schema import ExportParams
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.export import coreml, executorch_coreml, litert, onnx
from turbo_vaed.export.executorch import PRECISIONS, export_xnnpack
from turbo_vaed.export.export_job import ExportJob
from turbo_vaed.export.package import IoSpec, Package, write_package
from turbo_vaed.export.shapes import LatentShape, fitted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from turbo_vaed.models import TurboVaedDecoder


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs a program, and how a decoder becomes one."""

    name: str
    precisions: tuple[str, ...]
    export: Callable[[ExportJob], Path]
    """Writes the program into the job's folder, in full or not at all. Raises ExportError where
    the decoder did not become what a phone needs."""
    half_io: tuple[str, ...] = ()
    """Precisions whose program takes and gives float16."""
    tools: tuple[str, ...] = field(default=("torch",))
    """Distributions whose versions the package records."""
    other_tools: Callable[[], Mapping[str, str]] = dict
    """Name -> version of those that are installed elsewhere."""
    check: Callable[[], object] = lambda: None
    """Raises UserError where what the exporter needs is not installed."""


def _xnnpack(job: ExportJob) -> Path:
    return export_xnnpack(
        job.decoder,
        latent_shape=job.latent_shape,
        folder=job.folder,
        precision=job.precision,
        calibration=job.calibration,
        least_parity_db=job.least_parity_db,
        latent_mean=job.latent_mean,
        latent_std=job.latent_std,
    )


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="executorch-xnnpack",
            precisions=PRECISIONS,
            export=_xnnpack,
            half_io=("fp16",),
            tools=("torch", "torchao", "executorch"),
        ),
        Runtime(
            name="litert",
            precisions=litert.PRECISIONS,
            export=litert.export_litert,
            tools=("torch", "ai-edge-litert"),
            other_tools=litert.converter_versions,
            check=litert.converter_versions,
        ),
        Runtime(
            name="onnx",
            precisions=onnx.PRECISIONS,
            export=onnx.export_onnx,
            tools=("torch", "onnx", "onnxscript", "onnxruntime"),
        ),
        Runtime(
            name="coreml",
            precisions=coreml.PRECISIONS,
            export=coreml.export_coreml,
            tools=("torch", "coremltools"),
        ),
        Runtime(
            name="executorch-coreml",
            precisions=executorch_coreml.PRECISIONS,
            export=executorch_coreml.export_executorch_coreml,
            tools=("torch", "torchao", "executorch", "coremltools"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime and a precision: `executorch-xnnpack/fp32`."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime}/{self.precision}"

    @property
    def folder_name(self) -> str:
        """Of its package among others: `executorch-xnnpack-fp32`."""
        return f"{self.runtime}-{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target with this name.

        Raises:
            ValueError: there is none; it says which there are.
        """
        name, _, precision = text.partition("/")
        if name not in RUNTIMES or precision not in RUNTIMES[name].precisions:
            raise ValueError(f"target: found {text!r}, allowed: {', '.join(all_targets())}")
        return cls(runtime=name, precision=precision)


def all_targets() -> tuple[str, ...]:
    """The names of all targets."""
    return tuple(f"{r.name}/{precision}" for r in RUNTIMES.values() for precision in r.precisions)


def targets_of(params: ExportParams) -> tuple[Target, ...]:
    """The targets of `export.targets`.

    Raises:
        UserError: one is not known.
    """
    try:
        return tuple(Target.parse(name) for name in params.targets)
    except ValueError as error:
        raise UserError(f"export.targets: {error}") from None


def export_student(
    target: Target,
    folder: Path,
    decoder: TurboVaedDecoder,
    shapes: Sequence[LatentShape],
    training: NDArray[np.float32],
    *,
    least_parity_db: float,
) -> Package:
    """The student as a package `folder`, with a program for latents of each shape.

    Args:
        shapes: the clips' own first.
        training: latents (N, C, t, h, w) of training clips, for the calibration of int8.
        least_parity_db: against PyTorch, required of int8.

    Raises:
        UserError: the exporter is not installed.
        Fault: the student did not become a program.
    """
    from torch import from_numpy

    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        jobs = []
        for i, shape in enumerate(shapes):
            clips = fitted(training, shape)
            job = ExportJob(
                decoder=decoder,
                latent_shape=shape,
                precision=target.precision,
                folder=Path(scratch) / str(i),
                calibration=[from_numpy(clips[row : row + 1]) for row in range(len(clips))],
                least_parity_db=least_parity_db,
            )
            jobs.append(job)
        try:
            return export_package(target, folder, *jobs)
        except TurboVaedError:
            raise
        except Exception as error:  # of any kind: converters of five libraries
            raise Fault(f"{target}: the student could not be exported: {error}") from error


def export_package(target: Target, folder: Path, job: ExportJob, *further: ExportJob) -> Package:
    """Export a decoder and write its package `folder`: one program for each job, which differ in
    shape, folder and calibration alone.

    Raises:
        UserError: what the exporter needs is not installed.
        ValueError: a shape or the latent scaling does not fit the decoder.
        ExportError: it did not become the program that a phone needs.
    """
    runtime = RUNTIMES[target.runtime]
    runtime.check()
    made = [(runtime.export(one), _io_of(one, target)) for one in (job, *further)]
    return write_package(
        folder,
        *made[0],
        further=made[1:],
        target=str(target),
        tools=runtime.tools,
        other_tools=runtime.other_tools(),
    )


def _io_of(job: ExportJob, target: Target) -> IoSpec:
    io = IoSpec.of(
        job.decoder.config,
        job.latent_shape,
        latent_mean=job.latent_mean,
        latent_std=job.latent_std,
    )
    if target.precision in RUNTIMES[target.runtime].half_io:
        io = replace(io, latent_dtype="float16", video_dtype="float16")
    return io
