"""The config of a Video DC-AE: the published one by its name, or any by its fields."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from types import MappingProxyType
from typing import Any

HEAD_CHANNELS = 32
"""Of an attention head; the width of a stage with attention is a multiple of it."""
FIRST_ATTENTION_STAGE = 3
"""Stages before it, the finest, are residual blocks; from there on they hold attention."""
TIME_STAGES = (3, 4)
"""The step from such a stage to the next deeper one halves time too; each step halves H, W."""
_FEWEST_STAGES = max(TIME_STAGES) + 2


@dataclass(frozen=True, kw_only=True)
class DcAeConfig:
    """An encoder and a decoder of the same widths; lists have an entry per stage, finest first.

    What no published video model varies is no field: see the constants of this module.

    Raises:
        ValueError: on construction, for a value that makes no network; it names the field.
    """

    latent_channels: int
    width_list: tuple[int, ...]
    encoder_depth_list: tuple[int, ...]
    """Blocks per stage."""
    decoder_depth_list: tuple[int, ...]
    """Blocks per stage."""
    scaling_factor: float = 1.0
    """Standard deviation of the latents: a diffusion model sees latents / scaling_factor."""

    def __post_init__(self) -> None:
        if not _is_count(self.latent_channels):
            raise _error("latent_channels", self.latent_channels, "an integer >= 1")
        for name in ("width_list", "encoder_depth_list", "decoder_depth_list"):
            found = getattr(self, name)
            if not isinstance(found, tuple) or not all(map(_is_count, found)):
                raise _error(name, found, "a list of integers >= 1")
        stages = len(self.width_list)
        if stages < _FEWEST_STAGES:
            raise _error("width_list", self.width_list, f"at least {_FEWEST_STAGES} stages")
        for name in ("encoder_depth_list", "decoder_depth_list"):
            if len(getattr(self, name)) != stages:
                raise _error(name, getattr(self, name), f"{stages} entries, as width_list has")
        if any(width % HEAD_CHANNELS for width in self.width_list[FIRST_ATTENTION_STAGE:]):
            raise _error(
                "width_list",
                self.width_list,
                f"multiples of {HEAD_CHANNELS} from entry {FIRST_ATTENTION_STAGE} on",
            )
        # A step's shortcut averages or repeats whole channels: 4 positions of one width are
        # a whole number of channels of the other.
        for fine, deep in zip(self.width_list, self.width_list[1:], strict=False):
            if 4 * fine % deep or 4 * deep % fine:
                raise _error(
                    "width_list", self.width_list, "neighbours that divide 4 times each other"
                )
        if self.width_list[-1] % self.latent_channels:
            raise _error(
                "latent_channels",
                self.latent_channels,
                f"a divisor of the last entry of width_list, {self.width_list[-1]}",
            )
        factor = self.scaling_factor
        if type(factor) not in (int, float) or not isfinite(factor) or factor <= 0:
            raise _error("scaling_factor", factor, "a finite number > 0")

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent position, along height and along width."""
        return int(2 ** (len(self.width_list) - 1))

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame."""
        return int(2 ** len(TIME_STAGES))

    @classmethod
    def from_published(cls, published: str | Mapping[str, Any]) -> "DcAeConfig":
        """The config of a published name, or of a mapping as config.json holds it.

        The mapping is {"model_name": NAME}, or the fields of this class, where `depth` may
        stand for one depth of all stages of both sides.

        Raises:
            ValueError: an unknown name, an unknown or missing field, or an impossible value.
        """
        if isinstance(published, str):
            published = {"model_name": published}
        if not isinstance(published, Mapping):
            raise _error("config", published, "a JSON object")
        given: dict[str, Any] = dict(published)
        if "model_name" in given:
            return _by_name(given)
        if "depth" in given:
            depth, widths = given.pop("depth"), given.get("width_list")
            if not isinstance(widths, list | tuple):
                raise _error("width_list", widths, "a list of integers >= 1")
            for name in ("encoder_depth_list", "decoder_depth_list"):
                if name in given:
                    raise _error(name, given[name], f"nothing next to depth = {depth!r}")
                given[name] = [depth] * len(widths)
        known = [field.name for field in fields(cls)]
        if unknown := sorted(given.keys() - set(known)):
            raise _error(unknown[0], given[unknown[0]], f"only {', '.join(known)}, depth")
        for name in known:
            if name not in given and name != "scaling_factor":
                raise _error(name, None, "it is required")
        for name, value in given.items():
            given[name] = tuple(value) if isinstance(value, list) else value
        return cls(**given)


def _by_name(given: Mapping[str, Any]) -> DcAeConfig:
    name = given["model_name"]
    if not isinstance(name, str) or name not in PUBLISHED:
        raise _error("model_name", name, " or ".join(PUBLISHED))
    if beside := sorted(given.keys() - {"model_name"}):
        raise _error(beside[0], given[beside[0]], "nothing next to model_name")
    return PUBLISHED[name]


def _is_count(found: object) -> bool:
    return type(found) is int and found >= 1  # True is an int too, but no count


def _error(name: str, found: object, allowed: str) -> ValueError:
    return ValueError(f"{name}: found {found!r}, allowed: {allowed}")


PUBLISHED: Mapping[str, DcAeConfig] = MappingProxyType(
    {
        # Open-Sora 2.0; the scaling factor is the one that its diffusion model was trained with.
        "dc-ae-f32t4c128": DcAeConfig(
            latent_channels=128,
            width_list=(128, 256, 512, 512, 1024, 1024),
            encoder_depth_list=(2, 2, 2, 3, 3, 3),
            decoder_depth_list=(3, 3, 3, 3, 3, 3),
            scaling_factor=0.493,
        ),
    }
)
