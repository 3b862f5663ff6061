"""The known families of teachers, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_DIFFUSERS = "turbo_vaed.models.teachers.diffusers_vae"

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "ltx-video": _DIFFUSERS,
        "hunyuan-video": _DIFFUSERS,
        "cogvideox": _DIFFUSERS,
        "wan-2.1": _DIFFUSERS,
        "wan-2.2": _DIFFUSERS,
        "hunyuan-video-1.5": _DIFFUSERS,
        "ltx-2": _DIFFUSERS,
        "mochi": _DIFFUSERS,
        "cosmos": _DIFFUSERS,
        "dc-ae-video": "turbo_vaed.models.teachers.dc_ae_video",
    }
)
"""Family -> the module that knows it. It has

    WEIGHTS_NAME                                                         of its one weights file
    read(family: str, folder: Path) -> tuple[TeacherFiles, LatentSpec]   from files alone
    build(family: str, files: TeacherFiles) -> Network                   with its weights, CPU

Both raise UserError or CorruptFile as `turbo_vaed.models.teachers.load_teacher` says.
"""
