"""An export job: one decoder on its way into one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from turbo_vaed.models import TurboVaedDecoder


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What every exporter gets."""

    decoder: TurboVaedDecoder
    latent_shape: tuple[int, int, int, int, int]
    """(B, C, t, h, w), fixed."""
    precision: str
    folder: Path
    """Where the program is written."""
    calibration: Sequence[Tensor] = ()
    """Latents of the customer's training clips, each of `latent_shape`, for int8."""
    least_parity_db: float | None = None
    """Against PyTorch, required of int8: layers that would miss it stay in float."""
    latent_mean: Sequence[float] | None = None
    latent_std: Sequence[float] | None = None
    """With `latent_mean`: the program takes normalised latents and computes z * std + mean."""
