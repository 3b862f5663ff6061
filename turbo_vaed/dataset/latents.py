"""The teacher's latents and its own reconstruction of every clip, through Ray Data.

B batch, N clips, C channels, T frames, t latent frames, H W pixels, h w latent pixels.
Workers read and write the Zarr arrays themselves, a chunk per clip, so that no two write the
same chunk and only indices travel through Ray.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from turbo_vaed import errors
from turbo_vaed.dataset.ray_session import ray_session
from turbo_vaed.errors import Fault, TurboVaedError
from turbo_vaed.progress import track

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


BATCHES_PER_WORKER = 4
"""At least so many for every worker: loading a teacher takes as long as some batches."""


class Codec(Protocol):
    """What a teacher does: video BCTHW in [-1,1] to latents BCthw and back."""

    def encode(self, video: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


def encode_clips(
    clips: str,
    out: str,
    *,
    make_codec: Callable[[], Codec],
    latent_shape: tuple[int, int, int, int],
    batch_size: int,
    ray_address: str | None = None,
    workers: int | None = None,
) -> None:
    """Write `latents` float32 (N,C,t,h,w) and `reconstruction` uint8 (N,T,H,W,3).

    Args:
        clips: the Zarr group that holds `video` uint8 (N,T,H,W,3).
        out: the Zarr group to write; every worker must reach both.
        make_codec: called once in each worker; it must pickle.
        latent_shape: (C,t,h,w) of one clip.
        batch_size: clips at a time in one worker.
        ray_address: as `ray_session` takes it.
        workers: at most so many, one CPU each; as many as Ray has CPUs by default.

    Raises:
        Unreachable: no Ray answers at the address.
        Fault: a worker failed, or the teacher gave latents of another shape or not finite.
    """
    import ray
    import zarr

    video = zarr.open_array(clips, path="video", mode="r")
    count = video.shape[0]
    group = zarr.open_group(out, mode="w", zarr_format=3)
    chunk: dict[str, Any] = {"shape": (count, *latent_shape), "chunks": (1, *latent_shape)}
    group.create_array("latents", dtype="float32", **chunk)
    group.create_array("reconstruction", shape=video.shape, chunks=video.chunks, dtype="uint8")
    with ray_session(ray_address):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        batches = -(-count // batch_size)
        free = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        size = max(1, min(workers or free, free, batches // BATCHES_PER_WORKER))
        # Items are blocks already. `range` would need a CPU for its read task, and where the
        # workers hold every CPU that task, and with it the stage, would wait for ever.
        items = [{"index": i} for i in range(count)]
        dataset = ray.data.from_items(items, override_num_blocks=batches).map_batches(
            _Encode,
            batch_size=batch_size,
            fn_constructor_args=(make_codec, clips, out, latent_shape),
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=1,
        )
        try:
            rows = track((r["index"] for r in dataset.iter_rows()), "encoding clips", count)
            done = sorted(rows)
        except ray.exceptions.RayError as error:
            raise _cause(error) from error
    if done != list(range(count)):
        raise Fault(f"Ray Data encoded {len(done)} of {count} clips; run the stage again")


class _Encode:
    """A Ray Data worker: the codec is made once, then batches of indices come in."""

    def __init__(
        self,
        make_codec: Callable[[], Codec],
        clips: str,
        out: str,
        latent_shape: tuple[int, int, int, int],
    ) -> None:
        import zarr

        self.codec = make_codec()
        self.video = zarr.open_array(clips, path="video", mode="r")
        self.latents = zarr.open_array(out, path="latents", mode="r+")
        self.reconstruction = zarr.open_array(out, path="reconstruction", mode="r+")
        self.latent_shape = latent_shape

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Encode and decode the clips of `index`, and hand the indices back."""
        indices = [int(i) for i in batch["index"]]
        pixels = np.stack([np.asarray(self.video[i]) for i in indices])
        latents = self.codec.encode(to_network(pixels))
        if tuple(latents.shape[1:]) != self.latent_shape or not latents.isfinite().all():
            raise Fault(
                f"the teacher gave latents {tuple(latents.shape[1:])} for clips {indices}, "
                f"finite {self.latent_shape} were expected"
            )
        pictures = to_pixels(self.codec.decode(latents))
        for place, index in enumerate(indices):
            self.latents[index] = latents[place].float().cpu().numpy()
            self.reconstruction[index] = pictures[place]
        return batch


def to_network(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 BTHWC -> float32 BCTHW in [-1,1]."""
    import torch

    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_pixels(video: torch.Tensor) -> NDArray[np.uint8]:
    """Float BCTHW, clamped to [-1,1] -> uint8 BTHWC, rounded to nearest."""
    import torch

    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 4, 1).cpu().numpy()
    return array


def _cause(error: BaseException) -> TurboVaedError:
    """The project's own error that a worker raised, or a Fault with Ray's last words.

    Ray hands over what a worker's start raised as text alone: the class is found by its name.
    """
    text = str(error).strip()
    own = re.findall(r"^turbo_vaed\.errors\.(\w+): (.+?)(?:\n\n|\Z)", text, re.M | re.S)
    if own:
        name, message = own[-1]
        return cast(TurboVaedError, getattr(errors, name)(message))
    return Fault(f"a worker of Ray Data failed: {text.splitlines()[-1] if text else error!r}")
