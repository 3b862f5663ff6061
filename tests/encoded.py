"""A customer whose clips are cut and encoded: a tiny teacher, and a student of a few steps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import zarr

from tests import configs
from tests.distill.conftest import smooth_video
from turbo_vaed.dataset.clip_arrays import create_clip_array
from turbo_vaed.dataset.latents import to_network
from turbo_vaed.models.teachers import load_teacher
from turbo_vaed.workspace import Workspace

SPLITS = ("train", "train", "train", "val", "test")
STEPS = 6
TEACHER = "assets/teachers/tiny-ltx"


def customer(root: Path, teacher_folder: Path) -> Workspace:
    """Five encoded clips of 5 frames of 32x32; the gate requires next to nothing besides 1 dB."""
    configs.copy_to(root)
    shutil.copytree(teacher_folder, root / TEACHER)
    workspace = Workspace.load(root, "demo")
    params = workspace.params
    params = dataclasses.replace(
        params,
        clip=dataclasses.replace(params.clip, frames=5, size=32),
        encode=dataclasses.replace(params.encode, tile=None),
        thresholds=dataclasses.replace(
            params.thresholds, min_psnr=1.0, min_psnr_retention=0.01, min_ssim=-1.0,
            min_ms_ssim=-1.0, min_worst_psnr=0.01, max_flicker=1e6, min_detail_retention=0.0,
        ),
        distill=dataclasses.replace(
            params.distill, student="auto", student_fraction=1.0, start="random", steps=STEPS,
            batch_size=2, micro_batch=2, crop=32, workers=1, weight_teacher=0.0,
            checkpoint_every=2, validate_every=2, precision="fp32", learning_rate=2e-3,
            ema_decay=0.5,
        ),
    )  # fmt: skip
    workspace = dataclasses.replace(workspace, params=params)
    scene = smooth_video(np.random.default_rng(0))  # one, so that six steps show on the others
    video = np.stack([np.roll(scene, shift, axis=2) for shift, _ in enumerate(SPLITS)])
    teacher = load_teacher("ltx-video", teacher_folder)
    latents = teacher.encode(to_network(video)).numpy()
    for stage, store, name, values in (
        ("clip", "clips.zarr", "video", video),
        ("encode", "latents.zarr", "latents", latents),
    ):
        group = zarr.open_group(str(workspace.folder(stage) / store), mode="w", zarr_format=3)
        array = create_clip_array(
            group, name, clips=len(values), shape=values.shape[1:], dtype=str(values.dtype),
            is_compressed=False,
        )  # fmt: skip
        array[:] = values
    clips = [{"index": i, "split": split} for i, split in enumerate(SPLITS)]
    (workspace.folder("clip") / "clips.json").write_text(
        json.dumps({"frames": 5, "size": 32, "clips": clips})
    )
    facts = {"compression": [4, 8, 8], "teacher_decoder_parameters": 10**6, "tiles": 1}
    facts["teacher_sha256"] = teacher.sha256
    (workspace.folder("encode") / "latents.json").write_text(json.dumps(facts))
    return workspace
