"""The quality of the frames that a device put out, against the source and against PyTorch.

Shapes: N clips, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.devices.host import read_decoded
from turbo_vaed.gate.parity import parity_psnr
from turbo_vaed.gate.test_split import TestSplit

if TYPE_CHECKING:
    from turbo_vaed.models import TurboVaedDecoder


@dataclass(frozen=True, kw_only=True)
class OutputQuality:
    """Figures of the frames; None where a value was NaN or infinite, or there was no frame."""

    quality: dict[str, dict[str, float]] | None
    """Against the source, {metric: {mean, worst}}."""
    clips: tuple[dict[str, float], ...]
    parity_psnr_db: float | None
    """Against PyTorch, before rounding, of the clip where they differ most."""


def measure_output(
    split: TestSplit,
    decoded_folder: Path | None,
    student: TurboVaedDecoder,
    frames_zarr: Path,
    worst_share: float,
) -> OutputQuality:
    """Write what the device put out as the Zarr group `frames_zarr`, and compare it with the source
    and with PyTorch.

    Of a device that put out nothing `decoded_folder` is None, as is every figure then, and the
    group is empty.
    """
    import numpy as np
    import torch
    import zarr

    from turbo_vaed.dataset.clip_arrays import create_clip_array
    from turbo_vaed.metrics import clip_quality, summarise_quality, uint8_from_network

    group = zarr.open_group(str(frames_zarr), mode="w", zarr_format=3)
    group.attrs["indices"] = split.indices if decoded_folder is not None else []
    if decoded_folder is None:
        return OutputQuality(quality=None, clips=(), parity_psnr_db=None)
    decoded = read_decoded(decoded_folder)
    n, _, frames, height, width = decoded.shape
    shape = (n, frames, height, width, 3)
    video = create_clip_array(
        group, "video", clips=n, shape=shape[1:], dtype="uint8", is_compressed=True
    )
    clips, parity = [], []
    for row, index in enumerate(split.indices):
        raw = torch.from_numpy(np.array(decoded[row : row + 1]))
        pixels = uint8_from_network(torch.nan_to_num(raw))[0]
        video[row] = pixels
        if bool(torch.isfinite(raw).all()):
            clips.append(clip_quality(pixels, split.source(index)))
            with torch.inference_mode():
                reference = student(torch.from_numpy(split.latents([index])))
            parity.append(parity_psnr(raw, reference))
    if len(clips) < n:
        return OutputQuality(quality=None, clips=(), parity_psnr_db=None)
    return OutputQuality(
        quality=summarise_quality(clips, worst_share),
        clips=tuple(clips),
        parity_psnr_db=min(parity),
    )
