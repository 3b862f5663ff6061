"""What every teacher is: its latent space, its facts on disk, its calls.

B batch, C channels, T frames, t latent frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turbo_vaed.models.decoder import DecodedWithFeatures


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latent space of a teacher, and which videos it takes."""

    channels: int
    compression_t: int
    compression_h: int
    compression_w: int
    mean: tuple[float, ...]
    """Per channel; what a diffusion model subtracts. Latents here are raw: not normalised.
    Where the model has statistics per latent frame (Cosmos): those of the first channel, frame
    by frame, then the next channel's."""
    std: tuple[float, ...]
    """As `mean`; what a diffusion model divides by."""
    decoder_parameters: int
    """Of the teacher: what a student's budget is a fraction of."""
    has_lone_first_frame: bool = True
    """Whether the first frame has a latent frame of its own: `compression_t`*k + 1 frames are
    legal. Otherwise multiples of `compression_t` are."""
    latent_frames_step: int = 1
    """Latent frames come in such steps: 1 where every k above is legal."""
    fewest_latent_frames: int = 1
    """Where the steps begin. Video DC-AE takes a single latent frame for an image."""
    fewest_latent_side: int = 1
    """Of height and width: padding by reflection (LTX-2) needs two positions."""
    value_range: tuple[float, float] = (-1.0, 1.0)
    """Of the video."""

    @property
    def shift(self) -> tuple[float, ...]:
        """As `mean`; a diffusion model sees (latents - shift) * scaling."""
        return self.mean

    @property
    def scaling(self) -> tuple[float, ...]:
        """As `std`; see `shift`."""
        return tuple(1 / std for std in self.std)

    @property
    def frames_step(self) -> int:
        """The next longer legal clip has so many frames more."""
        return self.compression_t * self.latent_frames_step

    @property
    def fewest_frames(self) -> int:
        """Of a legal clip."""
        return self.video_shape(self.fewest_latent_frames, 1, 1)[1]

    def legal_frames(self, frames: int) -> bool:
        """Whether a clip may have that many frames."""
        first = self.fewest_frames
        return frames >= first and (frames - first) % self.frames_step == 0

    def nearest_frames(self, frames: int) -> tuple[int, int]:
        """The longest legal clip of at most `frames` (the shortest there is if none), and the
        next longer one."""
        first, step = self.fewest_frames, self.frames_step
        below = first + max(0, frames - first) // step * step
        return below, below + step

    def legal_size(self, height: int, width: int) -> bool:
        """Whether a clip may be that large: multiples of the spatial compression, in pixels."""
        return all(
            size >= step * self.fewest_latent_side and size % step == 0
            for size, step in ((height, self.compression_h), (width, self.compression_w))
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C,t,h,w) of the latents of one legal clip."""
        lone = int(self.has_lone_first_frame)
        t = (frames - lone) // self.compression_t + lone
        return (self.channels, t, height // self.compression_h, width // self.compression_w)

    def video_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(3,T,H,W) of the video of latents of t `frames`, h `height`, w `width`."""
        lone = int(self.has_lone_first_frame)
        t = (frames - lone) * self.compression_t + lone
        return (3, t, height * self.compression_h, width * self.compression_w)

    def check_video(self, shape: Sequence[int]) -> None:
        """Refuse a video (B,3,T,H,W) that the teacher does not take.

        Raises:
            ValueError: rank, channels, frames or size; it says what was found and what is legal.
        """
        if len(shape) != 5 or shape[1] != 3 or min(shape) < 1:
            raise ValueError(f"video: found shape {tuple(shape)}, allowed: (B, 3, T, H, W), none 0")
        frames, height, width = shape[2:]
        if not self.legal_frames(frames):
            below, above = self.nearest_frames(frames)
            raise ValueError(
                f"video: found {frames} frames, allowed: {self.legal_frames_text}; "
                f"the nearest are {below} and {above}"
            )
        if not self.legal_size(height, width):
            least = (self.compression_h, self.compression_w)
            raise ValueError(
                f"video: found {height}x{width} pixels, allowed: multiples of "
                f"{least[0]}x{least[1]}, at least {self.fewest_latent_side} of them"
            )

    def check_latents(self, shape: Sequence[int]) -> None:
        """Refuse latents (B,C,t,h,w) that the teacher does not take.

        Raises:
            ValueError: rank, channels, frames or size; it says what was found and what is legal.
        """
        if len(shape) != 5 or shape[1] != self.channels or min(shape) < 1:
            raise ValueError(
                f"latents: found shape {tuple(shape)}, allowed: "
                f"(B, {self.channels}, t, h, w), none 0"
            )
        frames, step, first = shape[2], self.latent_frames_step, self.fewest_latent_frames
        if frames < first or (frames - first) % step:
            below = first + max(0, frames - first) // step * step
            raise ValueError(
                f"latents: found {frames} frames; the nearest allowed are {below} and "
                f"{below + step}"
            )
        if min(shape[3:]) < self.fewest_latent_side:
            raise ValueError(
                f"latents: found {shape[3]}x{shape[4]} positions, allowed: at least "
                f"{self.fewest_latent_side}x{self.fewest_latent_side}"
            )

    @property
    def legal_frames_text(self) -> str:
        """As `8k+1`."""
        words = f"{self.frames_step}k+1" if self.has_lone_first_frame else f"{self.frames_step}k"
        return f"{words}, at least {self.fewest_frames}" if self.fewest_latent_frames > 1 else words


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """Facts from the files of a teacher, read without building the network."""

    family: str
    latent_spec: LatentSpec
    sha256: str
    """Of the weights file; of the digests of all, in the order of their names, where several."""

    @property
    def decoder_parameters(self) -> int:
        """Of the decoder alone, see `LatentSpec`."""
        return self.latent_spec.decoder_parameters


