"""Every package is run on test latents and compared with PyTorch: a conversion without an error
may still compute something else.

Shapes: N clips, C channels, t latent frames, h w latent; T H W video.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.devices.host import decode, read_decoded
from turbo_vaed.errors import Fault
from turbo_vaed.export import Package
from turbo_vaed.export.shapes import fitted
from turbo_vaed.metrics import psnr_from_mse
from turbo_vaed.runtime.files import write_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from turbo_vaed.models import TurboVaedDecoder

PARITY_NAME = "parity.json"
TIMEOUT_SECONDS = 1800.0
INTERPRETED = ("coreml", "executorch-coreml")
"""Runtimes of which there is none for Linux: their programs are executed by `export/mil.py`."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How close a package's output is to PyTorch's, in float32."""

    parity_psnr_db: float
    """Over pixels of range 1, neither clamped, of the clip where they differ most."""
    limit_db: float
    clips: int
    how: str
    """What ran it: `runtime`, its own, in a process of its own; `mil-interpreter`, ours."""


def verify_programs(
    package: Package,
    decoder: TurboVaedDecoder,
    latents: NDArray[np.float32],
    *,
    limit_db: float,
) -> dict[str, Parity]:
    """Verify every program of a package; by the suffix of its name: "", "-9x720x1280".

    Args:
        latents: (N, C, t, h, w) of clips; for a program of another shape they are repeated.

    Raises: as `verify`.
    """
    return {
        f"-{program.shape}" if i else "": verify(
            package.shaped(program.shape),
            decoder,
            fitted(latents, program.io.latent_shape),
            limit_db=limit_db,
        )
        for i, program in enumerate(package.programs)
    }


def verify(
    package: Package,
    decoder: TurboVaedDecoder,
    latents: NDArray[np.float32],
    *,
    limit_db: float,
) -> Parity:
    """Run a package on latents (N, C, t, h, w) and compare it with the decoder.

    Raises:
        Fault: its video is further from PyTorch's than `limit_db`, not finite, or of another
            shape; or it crashed.
    """
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        decoded, how = _decoded(package, latents, Path(scratch))
        worst = float("inf")
        for row in range(len(latents)):
            one = slice(row, row + 1)
            with torch.inference_mode():
                expected = decoder(torch.from_numpy(latents[one]))
            video = torch.from_numpy(np.array(decoded[one]))
            if not bool(video.isfinite().all()):
                raise Fault(f"{package.target}: its output for clip {row} is not finite")
            worst = min(worst, parity_psnr(video, expected))
    parity = Parity(parity_psnr_db=worst, limit_db=limit_db, clips=len(latents), how=how)
    if worst < limit_db:
        raise Fault(
            f"{package.target}: PSNR of the package against PyTorch: required >= {limit_db:g} dB "
            f"(export.min_parity_db), measured {worst:.1f} dB: the conversion "
            "is wrong, or this precision is too coarse for this student; try another precision, or "
            "check the exporter"
        )
    return parity


def _decoded(
    package: Package, latents: NDArray[np.float32], scratch: Path
) -> tuple[NDArray[np.float32], str]:
    """What the package makes of the latents, and how it was run."""
    import numpy as np

    if package.runtime in INTERPRETED:
        from turbo_vaed.export.executorch_coreml import unpacked
        from turbo_vaed.export.mil import open_mlpackage

        path = package.program_path
        with nullcontext(path) if package.runtime == "coreml" else unpacked(path) as mlpackage:
            program = open_mlpackage(mlpackage)
            videos = [program(latents[row : row + 1]) for row in range(len(latents))]
        return np.concatenate(videos), "mil-interpreter"
    stored = scratch / "latents.npy"
    np.save(stored, latents)
    decode(package, stored, out_folder=scratch, timeout_seconds=TIMEOUT_SECONDS)
    return read_decoded(scratch), "runtime"


def parity_psnr(video: torch.Tensor, expected: torch.Tensor) -> float:
    """dB between two float videos in [-1, 1], over pixels of range 1, neither clamped."""
    return float(psnr_from_mse(((video.double() - expected.double()) / 2).square().mean()))


def write_parities(parities: Mapping[str, Parity], folder: Path) -> None:
    """Write `folder/parity.json`: a mapping of each package's name to its `Parity`."""
    document = {name: asdict(parity) for name, parity in parities.items()}
    write_json(folder / PARITY_NAME, document)
