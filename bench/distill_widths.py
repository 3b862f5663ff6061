"""Training steps of the published students, at their widths, on random latents and targets.

Clips, latents and the teacher's features are random, in the files that the loop reads; every step
is a real one: losses, gradients, optimizer, average. `bench/distill.py` runs this, each student in
a process of its own, so that its memory is its own.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels, h w latent positions.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.decode import CASES, resident_bytes  # noqa: E402
from turbo_vaed.config.load import load  # noqa: E402
from turbo_vaed.config.schema import DistillParams  # noqa: E402
from turbo_vaed.costs import Budget  # noqa: E402
from turbo_vaed.dataset.clip_arrays import create_clip_array  # noqa: E402
from turbo_vaed.distill.job import Job, RunCosts  # noqa: E402
from turbo_vaed.distill.loop import Loop  # noqa: E402
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan  # noqa: E402
from turbo_vaed.models import PRESETS, DecoderConfig  # noqa: E402
from turbo_vaed.models.alignment import block_name, student_shapes  # noqa: E402

TEACHER_CHANNELS = {"ltx": 512, "hunyuan": 512, "cogvideox": 512, "dc": 1024}
"""Of the published teachers at the aligned blocks."""
CPU_SIZES = {"ltx": (9, 128), "hunyuan": (9, 64), "cogvideox": (9, 64), "dc": (8, 128)}
"""Frames, and side in pixels."""
FULL_RECIPE = {
    "weight_source": 1.0,
    "weight_teacher": 0.25,
    "perceptual": "gradient",
    "weight_perceptual": 1.0,
    "weight_feature": 1.0,
}


def latent_shape(config: DecoderConfig, frames: int, side: int) -> tuple[int, int, int, int]:
    """(C, t, h, w)."""
    lone = 0 if config.is_video_dc_ae else 1
    scale = side // config.spatial_compression
    t = (frames - lone) // config.temporal_compression + lone
    return config.latent_channels, t, scale, scale


def feature_shapes(case: str, config: DecoderConfig, latents: tuple[int, ...]) -> dict[str, Any]:
    """(C, T, H, W) of the teacher's features: what the published projections are shuffled to."""
    ours, channels = student_shapes(config, latents), TEACHER_CHANNELS[case]  # type: ignore[arg-type]
    found = {}
    for i, (_, projected) in zip(
        config.aligned_blks_indices, config.aligned_feature_projection_dim, strict=True
    ):
        _, t, h, w = ours[block_name(i)]
        found[block_name(i)] = {
            1: (channels, t, h, w),
            4: (channels, t, 2 * h, 2 * w),
            8: (channels, 2 * t - 1, 2 * h, 2 * w),
        }[projected // channels]
    return found


def write_random(case: str, config: DecoderConfig, frames: int, side: int, root: Path) -> None:
    """Two random clips, one to train on, with latents and targets."""
    rng = np.random.default_rng(0)
    shape = latent_shape(config, frames, side)
    video = rng.integers(0, 256, (2, frames, side, side, 3), dtype=np.uint8)
    arrays = {
        "clips.zarr": {"video": video},
        "latents.zarr": {"latents": rng.normal(size=(2, *shape)).astype(np.float32)},
        "targets.zarr": {"reconstruction": video}
        | {
            f"features/{name}": rng.normal(size=(2, *each)).astype(np.float16)
            for name, each in feature_shapes(case, config, shape).items()
        },
    }
    for store, held in arrays.items():
        group = zarr.open_group(str(root / store), mode="w", zarr_format=3)
        for name, values in held.items():
            create_clip_array(
                group,
                name,
                clips=2,
                shape=values.shape[1:],
                dtype=str(values.dtype),
                is_compressed=False,
            )[:] = values
    clips = [{"index": i, "split": split} for i, split in enumerate(("train", "val"))]
    compression = [config.temporal_compression, *[config.spatial_compression] * 2]
    blocks = [block_name(i) for i in config.aligned_blks_indices]
    for name, document in {
        "clips": {"clips": clips},
        "latents": {"compression": compression},
        "targets": {"reconstruction": True, "blocks": blocks},
    }.items():
        (root / f"{name}.json").write_text(json.dumps(document))


def random_job(case: str, frames: int, side: int, root: Path, **changes: Any) -> Job:
    """The full recipe on random clips below `root`, batch 1."""
    config = PRESETS[CASES[case][0]]
    write_random(case, config, frames, side, root)
    demo = load(ROOT, "demo").distill
    never = {"checkpoint_every": 10**9, "validate_every": 10**9}
    one = {"batch_size": 1, "micro_batch": 1, "workers": 1, "min_workers": 1, "crop": side}
    changed = {**vars(demo), "start": "random", **FULL_RECIPE, **never, **one, **changes}
    blocks = tuple(block_name(i) for i in config.aligned_blks_indices)
    return Job(
        clips=str(root),
        latents=str(root),
        targets=str(root),
        plan=TeacherTargetsPlan(blocks=blocks, reconstruction=True, mode="cache", reason=""),
        teacher_family="",
        teacher_weights=root,
        student=config,
        params=DistillParams(**changed),
        data_key=case,
        costs=RunCosts(
            budget=Budget(run_usd=Decimal(1), warn_share=Decimal(1), reserve_usd=Decimal(0)),
            usd_per_hour=Decimal(0),
            spent_usd=Decimal(0),
            now_usd_per_hour=Decimal(0),
            checkpoint_seconds=60.0,
            at=time.time(),
        ),
    )


def steps_of(job: Job, device: torch.device) -> tuple[Loop, list[float]]:
    """Run a job; the loop, and the seconds of its steps after the first two."""
    rows: list[dict[str, Any]] = []
    loop = Loop(job, on_event=rows.append, save=lambda _: None, device=device)
    loop.run()
    seconds = [row["step_seconds"] for row in rows if row["event"] == "step"]
    return loop, seconds[2:]


def one_on_cpu(case: str) -> dict[str, Any]:
    """A student's steps in this very process."""
    frames, side = CPU_SIZES[case]
    with tempfile.TemporaryDirectory() as folder:
        job = random_job(case, frames, side, Path(folder), steps=5)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        loop, seconds = steps_of(job, torch.device("cpu"))
    return {
        "frames": frames,
        "side": side,
        "precision": loop.precision,
        "parameters_in_training": sum(p.numel() for p in loop.training.student.parameters()),
        "seconds_per_step": round(statistics.median(seconds), 3),
        "memory_mb": round((resident_bytes("VmHWM") - before) / 1e6),
        "loss_is_finite": all(np.isfinite(row["loss"]) for row in loop.history),
    }


def on_cpu(threads: int) -> dict[str, Any]:
    """Seconds and memory (weights, gradients, optimizer, averages and all) of each student."""
    found = {}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--threads", str(threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {case}: {found[case]}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--case", choices=CASES, required=True)
    arguments.add_argument("--threads", type=int, required=True)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(one_on_cpu(given.case)))
