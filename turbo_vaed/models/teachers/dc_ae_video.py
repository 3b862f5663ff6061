"""The family dc-ae-video: Open-Sora 2.0's Video DC-AE, written in `turbo_vaed.models.dc_ae`.

Published as hpcai-tech/Open-Sora-v2-Video-DC-AE on the hub, one file next to the diffusion model's
and no config: the file's name is the model's. Other folders have a config.json as
`DcAeConfig.from_published` takes it.

There is no posterior: `encode` gives the one code of a video, with a generator too.

Features: `mid_block` is what `project_in` puts out, `up_block_0`, ... are the stages from the
deepest on, `up_block_1` the first that upsamples. So the published student aligns its blocks 0, 1
and 2 with 1024 channels each, at its own resolution: 1x, 1x and 2x of the latents in time and
space. (Its middle block and first up block do not upsample either.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.dc_ae import DcAe, DcAeConfig, check_weights
from turbo_vaed.models.teachers.base import LatentSpec, Network
from turbo_vaed.models.teachers.files import CONFIG_NAME, REMEDY, TeacherFiles, read_files
from turbo_vaed.models.teachers.files import WEIGHTS_NAME as DIFFUSERS_NAME

__all__ = ["WEIGHTS_NAME", "build", "decoder_blocks", "read"]
WEIGHTS_NAME = "F32T4C128_AE.safetensors"
"""As published."""
_PUBLISHED_NAME = "dc-ae-f32t4c128"
_OTHER_NAMES = ("model.safetensors", DIFFUSERS_NAME)


def read(family: str, folder: Path) -> tuple[TeacherFiles, LatentSpec]:
    """The files of the teacher in `folder`, and its latents by their config."""
    name = _weights_name(folder)
    is_published = name == WEIGHTS_NAME
    files = read_files(
        folder,
        class_name=None,
        weights_name=name,
        published_config={"model_name": _PUBLISHED_NAME} if is_published else None,
    )
    config = _config(family, files)
    try:
        check_weights(config, files.shapes())
    except ValueError as error:
        raise CorruptFile(f"{folder / name}: {error}; {REMEDY}") from None
    return files, LatentSpec(
        channels=config.latent_channels,
        compression_t=config.temporal_compression,
        compression_h=config.spatial_compression,
        compression_w=config.spatial_compression,
        mean=(0.0,) * config.latent_channels,
        std=(config.scaling_factor,) * config.latent_channels,
        decoder_parameters=files.parameters("decoder."),
        has_lone_first_frame=False,
        fewest_latent_frames=2,  # one latent frame decodes to one frame: an image
    )


def build(family: str, files: TeacherFiles) -> Network:
    """The network with its weights, on the CPU."""
    network = DcAe.from_weights(_config(family, files), files.tensors())

    def encode(video: Tensor, _generator: torch.Generator | None) -> Tensor:
        return network.encode(video)

    return Network(
        module=network, encode=encode, decode=network.decode, blocks=decoder_blocks(network)
    )


def decoder_blocks(network: DcAe) -> dict[str, nn.Module]:
    """By name, deepest first; see the module's docstring."""
    stages = enumerate(reversed(network.decoder.stages))
    return {"mid_block": network.decoder.project_in, **{f"up_block_{i}": s for i, s in stages}}


def _weights_name(folder: Path) -> str:
    there = [name for name in (WEIGHTS_NAME, *_OTHER_NAMES) if (folder / name).is_file()]
    if len(there) > 1:
        raise UserError(f"{folder} holds {' and '.join(there)}: leave one, the teacher's")
    return there[0] if there else WEIGHTS_NAME


def _config(family: str, files: TeacherFiles) -> DcAeConfig:
    try:
        return DcAeConfig.from_published(files.config)
    except ValueError as error:
        raise CorruptFile(
            f"{files.folder / CONFIG_NAME} is no config of the family {family}: {error}; {REMEDY}"
        ) from None
