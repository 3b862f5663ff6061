"""Teachers: the customer's heavy video VAE, from a local folder or the Hugging Face hub.

What differs from family to family is a row in `diffusers_vae.py`, or a module of its own.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.teachers.base import (
    LatentSpec,
    Network,
    Teacher,
    TeacherFacts,
    TeacherFlops,
)
from turbo_vaed.models.teachers.families import FAMILIES
from turbo_vaed.models.teachers.files import TeacherFiles
from turbo_vaed.models.teachers.hub import download, locate
from turbo_vaed.runtime.import_noise import quiet_imports
from turbo_vaed.storage.cache import local_copy
from turbo_vaed.storage.urls import is_remote

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "LatentSpec",
    "Network",
    "Teacher",
    "TeacherFacts",
    "TeacherFiles",
    "TeacherFlops",
    "describe_teacher",
    "fetch_teacher",
    "load_teacher",
    "read_spec",
    "teacher_flops",
]


def describe_teacher(family: str, weights: str | Path) -> TeacherFacts:
    """The facts of a teacher from its files, without building the network.

    Args: as `load_teacher`.

    Raises: as `load_teacher`.
    """
    files, spec = _read(family, weights)
    return TeacherFacts(family=family, latent_spec=spec, sha256=files.sha256())


def read_spec(family: str, weights: str | Path) -> LatentSpec:
    """As `describe_teacher`, of the latents alone: reads headers, and hashes no weights.

    Args: as `load_teacher`.

    Raises: as `load_teacher`.
    """
    return _read(family, weights)[1]


def load_teacher(
    family: str,
    weights: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """The teacher, ready to encode and decode.

    Args:
        family: one of `FAMILIES`.
        weights: a folder with config.json and safetensors, its copy in a bucket (s3://…), or
            `ORG/NAME@COMMIT` or `ORG/NAME/SUBFOLDER@COMMIT` on the hub.
        dtype: of the weights; float32 by default.
        device: where it runs.

    Raises:
        UserError: an unknown family or one that the files are not of, no such folder, pickled
            weights, a hub id without a commit, or a variant that cannot be a teacher here.
        CorruptFile: a file is missing, cut short, or does not fit the others.
        Unreachable: the hub does not answer, or has no such files.
    """
    import torch

    with local_copy(weights) if is_remote(weights) else nullcontext(weights) as place:
        files, spec = _read(family, place)
        facts = TeacherFacts(family=family, latent_spec=spec, sha256=files.sha256())
        network = _module(family).build(family, files)
    with quiet_imports():
        network.module.to(device=device, dtype=dtype or torch.float32)
    return Teacher(network, facts)


def teacher_flops(
    family: str, weights: str | Path, frames: int, height: int, width: int
) -> TeacherFlops:
    """What a teacher computes for one clip of a legal length and size; nothing is computed.

    Args:
        family, weights: as `load_teacher`.
        frames, height, width: of the clip, in pixels.

    Raises: as `load_teacher`.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    files, spec = _read(family, weights)
    network = _module(family).build(family, files)
    network.module.to("meta")
    clip = torch.empty(1, 3, frames, height, width, device="meta")
    latents = torch.empty(1, *spec.latent_shape(frames, height, width), device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as encoding:
            network.encode(clip, None)
        with FlopCounterMode(display=False) as decoding:
            network.decode(latents)
    return TeacherFlops(
        encode=int(encoding.get_total_flops()), decode=int(decoding.get_total_flops())
    )


def _read(family: str, weights: str | Path) -> tuple[TeacherFiles, LatentSpec]:
    module = _module(family)
    found: tuple[TeacherFiles, LatentSpec] = module.read(
        family, locate(weights, module.WEIGHTS_NAME)
    )
    return found


def fetch_teacher(family: str, hub_id: str, folder: Path) -> TeacherFacts:
    """Download a teacher from the hub into `folder`, whole or not at all; it must be of `family`.

    A download that was interrupted goes on where it was.

    Raises: as `load_teacher`; and UserError where `folder` is there already.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or take another name")
    # Not in the folder of all teachers, which DVC watches; and another one for another id.
    mark = hashlib.sha256(hub_id.encode()).hexdigest()[:12]
    partial = folder.parent.with_name(f".{folder.name}.{mark}.partial")
    try:
        found = download(hub_id, _module(family).WEIGHTS_NAME, partial)
        facts = describe_teacher(family, found)
    except (UserError, CorruptFile):  # nothing to go on from
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's notes
    folder.parent.mkdir(parents=True, exist_ok=True)
    found.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)  # what a subfolder was in
    return facts


def _module(family: str) -> Any:
    if family not in FAMILIES:
        raise UserError(f"unknown teacher family {family!r}; known: {', '.join(FAMILIES)}")
    return import_module(FAMILIES[family])