@dataclass(frozen=True, kw_only=True)
class TeacherFlops:
    """Additions and multiplications for one clip."""

    encode: int
    decode: int


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a family's module hands over: the network with its weights, and how to call it."""

    module: nn.Module
    encode: Callable[[Tensor, torch.Generator | None], Tensor]
    """Video BCTHW -> raw latents: the posterior's mean, or a sample drawn with the generator."""
    decode: Callable[[Tensor], Tensor]
    """Raw latents -> video BCTHW."""
    blocks: Mapping[str, nn.Module]
    """The decoder's blocks by name (`mid_block`, `up_block_0`, ...), deepest first. Each puts out
    (B,C,T',H',W'), or a tuple that begins with it; one that is called chunk by chunk puts out
    the next frames each time."""
    takes_batches: bool = True
    """Whether it takes more than one clip at a time."""
    video_dtype: torch.dtype | None = None
    """Of the video that `encode` takes; as the weights by default."""


class Teacher:
    """A loaded teacher; no call makes gradients.

    What it returns may enter a student's loss: a tensor of inference mode could not.
    """

    def __init__(self, network: Network, facts: TeacherFacts) -> None:
        self.latent_spec = facts.latent_spec
        self.sha256 = facts.sha256
        self.block_names = tuple(network.blocks)
        self.module = network.module.eval().requires_grad_(False)
        self._network = network

    @torch.no_grad()
    def encode(self, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Video BCTHW in [-1,1] -> raw latents BCthw.

        The mean of the posterior, or a sample of it drawn with `generator`.

        Raises:
            ValueError: a video that the teacher does not take, see `LatentSpec`, or not finite.
            UserError: its precision, on this device (Cosmos in bfloat16 on a CPU).
        """
        self.latent_spec.check_video(video.shape)
        clips = self._placed("video", video, self._network.video_dtype)
        weight = next(self.module.parameters())
        one_wide = video.shape[-1] == self.latent_spec.compression_w
        # oneDNN 3.12 puts out noise where a strided convolution's output is one wide, in bfloat16
        # on a CPU with AMX, without an error: PyTorch's issue 169688.
        noise = one_wide and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
        with torch.backends.mkldnn.flags(enabled=False) if noise else nullcontext():
            return torch.cat([self._network.encode(clip, generator) for clip in clips])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents BCthw -> video BCTHW, about [-1,1]; clamped where its network does (Wan).

        Raises:
            ValueError: latents that the teacher does not take, or not finite.
        """
        return self.decode_with_features(latents, ()).video

    @torch.no_grad()
    def decode_with_features(self, latents: Tensor, names: Sequence[str]) -> DecodedWithFeatures:
        """As `decode`, and what the named blocks put out, each (B,C,T',H',W').

        Raises:
            ValueError: as `decode`, or a name that is not in `block_names`.
        """
        unknown = [name for name in names if name not in self._network.blocks]
        if unknown:
            raise ValueError(f"names: found {unknown[0]!r}, allowed: {', '.join(self.block_names)}")
        self.latent_spec.check_latents(latents.shape)
        videos: list[Tensor] = []
        features: dict[str, list[Tensor]] = {name: [] for name in names}
        for clip in self._placed("latents", latents):
            with _outputs({name: self._network.blocks[name] for name in names}) as outputs:
                videos.append(self._network.decode(clip))
            for name, chunks in outputs.items():
                features[name].append(torch.cat(chunks, dim=2))
        whole = {name: torch.cat(clips) for name, clips in features.items()}
        return DecodedWithFeatures(torch.cat(videos), whole)

    def _placed(
        self, what: str, tensor: Tensor, dtype: torch.dtype | None = None
    ) -> Sequence[Tensor]:
        """The tensor where the network is and as it takes it: whole, or clip by clip."""
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{what}: found NaN or infinite values, allowed: finite numbers")
        weight = next(self.module.parameters())
        placed = tensor.to(device=weight.device, dtype=dtype or weight.dtype)
        if self._network.takes_batches:
            return [placed]
        return [placed[i : i + 1] for i in range(len(placed))]


@contextmanager
def _outputs(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """What each block puts out inside the `with`, call after call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in blocks}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen[name].append(output[0] if isinstance(output, tuple) else output)

        return hook

    with ExitStack() as hooks:
        for name, block in blocks.items():
            hooks.callback(block.register_forward_hook(keep(name)).remove)
        yield seen
