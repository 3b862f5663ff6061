"""The configuration of a student decoder, in the published vocabulary.

Per-level tuples are given encoder side first, as in the published JSON files: the last
entry is the deepest level, where decoding starts. `decoder_layers_per_block` and
`decoder_is_dw_conv` have one entry more than there are levels; their last one is the
middle block's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite, prod
from types import MappingProxyType
from typing import Any

from turbo_vaed.models.windows import TimeSpec

CLASS_NAME = "AutoencoderKLTurboVAED"

# Published keys that say nothing about the decoder: accepted and dropped.
_IGNORED = frozenset({"in_channels", "layers_per_block"})
# Published features that no released student uses: only the value here is accepted
# (an entry of a list must equal it too).
_FIXED: Mapping[str, object] = MappingProxyType(
    {
        "decoder_causal": False,
        "timestep_conditioning": False,
        "decoder_inject_noise": False,
        "upsample_residual": False,
        "upsample_factor": 1,
        "aligned_feature_projection_mode": "conv-2layer",
    }
)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of one student decoder; every field carries its published name.

    Raises:
        ValueError: from the constructor, for a value that cannot be; it names the field,
            what was found and what is allowed.
    """

    latent_channels: int
    """Channels of the latent that the decoder takes."""
    decoder_block_out_channels: tuple[int, ...]
    """Channels per level; the length is the number of levels."""
    decoder_layers_per_block: tuple[int, ...]
    """Residual blocks per level, and of the middle block (last)."""
    spatio_temporal_scaling: tuple[bool, ...]
    """Whether the level doubles height, width and (see below) time."""
    decoder_spatio_only: tuple[bool, ...]
    """Whether a level that scales leaves time alone."""
    decoder_temporal_factors: tuple[int, ...] = ()
    """Ours: how many frames a level that scales time makes of one, 1 at the others. Empty: the
    published 2; so it is needed where the teacher's compression is not a power of two (Mochi)."""
    decoder_is_dw_conv: tuple[bool, ...]
    """Whether the residual blocks of a level, and of the middle block, are depthwise separable."""
    decoder_dw_kernel_size: int = 3
    """Odd kernel size of the depthwise convolutions; dense ones are 3x3x3."""
    patch_size: int = 4
    """Further per-frame upsampling at the output: 1, 2 or 4."""
    patch_size_t: int = 1
    """Always 1: the decoder has no temporal patches."""
    out_channels: int = 3
    """Always 3: RGB."""
    resnet_norm_eps: float = 1e-6
    """Epsilon of the layer norms on the shortcuts (the RMS norms have a fixed 1e-8)."""
    scaling_factor: float = 1.0
    """Of the latent space, for the diffusion model; the decoder takes unscaled latents."""
    is_video_dc_ae: bool = False
    """Keep all frames of a temporal upsampling: t latent frames make r*t frames, r the temporal
    compression. Otherwise each doubling drops its first frame: r*(t-1) + 1 frames."""
    aligned_blks_indices: tuple[int, ...] = ()
    """Blocks whose features are aligned with the teacher's: 0 middle block, i up block i-1."""
    aligned_feature_projection_dim: tuple[tuple[int, int], ...] = ()
    """(student channels, projected channels) for each aligned block."""

    def __post_init__(self) -> None:
        _require_int("latent_channels", self.latent_channels)
        levels = len(self.decoder_block_out_channels)
        if not levels:
            raise _error("decoder_block_out_channels", self.decoder_block_out_channels, "a level")
        for name, length, is_flag in (
            ("decoder_block_out_channels", levels, False),
            ("decoder_layers_per_block", levels + 1, False),
            ("spatio_temporal_scaling", levels, True),
            ("decoder_spatio_only", levels, True),
            ("decoder_is_dw_conv", levels + 1, True),
        ):
            _require_tuple(name, getattr(self, name), length=length, is_flag=is_flag)
        self._check_temporal_factors(levels)
        kernel = _require_int("decoder_dw_kernel_size", self.decoder_dw_kernel_size)
        if kernel % 2 == 0:
            raise _error("decoder_dw_kernel_size", kernel, "an odd integer >= 1")
        for name, allowed in (
            ("patch_size", (1, 2, 4)),
            ("patch_size_t", (1,)),
            ("out_channels", (3,)),
        ):
            found = getattr(self, name)
            if isinstance(found, bool) or found not in allowed:
                raise _error(name, found, " or ".join(map(str, allowed)))
        finest = self.decoder_block_out_channels[0]
        if finest % self.patch_size**2:
            raise _error(
                "decoder_block_out_channels",
                self.decoder_block_out_channels,
                f"a first entry divisible by patch_size squared ({self.patch_size**2})",
            )
        for name in ("resnet_norm_eps", "scaling_factor"):
            number = getattr(self, name)
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not isfinite(number)
                or number <= 0
            ):
                raise _error(name, number, "a finite number > 0")
        if not isinstance(self.is_video_dc_ae, bool):
            raise _error("is_video_dc_ae", self.is_video_dc_ae, "true or false")
        self._check_alignment(levels)

    def _check_temporal_factors(self, levels: int) -> None:
        name, factors = "decoder_temporal_factors", self.decoder_temporal_factors
        if factors == ():
            return
        _require_tuple(name, factors, length=levels, is_flag=False)
        for factor, scales_time in zip(factors, self._scales_time, strict=True):
            if factor > 1 and not scales_time:
                raise _error(name, factors, "1 at every level that does not scale time")

    def _check_alignment(self, levels: int) -> None:
        # The projected width is the teacher's business; the student's must be what this
        # decoder has at that block. Goldens keep full-width heads next to reduced
        # decoders, so that is checked where heads are built, not here.
        blocks, widths = self.aligned_blks_indices, self.aligned_feature_projection_dim
        for name in ("aligned_blks_indices", "aligned_feature_projection_dim"):
            if not isinstance(getattr(self, name), tuple):
                raise _error(name, getattr(self, name), "a list with an entry per aligned block")
        for block in blocks:
            if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block <= levels:
                raise _error("aligned_blks_indices", blocks, f"integers from 0 to {levels}")
        if len(set(blocks)) != len(blocks):
            raise _error("aligned_blks_indices", blocks, "no block twice")
        if len(widths) != len(blocks):
            raise _error(
                "aligned_feature_projection_dim",
                widths,
                f"one (student, projected) pair for each of aligned_blks_indices = {blocks}",
            )
        for pair in widths:
            _require_tuple("aligned_feature_projection_dim", pair, length=2, is_flag=False)

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent position, along height and along width."""
        return self.patch_size * int(2 ** sum(self.spatio_temporal_scaling))

    @property
    def _scales_time(self) -> tuple[bool, ...]:
        pairs = zip(self.spatio_temporal_scaling, self.decoder_spatio_only, strict=True)
        return tuple(scales and not spatial for scales, spatial in pairs)

    @property
    def temporal_factors(self) -> tuple[int, ...]:
        """Frames that each level makes of one."""
        return self.decoder_temporal_factors or tuple(2 if s else 1 for s in self._scales_time)

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame."""
        return prod(self.temporal_factors)

    @property
    def time_spec(self) -> TimeSpec:
        """What a runner must know to decode window by window."""
        ratio = self.temporal_compression
        return TimeSpec(
            frames_per_latent=ratio,
            first_latent_frames=ratio if self.is_video_dc_ae else 1,
            halo_frames=_temporal_halo(self),
        )

    def video_shape(self, latent_shape: tuple[int, int, int, int, int]) -> tuple[int, ...]:
        """Shape (B, 3, T, H, W) that latents of shape (B, C, t, h, w) decode to."""
        batch, channels, frames, height, width = latent_shape
        if channels != self.latent_channels:
            raise _error("latent_shape", latent_shape, f"{self.latent_channels} channels")
        decoded = self.time_spec.frames(frames)
        scale = self.spatial_compression
        return batch, self.out_channels, decoded, height * scale, width * scale

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """Shape (1, C, t, h, w) of the latents that decode to a video of T frames of H x W pixels.

        Raises:
            ValueError: no latents do; it says which sizes there are.
        """
        time, scale = self.time_spec, self.spatial_compression
        further, rest = divmod(frames - time.first_latent_frames, time.frames_per_latent)
        if further < 0 or rest:
            ratio, first = time.frames_per_latent, time.first_latent_frames
            raise _error("frames", frames, f"{first} and every {ratio} more")
        for name, pixels in (("height", height), ("width", width)):
            if pixels < scale or pixels % scale:
                raise _error(name, pixels, f"multiples of {scale}")
        return 1, self.latent_channels, 1 + further, height // scale, width // scale

    @classmethod
    def from_published(cls, published: Mapping[str, Any]) -> "DecoderConfig":
        """Read a published (diffusers) JSON config.

        Keys that begin with an underscore are diffusers' own and ignored. The published
        decoder reads `decoder_spatio_temporal_scaling`, which the JSON files leave at its
        default; where it is absent `spatio_temporal_scaling` is taken.

        Raises:
            ValueError: for an unknown key, a missing one or a value that is not supported.
        """
        if not isinstance(published, Mapping):
            raise _error("config", published, "a JSON object")
        given = {
            str(key): value
            for key, value in published.items()
            if not str(key).startswith("_") and key not in _IGNORED
        }
        if (found := published.get("_class_name", CLASS_NAME)) != CLASS_NAME:
            raise _error("_class_name", found, repr(CLASS_NAME))
        for name, only in _FIXED.items():
            found = given.pop(name, None)
            entries = found if isinstance(found, list | tuple) else [found]
            if found is not None and any(type(e) is not type(only) or e != only for e in entries):
                raise _error(name, found, f"only {only!r}")
        scaling = given.pop("decoder_spatio_temporal_scaling", None)
        if scaling is not None:
            if (other := given.get("spatio_temporal_scaling", scaling)) != scaling:
                raise _error(
                    "decoder_spatio_temporal_scaling",
                    scaling,
                    f"as spatio_temporal_scaling, {other!r}, or absent",
                )
            given["spatio_temporal_scaling"] = scaling
        ratios = {
            name: given.pop(f"{name}_ratio", None)
            for name in ("spatial_compression", "temporal_compression")
        }
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(
                f"{unknown[0]}: found {given[unknown[0]]!r}, but there is no such field; "
                f"allowed are {', '.join(sorted(known))}"
            )
        levels = _listed(given, "decoder_block_out_channels")
        given.setdefault("decoder_spatio_only", (False,) * len(levels))
        given.setdefault("decoder_is_dw_conv", (False,) * (len(levels) + 1))
        for name in ("latent_channels", "decoder_layers_per_block", "spatio_temporal_scaling"):
            if name not in given:
                raise _error(name, None, "it is required")
        for name in ("aligned_blks_indices", "aligned_feature_projection_dim"):
            if given.get(name) is None:
                given.pop(name, None)
        config = cls(**{name: _frozen(value) for name, value in given.items()})
        for name, ratio in ratios.items():
            if ratio is not None and ratio != getattr(config, name):
                raise _error(f"{name}_ratio", ratio, f"{getattr(config, name)} by the other fields")
        return config

    def to_published(self) -> dict[str, Any]:
        """The published JSON form; `from_published` of it gives this config back."""
        published: dict[str, Any] = {"_class_name": CLASS_NAME, "decoder_causal": False}
        for field in fields(self):
            value = getattr(self, field.name)
            if value == () and field.name.startswith(("aligned_", "decoder_temporal_factors")):
                continue
            published[field.name] = _listed_form(value)
        # The published code reads this name, and its default has four levels.
        published["decoder_spatio_temporal_scaling"] = published["spatio_temporal_scaling"]
        if self.aligned_blks_indices:
            mode = "aligned_feature_projection_mode"
            published[mode] = _FIXED[mode]
        return published


