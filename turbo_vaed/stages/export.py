"""Stage `export`: the student as a package for a phone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from turbo_vaed.errors import Fault
from turbo_vaed.export import ExportError, IoSpec, export_xnnpack, write_package
from turbo_vaed.poc import Poc
from turbo_vaed.stages._held_out import HeldOut, load_student


def run(poc: Poc) -> dict[str, object]:
    """Write export/package/: an ExecuTorch program for latents of one clip, and its description.

    Raises:
        CorruptFile: the latents or the student are missing or damaged.
        Fault: the student did not become a program, or does not fit the latents.
    """
    decoder = load_student(poc)
    shape = HeldOut.open(poc).latent_shape
    with poc.writing("export") as folder, tempfile.TemporaryDirectory() as scratch:
        try:
            program = export_xnnpack(decoder, latent_shape=shape, folder=Path(scratch))
            package = write_package(folder / "package", program, IoSpec.of(decoder.config, shape))
        except (ExportError, ValueError) as error:
            raise Fault(f"the student could not be exported: {error}") from error
    return {
        "target": poc.params.export.target,
        "precision": poc.params.export.precision,
        "latent_shape": list(shape),
        "package_mb": round(package.size_bytes / 1e6, 3),
        "package_sha256": package.sha256,
    }
