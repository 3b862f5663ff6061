"""Stage `encode`: clips -> the teacher's latents, and its own reconstructions of the test clips.

Those are what later stages compare a student with. What a student is trained towards is another
stage's business, which knows what it costs: `distill`.
"""

from __future__ import annotations

import functools

from turbo_vaed.dataset.clip_store import read_description
from turbo_vaed.dataset.latents import encode_clips
from turbo_vaed.models.teachers import describe_teacher, load_teacher
from turbo_vaed.planning.compatibility import check_clips, check_tile
from turbo_vaed.planning.pricing import spending_of
from turbo_vaed.planning.worker_files import (
    CLIPS,
    TEACHER,
    fetch_latents,
    for_workers,
    keep_latents,
    new_latents,
)
from turbo_vaed.runtime.files import write_json
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

STAGE_VERSION = 1
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Write encode/latents.zarr and encode/latents.json.

    Raises:
        UserError: the teacher takes no clips of that many frames or that size.
        BudgetRefused: the price is unknown, or the budget does not hold the rest of the clips.
        CorruptFile: a file of the teacher or the clips' description is broken.
        Unreachable, Fault: as `encode_clips`, and of a bucket for its workers.
    """
    params, settings = workspace.params.encode, Settings.from_environment(workspace.root)
    spending = spending_of(workspace, settings, "encode")
    weights = workspace.teacher_weights()
    facts = describe_teacher(params.teacher_family, weights)
    clip_folder = workspace.folder("clip")
    description = read_description(clip_folder / "clips.json")
    frames, size, count = description["frames"], description["size"], len(description["clips"])
    spec = facts.latent_spec
    check_clips(spec, frames, size)
    tile = params.tile or size
    check_tile(spec, tile, size)
    tests = [clip["index"] for clip in description["clips"] if clip["split"] == "test"]
    shape = spec.latent_shape(frames, size, size)
    clips = for_workers(workspace, settings, CLIPS)
    teacher = for_workers(workspace, settings, TEACHER)
    with workspace.writing("encode") as folder:
        written = new_latents(workspace, settings, folder)
        encode_clips(
            f"{clips}/clips.zarr",
            f"{written}/latents.zarr",
            make_codec=functools.partial(load_teacher, params.teacher_family, teacher),
            latent_shape=shape,
            reconstructed=tests,
            tiled=[clip["index"] for clip in description["clips"] if clip["split"] == "train"],
            tiles=size // tile,
            batch_size=params.batch_size,
            ray_address=settings.ray_address,
            check_budget=lambda seconds: spending.require(seconds, "encoding"),
        )
        fetch_latents(workspace, settings, written, folder)
        document = {
            "family": params.teacher_family,
            "channels": spec.channels,
            "compression": [spec.compression_t, spec.compression_h, spec.compression_w],
            "tiles": size // tile,
            "mean": spec.mean,
            "std": spec.std,
            "teacher_sha256": facts.sha256,
            "teacher_decoder_parameters": facts.decoder_parameters,
            "clips": count,
            "reconstructed": tests,
        }
        write_json(folder / "latents.json", document)
        keep_latents(workspace, settings, written, folder)
    return {
        "clips": count,
        "latent_shape": list(shape),
        "teacher_sha256": facts.sha256,
        "teacher_decoder_parameters": facts.decoder_parameters,
    }
