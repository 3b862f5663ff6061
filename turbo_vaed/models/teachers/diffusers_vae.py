"""The families that diffusers carries: one teacher for all, a row of `ROWS` for each.

All of them are causal in time: the first frame has a latent frame of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.teachers.base import LatentSpec, Network
from turbo_vaed.models.teachers.config_values import check_values
from turbo_vaed.models.teachers.files import (
    CONFIG_NAME,
    REMEDY,
    WEIGHTS_NAME,
    TeacherFiles,
    read_files,
)
from turbo_vaed.runtime.import_noise import quiet_imports

__all__ = ["WEIGHTS_NAME", "build", "read"]
Config = Mapping[str, Any]
_STATISTICS = ("latents_mean", "latents_std")
_FIRST_LAYER = tuple(f"decoder.conv_in.{name}weight" for name in ("", "conv.", "conv_s."))
"""Its inputs are the latents' channels, in every family under one of these names."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What differs from family to family."""

    class_name: str
    needed: tuple[str, ...]
    """Keys that a config must have; what is missing besides is at diffusers' default."""
    channels: str
    """The key with the number of latent channels."""
    compression: Callable[[Config], tuple[int, int]]
    """In time and in space."""
    has_statistics_in_weights: bool = False
    """Whether mean and std of the latents are tensors next to the weights, not in the config."""
    has_statistics_per_frame: bool = False
    """Whether mean and std may have values for each latent frame, see `LatentSpec.mean`."""
    latent_frames_step: int = 1
    fewest_latent_side: int = 1
    mid_block: str = "decoder.mid_block"
    takes_batches: bool = True
    cast_before: str = ""
    """The layer of the encoder up to which a video stays float32, whatever the weights are."""
    refuse: Callable[[Config], str] = lambda _config: ""
    """Why a variant cannot be a teacher, and which one can; "" where it can."""


def _ltx_compression(config: Config) -> tuple[int, int]:
    scales = 2 ** sum(config["decoder_spatio_temporal_scaling"])
    return scales, config["patch_size"] * scales


def _ltx_2_compression(config: Config) -> tuple[int, int]:
    """An upsampling may be of time or of space alone; types and flags have one entry per block."""
    flags, kinds = config["decoder_spatio_temporal_scaling"], config["upsample_type"]
    if len(flags) != len(kinds):
        raise ValueError(
            f"upsample_type has {len(kinds)} entries, decoder_spatio_temporal_scaling {len(flags)}"
        )
    types = [kind for kind, scales in zip(kinds, reversed(flags), strict=True) if scales]
    time = 2 ** sum(kind != "spatial" for kind in types)
    return time, config["patch_size"] * 2 ** sum(kind != "temporal" for kind in types)


def _refuse_ltx(config: Config) -> str:
    if config.get("timestep_conditioning") or any(config.get("decoder_inject_noise") or ()):
        return (
            "a decoder with timestep conditioning or injected noise cannot be a teacher; "
            "use a variant without (LTX-Video 0.9.0, LTX-2)"
        )
    return _only(config, "patch_size_t", 1)


def _wan_compression(config: Config) -> tuple[int, int]:
    time = 2 ** sum(config["temperal_downsample"])
    return time, 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)


def _refuse_wan_2_1(config: Config) -> str:
    if config.get("is_residual"):
        return "its blocks are residual: that is the family wan-2.2"
    return _refuse_wan(config)


def _refuse_wan_2_2(config: Config) -> str:
    if not config.get("is_residual"):
        return "its blocks are not residual: that is the family wan-2.1"
    return _refuse_wan(config)


def _refuse_wan(config: Config) -> str:
    time, _ = _wan_compression(config)  # diffusers encodes four frames at a time, whatever it is
    return "" if time == 4 else f"it compresses time {time} to 1; only 4 to 1 works in diffusers"


def _ratios(config: Config) -> tuple[int, int]:
    return config["temporal_compression_ratio"], config["spatial_compression_ratio"]


def _only(config: Config, key: str, value: int) -> str:
    found = config.get(key, value)
    return "" if found == value else f"{key} is {found}; only {value} works in diffusers"


