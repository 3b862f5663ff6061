"""The teacher's latents of every clip, and its own reconstruction of those that are asked for.

B batch, N clips, C channels, T frames, t latent frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

import numpy as np

from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array, open_for_writing
from turbo_vaed.dataset.clip_pass import Device, pass_over_clips
from turbo_vaed.errors import Fault

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CLIPS_REMEDY = "run `dvc checkout`, or the stage `clip` again"
LATENTS_REMEDY = "run `dvc checkout`, or the stage `encode` again"


class Codec(Protocol):
    """What a teacher does: video BCTHW in [-1,1] to latents BCthw and back."""

    def encode(self, video: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


def encode_clips(
    clips: str,
    out: str,
    *,
    make_codec: Callable[..., Codec],
    latent_shape: tuple[int, int, int, int],
    reconstructed: Collection[int],
    tiled: Collection[int] = (),
    tiles: int = 1,
    batch_size: int,
    ray_address: str | None = None,
    workers: int | None = None,
    check_budget: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Write `latents` float32 (N,C,t,h,w) and `reconstruction` uint8 (N,T,H,W,3).

    Args:
        clips: the Zarr group that holds `video` uint8 (N,T,H,W,3).
        out: the Zarr group to write; every worker must reach both.
        make_codec: called once in each worker with `device`; it must pickle.
        latent_shape: (C,t,h,w) of one clip.
        reconstructed: the clips to decode again; `reconstruction` has no chunk of the others.
        tiled: the clips to encode in `tiles` x `tiles` pieces, each for itself.
        batch_size: clips at a time in one worker.
        ray_address: as `ray_session` takes it.
        workers: at most so many; as many as Ray has GPUs or CPUs by default.
        check_budget: as `pass_over_clips` takes it.

    Raises:
        CorruptFile: a clip is missing.
        Unreachable: no Ray answers at the address.
        Fault: a worker failed, or the teacher gave latents of another shape or not finite.
    """
    import zarr

    count, *shape = ClipArray(clips, "video", remedy=CLIPS_REMEDY).shape
    group = zarr.open_group(out, mode="w", zarr_format=3)
    for name, one, dtype in (
        ("latents", latent_shape, "float32"),
        ("reconstruction", shape, "uint8"),
    ):
        create_clip_array(group, name, clips=count, shape=one, dtype=dtype, is_compressed=True)
    pass_over_clips(
        Encoder,
        (make_codec, clips, out, latent_shape, frozenset(reconstructed), frozenset(tiled), tiles),
        range(count),
        batch_size=batch_size,
        label="encoding clips",
        ray_address=ray_address,
        workers=workers,
        check_budget=check_budget,
    )


class Encoder:
    """A worker of `pass_over_clips`."""

    def __init__(
        self,
        make_codec: Callable[..., Codec],
        clips: str,
        out: str,
        latent_shape: tuple[int, int, int, int],
        reconstructed: frozenset[int],
        tiled: frozenset[int] = frozenset(),
        tiles: int = 1,
        *,
        device: Device,
    ) -> None:
        self.codec = make_codec(device=device)
        self.video = ClipArray(clips, "video", remedy=CLIPS_REMEDY)
        self.latents = open_for_writing(out, "latents")
        self.reconstruction = open_for_writing(out, "reconstruction")
        self.latent_shape = latent_shape
        self.reconstructed, self.tiled, self.tiles = reconstructed, tiled, tiles

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Encode the clips of `index`, decode what is asked for, and hand the indices back."""
        indices = [int(i) for i in batch["index"]]
        tiled = [i for i in indices if i in self.tiled]
        whole = [i for i in indices if i not in self.tiled]
        for some, tiles in ((tiled, self.tiles), (whole, 1)):
            if some:
                self._encode(some, tiles)
        return batch

    def _encode(self, indices: list[int], tiles: int) -> None:
        """Clips that are all cut into so many tiles a side."""
        video = to_network(np.stack([self.video[i] for i in indices]))
        latents = assemble(self.codec.encode(cut(video, tiles)), tiles)
        if tuple(latents.shape[1:]) != self.latent_shape or not latents.isfinite().all():
            raise Fault(
                f"the teacher gave latents {tuple(latents.shape[1:])} for clips {indices}, "
                f"finite {self.latent_shape} were expected"
            )
        for place, index in enumerate(indices):
            self.latents[index] = latents[place].float().cpu().numpy()
        places = [p for p, index in enumerate(indices) if index in self.reconstructed]
        if places:
            pictures = to_pixels(self.codec.decode(latents[places]))
            for picture, place in zip(pictures, places, strict=True):
                self.reconstruction[indices[place]] = picture


def cut(x: torch.Tensor, tiles: int) -> torch.Tensor:
    """(B, C, T, H, W) -> (B*tiles*tiles, C, T, H/tiles, W/tiles): the tiles of every clip."""
    b, c, t, height, width = x.shape
    x = x.reshape(b, c, t, tiles, height // tiles, tiles, width // tiles)
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)


def assemble(x: torch.Tensor, tiles: int) -> torch.Tensor:
    """The way back from `cut`, of whatever has rows and columns in proportion."""
    n, c, t, height, width = x.shape
    x = x.reshape(n // tiles**2, tiles, tiles, c, t, height, width)
    return x.permute(0, 3, 4, 1, 5, 2, 6).reshape(-1, c, t, tiles * height, tiles * width)


def to_network(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 BTHWC -> float32 BCTHW in [-1,1]."""
    import torch

    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def to_pixels(video: torch.Tensor) -> NDArray[np.uint8]:
    """Float BCTHW, clamped to [-1,1] -> uint8 BTHWC, rounded to nearest."""
    import torch

    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 4, 1).cpu().numpy()
    return array
