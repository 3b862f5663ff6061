"""Decoders at a size that lowers in seconds, and packages of them that take scaled latents."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from turbo_vaed.export import ExportJob, Package, Target, export_package
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 8, 2, 4, 6)
MEAN, STD = [0.1 * i for i in range(8)], [1 + 0.2 * i for i in range(8)]


def small_decoder(widths: tuple[int, int] = (8, 12)) -> TurboVaedDecoder:
    """With every kind of layer, of 8 latent channels, the same weights at each call."""
    torch.manual_seed(0)
    config = DecoderConfig(
        latent_channels=8,
        decoder_block_out_channels=widths,
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_only=(False, False),
        decoder_is_dw_conv=(False, False, True),
        decoder_dw_kernel_size=5,
        patch_size=2,
    )
    return TurboVaedDecoder(config).eval()


def short_decoder(width: int = 64) -> TurboVaedDecoder:
    """With as few layers as there are kinds of convolution. 64 channels are wide enough that
    weights are most of a program's bytes, that Winograd's form is made and that int8 is worth its
    name."""
    torch.manual_seed(0)
    config = DecoderConfig(
        latent_channels=8,
        decoder_block_out_channels=(width,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_only=(False,),
        decoder_is_dw_conv=(False, True),
        patch_size=2,
    )
    return TurboVaedDecoder(config).requires_grad_(False)


def packaged(target: str, folder: Path) -> tuple[TurboVaedDecoder, Package]:
    """`small_decoder`, and `folder/package` of it, for normalised latents of `SHAPE`."""
    decoder, wanted = small_decoder().requires_grad_(False), Target.parse(target)
    job = ExportJob(
        decoder=decoder,
        latent_shape=SHAPE,
        precision=wanted.precision,
        folder=folder / "scratch",
        latent_mean=MEAN,
        latent_std=STD,
    )
    return decoder, export_package(wanted, folder / "package", job)


def expected_video(decoder: TurboVaedDecoder, latents: torch.Tensor) -> torch.Tensor:
    """What a package of `packaged` is to put out for normalised latents."""
    mean, std = (torch.tensor(values).view(1, 8, 1, 1, 1) for values in (MEAN, STD))
    return decoder(latents * std + mean)


def packaged_elsewhere(target: str, folder: Path) -> Path:
    """The package's folder as another process writes it, where sets have another order."""
    code = (
        "import sys; from pathlib import Path; from tests.export.small import packaged; "
        "packaged(sys.argv[1], Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, target, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "package"


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