_HUNYUAN: dict[str, Any] = {
    "needed": (
        "latent_channels",
        "block_out_channels",
        "scaling_factor",
        "spatial_compression_ratio",
        "temporal_compression_ratio",
    ),
    "channels": "latent_channels",
    "compression": _ratios,
    "refuse": lambda config: _only(config, "temporal_compression_ratio", 4),
}
_LTX_NEEDED = ("latent_channels", "patch_size", "decoder_spatio_temporal_scaling")
_WAN: dict[str, Any] = {
    "class_name": "AutoencoderKLWan",
    "needed": ("z_dim", "base_dim", "dim_mult", "temperal_downsample", *_STATISTICS),
    "channels": "z_dim",
    "compression": _wan_compression,
}

ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "ltx-video": Row(
            class_name="AutoencoderKLLTXVideo",
            needed=_LTX_NEEDED,
            channels="latent_channels",
            compression=_ltx_compression,
            has_statistics_in_weights=True,
            refuse=_refuse_ltx,
        ),
        "hunyuan-video": Row(class_name="AutoencoderKLHunyuanVideo", **_HUNYUAN),
        "cogvideox": Row(
            class_name="AutoencoderKLCogVideoX",
            needed=(
                "latent_channels",
                "block_out_channels",
                "scaling_factor",
                "temporal_compression_ratio",
            ),
            channels="latent_channels",
            compression=lambda c: (
                int(c["temporal_compression_ratio"]),
                2 ** (len(c["block_out_channels"]) - 1),
            ),
            # It decodes two latent frames at a time; a first one alone goes with the next two.
            latent_frames_step=2,
            refuse=lambda config: _only(config, "temporal_compression_ratio", 4),
        ),
        "wan-2.1": Row(**_WAN, refuse=_refuse_wan_2_1),
        "wan-2.2": Row(**_WAN, refuse=_refuse_wan_2_2),
        "hunyuan-video-1.5": Row(
            class_name="AutoencoderKLHunyuanVideo15",
            # Its attention mask lacks the dimension of the heads: broadcasting fails for two.
            takes_batches=False,
            **_HUNYUAN,
        ),
        "ltx-2": Row(
            class_name="AutoencoderKLLTX2Video",
            needed=(*_LTX_NEEDED, "upsample_type"),
            fewest_latent_side=2,
            channels="latent_channels",
            compression=_ltx_2_compression,
            has_statistics_in_weights=True,
            refuse=_refuse_ltx,
        ),
        "mochi": Row(
            class_name="AutoencoderKLMochi",
            needed=(
                "latent_channels",
                "temporal_expansions",
                "spatial_expansions",
                *_STATISTICS,
            ),
            channels="latent_channels",
            compression=lambda c: (
                math.prod(c["temporal_expansions"]),
                math.prod(c["spatial_expansions"]),
            ),
            mid_block="decoder.block_in",
            # Before it come waves 1/128 long: to them a bfloat16 pixel is noise.
            cast_before="encoder.proj_in",
        ),
        "cosmos": Row(
            class_name="AutoencoderKLCosmos",
            needed=(
                "latent_channels",
                "patch_size",
                "spatial_compression_ratio",
                "temporal_compression_ratio",
            ),
            channels="latent_channels",
            compression=_ratios,
            has_statistics_per_frame=True,
        ),
    }
)


def read(family: str, folder: Path) -> tuple[TeacherFiles, LatentSpec]:
    """The files of the teacher in `folder`, and its latents by their config."""
    row = ROWS[family]
    files = read_files(folder, class_name=row.class_name, needed=row.needed)
    path = folder / CONFIG_NAME
    try:
        check_values(files.config)
        reason = row.refuse(files.config)
        spec = None if reason else _spec(row, files)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path} is no config of a {row.class_name}: {error}; {REMEDY}") from None
    if spec is None:
        raise UserError(f"{path} is no teacher of the family {family}: {reason}")
    return files, spec


