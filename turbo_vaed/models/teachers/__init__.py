"""Teachers: the customer's heavy video VAE, a file per family, loaded from a local folder.

B batch, C channels, T frames, t latent frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from turbo_vaed.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latent space of a teacher, and which videos it takes."""

    channels: int
    compression_t: int
    compression_h: int
    compression_w: int
    mean: tuple[float, ...]
    """Per channel; what a diffusion model subtracts. Latents here are raw: not normalised."""
    std: tuple[float, ...]
    """Per channel; what a diffusion model divides by."""
    value_range: tuple[float, float] = (-1.0, 1.0)
    """Of the video."""

    def legal_frames(self, frames: int) -> bool:
        """Whether a clip may have that many frames: a multiple of `compression_t`, plus one."""
        return frames >= 1 and (frames - 1) % self.compression_t == 0

    def legal_size(self, height: int, width: int) -> bool:
        """Whether a clip may be that large: multiples of the spatial compression, in pixels."""
        return (
            min(height, width) >= 1
            and height % self.compression_h == 0
            and width % self.compression_w == 0
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C,t,h,w) of the latents of one legal clip."""
        t = (frames - 1) // self.compression_t + 1
        return (self.channels, t, height // self.compression_h, width // self.compression_w)


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What the files of a teacher say, read without building the network."""

    family: str
    latent_spec: LatentSpec
    decoder_parameters: int
    sha256: str
    """Of the weights file."""


class Teacher(Protocol):
    """A loaded teacher; both calls run without gradients."""

    latent_spec: LatentSpec
    decoder_parameters: int
    sha256: str

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Video BCTHW in [-1,1] -> raw latents BCthw: the mean of the posterior."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents BCthw -> video BCTHW, about [-1,1] and not clamped."""


FAMILIES = ("ltx-video",)


def describe_teacher(family: str, folder: Path) -> TeacherFacts:
    """The facts of a teacher from its files, without building the network.

    Raises:
        UserError: an unknown family, or a variant of it that cannot be a teacher here.
        CorruptFile: a file is missing, cut short or not what its name says.
    """
    _check(family)
    from turbo_vaed.models.teachers import ltx_video

    return ltx_video.describe(folder)


def load_teacher(
    family: str,
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """The teacher in `folder`, ready to encode and decode.

    Args:
        family: one of `FAMILIES`.
        folder: config.json and diffusion_pytorch_model.safetensors.
        dtype: of the weights; float32 by default.
        device: where it runs.

    Raises:
        UserError, CorruptFile: as `describe_teacher`.
    """
    _check(family)
    from turbo_vaed.models.teachers import ltx_video

    return ltx_video.load(folder, dtype=dtype, device=device)


def _check(family: str) -> None:
    if family not in FAMILIES:
        raise UserError(f"unknown teacher family {family!r}; known: {', '.join(FAMILIES)}")