def _temporal_halo(config: DecoderConfig) -> tuple[int, int]:
    """Video frames at the start and at the end of a window that depend on what is outside of it.

    Exact: with weights in general position every one of them differs, and no other.
    """
    reaches = [
        config.decoder_dw_kernel_size // 2 if separable else 1
        for separable in config.decoder_is_dw_conv[::-1]
    ]
    layers = config.decoder_layers_per_block[::-1]
    widths = config.decoder_block_out_channels[::-1]
    spoilt = [1 + 2 * layers[0] * reaches[0]] * 2  # conv_in and the middle block: start, end
    width_before = widths[0]
    for i, (width, factor, scales) in enumerate(
        zip(
            widths,
            config.temporal_factors[::-1],
            config.spatio_temporal_scaling[::-1],
            strict=True,
        )
    ):
        reach = reaches[i + 1]
        if width != width_before:
            spoilt = [s + 2 * reach for s in spoilt]
        if scales:
            dropped = 0 if config.is_video_dc_ae else factor - 1
            spoilt = [factor * (s + 1) for s in spoilt]
            spoilt[0] -= dropped
        spoilt = [s + 2 * layers[i + 1] * reach for s in spoilt]
        width_before = width
    start, end = (s + 1 for s in spoilt)  # conv_out; patches are undone frame by frame
    return start, end


def _error(name: str, found: object, allowed: str) -> ValueError:
    return ValueError(f"{name}: found {found!r}, allowed: {allowed}")


def _require_int(name: str, found: object) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise _error(name, found, "an integer >= 1")
    return found


def _require_tuple(name: str, found: object, *, length: int, is_flag: bool) -> None:
    what = "true or false" if is_flag else "integers >= 1"
    allowed = f"{length} entries, {what}"
    if not isinstance(found, tuple) or len(found) != length:
        raise _error(name, found, allowed)
    for entry in found:
        is_right = isinstance(entry, bool) if is_flag else type(entry) is int and entry >= 1
        if not is_right:
            raise _error(name, found, allowed)


def _listed(given: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    found = given.get(name)
    if not isinstance(found, list | tuple):
        raise _error(name, found, "a list with an entry per level")
    return tuple(found)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _listed_form(value: Any) -> Any:
    return [_listed_form(v) for v in value] if isinstance(value, tuple) else value