def _spec(row: Row, files: TeacherFiles) -> LatentSpec:
    channels = int(files.config[row.channels])
    shapes = files.shapes()
    for name in _FIRST_LAYER:
        if name in shapes and (inputs := shapes[name][1:2]) != (channels,):
            raise ValueError(
                f"{row.channels} is {channels}, but the weights {name} take {inputs[0]} channels"
                if inputs
                else f"the weights {name} have no dimension of channels"
            )
    time, space = row.compression(files.config)
    mean, std = _statistics(row, files, channels)
    return LatentSpec(
        channels=channels,
        compression_t=int(time),
        compression_h=int(space),
        compression_w=int(space),
        mean=mean,
        std=std,
        # Without `post_quant_conv`, a 1x1x1 convolution of some hundred weights where there is
        # one: the published counts (238.8, 146.1, 123.4 million) are the decoder's alone.
        decoder_parameters=files.parameters("decoder."),
        latent_frames_step=row.latent_frames_step,
        fewest_latent_side=row.fewest_latent_side,
    )


def _statistics(
    row: Row, files: TeacherFiles, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the latents; diffusers' `scaling_factor` is a divisor of std."""
    config = files.config
    factor = config.get("scaling_factor") or 1.0
    if row.has_statistics_in_weights:
        where, tensors = files.folder, files.tensors(_STATISTICS)
        mean, std = (tensors[name].double().flatten().tolist() for name in _STATISTICS)
    else:
        where = files.folder / CONFIG_NAME
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0] * channels
        std = config.get("latents_std") or [1.0] * channels
    for name, values in zip(_STATISTICS, (mean, std), strict=True):
        frames, rest = divmod(len(values), channels)
        if rest or frames < 1 or (frames > 1 and not row.has_statistics_per_frame):
            raise CorruptFile(
                f"{where}: {name} has {len(values)} values for {channels} channels; {REMEDY}"
            )
    std = [value / factor for value in std]
    if len(mean) != len(std):
        raise CorruptFile(
            f"{where}: latents_mean has {len(mean)} values, latents_std {len(std)}; {REMEDY}"
        )
    if strange := [v for v in mean if not math.isfinite(v)]:
        raise CorruptFile(f"{where}: latents_mean has {strange[0]}, not a finite number; {REMEDY}")
    if strange := [v for v in std if not (math.isfinite(v) and v > 0)]:
        raise CorruptFile(f"{where}: latents_std has {strange[0]}, not above 0; {REMEDY}")
    return tuple(map(float, mean)), tuple(std)


def build(family: str, files: TeacherFiles) -> Network:
    """The network with its weights, on the CPU; every weight must fit."""
    row = ROWS[family]
    with quiet_imports():
        from diffusers.models import autoencoders
    network = getattr(autoencoders, row.class_name)
    try:
        with quiet_imports():
            module = network.from_config(dict(files.config))
            module.load_state_dict(files.tensors())
    # What a network of diffusers' raises where a value is not what it takes for granted.
    except (
        RuntimeError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise CorruptFile(
            f"{files.folder / CONFIG_NAME} and the weights beside it do not make a "
            f"{row.class_name}: {str(error)[:500]}; {REMEDY}"
        ) from None
    # Else HunyuanVideo blends overlapping chunks of 16 frames: not what its weights say, and
    # without one value for a feature.
    module.use_framewise_encoding = module.use_framewise_decoding = False

    def encode(video: Tensor, generator: torch.Generator | None) -> Tensor:
        try:
            posterior = module.encode(video).latent_dist
        except NotImplementedError as error:  # Cosmos pools, which a CPU does in float32 alone
            raise UserError(
                f"{row.class_name} cannot encode in {module.dtype} on {video.device.type} "
                f"({error}): load it in float32"
            ) from None
        latents: Tensor = posterior.sample(generator) if generator else posterior.mode()
        return latents

    def decode(latents: Tensor) -> Tensor:
        decoded: Tensor = module.decode(latents).sample
        return decoded

    if row.cast_before:
        module.get_submodule(row.cast_before).register_forward_pre_hook(
            lambda _layer, arguments: (arguments[0].to(module.dtype), *arguments[1:])
        )
    ups = {f"up_block_{i}": block for i, block in enumerate(module.decoder.up_blocks)}
    return Network(
        module=module,
        encode=encode,
        decode=decode,
        blocks={"mid_block": module.get_submodule(row.mid_block), **ups},
        takes_batches=row.takes_batches,
        video_dtype=torch.float32 if row.cast_before else None,
    )
