"""A small set of clips and latents, made up, in the layout that the stages write."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import zarr

from turbo_vaed.costs import Budget
from turbo_vaed.distill.loop import Job
from turbo_vaed.models import DecoderConfig
from turbo_vaed.params import DistillParams

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
FRAMES, SIZE, CLIPS = 5, 32, 6


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


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """`make_job(**changes to the params)`; budget_usd and usd_per_hour are taken out of them."""
    rng = np.random.default_rng(0)
    videos = np.stack([smooth_video(rng) for _ in range(CLIPS)])
    clips, latents = tmp_path / "clip", tmp_path / "encode"
    group = zarr.open_group(str(clips / "clips.zarr"), mode="w")
    group.create_array("video", data=videos)
    splits = ["train"] * 4 + ["val", "test"]
    index = [{"index": i, "split": split} for i, split in enumerate(splits)]
    (clips / "clips.json").write_text(json.dumps({"clips": index}))
    group = zarr.open_group(str(latents / "latents.zarr"), mode="w")
    group.create_array("latents", data=np.stack([encode(v) for v in videos]))
    group.create_array("reconstruction", data=videos)
    facts = {"compression": [2, 4, 4], "teacher_decoder_parameters": 10**6}
    (latents / "latents.json").write_text(json.dumps(facts))

    def make(budget_usd: str = "1", usd_per_hour: str = "0.01", **changes: object) -> Job:
        values: dict[str, object] = {
            "student": "own",
            "start": "random",
            "steps": 6,
            "batch_size": 2,
            "crop": 16,
            "workers": 1,
            "learning_rate": 1e-3,
            "betas": (0.9, 0.95),
            "weight_decay": 0.0,
            "warmup_share": 0.1,
            "ema_decay": 0.9,
            "weight_source": 1.0,
            "weight_teacher": 0.5,
            "checkpoint_every": 3,
            "validate_every": 3,
            "precision": "fp32",
            "seed": 1,
        }
        return Job(
            clips=clips,
            latents=latents,
            student=STUDENT,
            params=DistillParams(**(values | changes)),
            budget=Budget.plan(
                run_usd=Decimal(budget_usd),
                warn_share=0.8,
                reserve_seconds=0,
                usd_per_hour=Decimal(usd_per_hour),
            ),
            usd_per_hour=Decimal(usd_per_hour),
            spent_usd=Decimal(0),
            started_at=time.time(),
            progress_file=tmp_path / "progress.jsonl",
        )

    return make
