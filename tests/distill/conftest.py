"""A small set of clips and latents, made up, in the layout that the stages write."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import zarr

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Budget
from turbo_vaed.dataset.clip_arrays import create_clip_array
from turbo_vaed.distill.job import Job, RunCosts, data_key
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan
from turbo_vaed.models import DecoderConfig

STUDENT = DecoderConfig(
    latent_channels=6,
    decoder_block_out_channels=(32, 16),
    decoder_layers_per_block=(1, 1, 1),
    spatio_temporal_scaling=(True, False),
    decoder_spatio_only=(False, False),
    decoder_is_dw_conv=(False, True, True),
    decoder_dw_kernel_size=3,
    patch_size=2,
)
"""Compression 2 in time, 4 in space."""
ALIGNED = replace(STUDENT, aligned_blks_indices=(0,), aligned_feature_projection_dim=((16, 8),))
"""Its mid block is compared with a `toy_feature`, which has twice the resolution."""
FRAMES, SIZE = 5, 32
SPLITS = ["train"] * 4 + ["val", "test"]
FEATURE = "up_block_0"


def smooth_video(rng: np.random.Generator) -> np.ndarray:
    """A moving gradient with a blob, uint8 (T, H, W, 3)."""
    t, y, x = np.meshgrid(*(np.arange(n) for n in (FRAMES, SIZE, SIZE)), indexing="ij")
    channels = [
        0.5 + 0.4 * np.sin((a * x + b * y) / SIZE * 3 + c * t / 4 + d)
        for a, b, c, d in rng.uniform(-1, 1, (3, 4))
    ]
    return (np.stack(channels, -1) * 255).astype(np.uint8)


def encode(video: np.ndarray) -> np.ndarray:
    """A linear code: block means and contrasts, (6, 3, 8, 8)."""
    padded = np.concatenate([video[:1], video]).astype(np.float32) / 127.5 - 1
    blocks = padded.reshape(3, 2, 8, 4, 8, 4, 3)
    mean = blocks.mean((1, 3, 5))
    slope = blocks[:, :, :, :, :, 2:].mean((1, 3, 5)) - mean
    return np.concatenate([mean, 4 * slope], -1).transpose(3, 0, 1, 2)


def toy_feature(clip: int) -> np.ndarray:
    """Of twice the latents' resolution, (2, 3, 16, 16) float16: row and column, for each clip."""
    frames, rows, columns = np.indices((3, 16, 16), dtype=np.float16)
    return np.stack([100 * clip + rows, frames + columns / 32])


def write_toy_data(folder: Path, *, blocks: tuple[str, ...] = ()) -> tuple[Path, Path, Path]:
    """Clips, latents and a whole cache of targets; returns their folders.

    The teacher's video is the source in 32 shades, so that a test can distinguish them.

    Args:
        blocks: names of the features in the cache, each a `toy_feature`.
    """
    rng = np.random.default_rng(0)
    videos = np.stack([smooth_video(rng) for _ in SPLITS])
    taught = videos // 8 * 8
    clips, latents, targets = folder / "clip", folder / "encode", folder / "targets"
    of_split = {s: [i for i, split in enumerate(SPLITS) if split == s] for s in set(SPLITS)}
    _write(clips / "clips.zarr", "video", videos, range(len(SPLITS)))
    index = [{"index": i, "split": split} for i, split in enumerate(SPLITS)]
    (clips / "clips.json").write_text(json.dumps({"clips": index}))
    store = latents / "latents.zarr"
    _write(store, "latents", np.stack([encode(v) for v in videos]), range(len(SPLITS)))
    _write(store, "reconstruction", taught, of_split["test"])
    facts = {"compression": [2, 4, 4], "teacher_decoder_parameters": 10**6}
    (latents / "latents.json").write_text(json.dumps(facts | {"teacher_sha256": "5ha" * 20}))
    features = np.stack([toy_feature(i) for i in range(len(SPLITS))])
    for name, values in {
        "reconstruction": taught, **{f"features/{block}": features for block in blocks}
    }.items():  # fmt: skip
        _write(targets / "targets.zarr", name, values, of_split["train"])
    held = {"reconstruction": True, "blocks": blocks}
    (targets / "targets.json").write_text(json.dumps(held))
    return clips, latents, targets


def _write(store: Path, name: str, values: np.ndarray, clips: Iterable[int]) -> None:
    """An array with a chunk for each of `clips`."""
    group = zarr.open_group(str(store), mode="a", zarr_format=3)
    array = create_clip_array(
        group,
        name,
        clips=len(values),
        shape=values.shape[1:],
        dtype=str(values.dtype),
        is_compressed=False,
    )
    for clip in clips:
        array[clip] = values[clip]


@pytest.fixture
def toy_data(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Folders of clips, latents and targets, one feature among them."""
    return write_toy_data(tmp_path, blocks=(FEATURE,))


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """`make_job(**changes to the params)`; budget_usd and usd_per_hour are taken out of them."""
    clips, latents, targets = write_toy_data(tmp_path, blocks=("mid_block",))

    def make(budget_usd: str = "1", usd_per_hour: str = "0.01", **changes: object) -> Job:
        values: dict[str, object] = {
            "student": "own",
            "start": "random",
            "steps": 6,
            "batch_size": 2,
            "micro_batch": 2,
            "crop": 16,
            "workers": 1,
            "min_workers": 1,
            "learning_rate": 1e-3,
            "optimizer": "muon",
            "betas": (0.9, 0.95),
            "weight_decay": 0.0,
            "warmup_share": 0.1,
            "ema_decay": 0.9,
            "weight_source": 1.0,
            "weight_teacher": 0.5,
            "perceptual": "none",
            "perceptual_weights": None,
            "weight_perceptual": 1.0,
            "weight_feature": 0.0,
            "weight_adversarial": 0.0,
            "adversarial_start": 0,
            "teacher_targets": "cache",
            "compile": "off",
            "checkpoint_every": 3,
            "keep_checkpoints": 3,
            "validate_every": 3,
            "precision": "fp32",
            "seed": 1,
            "stop_psnr_margin_db": None,
            "stop_usd_per_tenth_db": None,
        }
        return Job(
            clips=str(clips),
            latents=str(latents),
            targets=str(targets),
            plan=TeacherTargetsPlan(blocks=(), reconstruction=True, mode="cache", reason="made up"),
            teacher_family="ltx-video",
            teacher_weights=tmp_path / "no-teacher",
            student=ALIGNED if changes.get("weight_feature") else STUDENT,
            params=DistillParams(**(values | changes)),
            data_key=data_key(clips, latents),
            costs=RunCosts(
                budget=Budget.plan(
                    run_usd=Decimal(budget_usd),
                    warn_share=0.8,
                    reserve_seconds=0,
                    usd_per_hour=Decimal(usd_per_hour),
                ),
                usd_per_hour=Decimal(usd_per_hour),
                spent_usd=Decimal(0),
                now_usd_per_hour=Decimal(usd_per_hour),
                checkpoint_seconds=60.0,
                at=time.time(),
            ),
        )

    return make
