"""A few steps of the real loop teach a derived student to read its latents, whatever the family.

B batch, C channels, T frames, t latent frames, H W pixels.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Budget
from turbo_vaed.dataset.clip_arrays import create_clip_array
from turbo_vaed.dataset.latents import to_network
from turbo_vaed.distill import student
from turbo_vaed.distill.job import Job, RunCosts
from turbo_vaed.distill.linear_start import start_decoder
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.sizing import student_for
from turbo_vaed.models.teachers import FAMILIES, LatentSpec, load_teacher

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "train", "train", "val")
BRIGHT = (0.85,) * 4
COLOURFUL = (0.15, 0.4, 0.65, 0.9)


def smooth_clips(spec: LatentSpec, colours: Sequence[float]) -> np.ndarray[Any, Any]:
    """Drifting gradients about a colour for each clip, uint8 (N,T,H,W,3), a position or two of
    latents wide."""
    frames, side = spec.nearest_frames(9)[0], max(16, spec.compression_h)
    rng = np.random.default_rng(0)
    t, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (frames, side, side)), indexing="ij")
    clips = [
        np.stack([np.sin(a * x + b * y + c * t + d) for a, b, c, d in rng.uniform(-2, 2, (3, 4))])
        for _ in SPLITS
    ]
    video = np.stack(clips) * 0.1 + np.array(colours)[:, None, None, None, None]
    return (video.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 4, 1)


def make_job(
    family: str,
    folder: Path,
    place: Path,
    learning_rate: float,
    *,
    colours: Sequence[float] = BRIGHT,
) -> Job:
    """Clips, what the teacher makes of them, and a student for it, as the stages write them."""
    teacher = load_teacher(family, folder)
    spec = teacher.latent_spec
    clips = smooth_clips(spec, colours)
    latents = teacher.encode(to_network(clips))
    keep(place / "clip" / "clips.zarr", "video", clips)
    index = [{"index": i, "split": split} for i, split in enumerate(SPLITS)]
    (place / "clip" / "clips.json").write_text(json.dumps({"clips": index}))
    keep(place / "encode" / "latents.zarr", "latents", latents.numpy())
    facts = {"compression": [spec.compression_t, spec.compression_h, spec.compression_w]}
    (place / "encode" / "latents.json").write_text(json.dumps(facts))
    rate = Decimal("0.01")
    return Job(
        clips=str(place / "clip"),
        latents=str(place / "encode"),
        targets=None,
        plan=TeacherTargetsPlan(blocks=(), reconstruction=True, mode="recompute", reason=""),
        teacher_family=family,
        teacher_weights=folder,
        data_key="made up",
        student=smallest_student(spec),
        params=replace(
            DistillParams(),
            student="auto",
            start="random",
            steps=20,
            batch_size=2,
            micro_batch=2,
            crop=clips.shape[2],
            workers=1,
            learning_rate=learning_rate,
            weight_decay=0.0,
            warmup_share=0.0,
            ema_decay=0.9,
            checkpoint_every=20,
            validate_every=20,
            precision="fp32",
        ),
        costs=RunCosts(
            budget=Budget.plan(
                run_usd=Decimal(1), warn_share=0.8, reserve_seconds=0, usd_per_hour=rate
            ),
            usd_per_hour=rate,
            spent_usd=Decimal(0),
            now_usd_per_hour=rate,
            checkpoint_seconds=60.0,
            at=time.time(),
        ),
    )


def smallest_student(spec: LatentSpec) -> DecoderConfig:
    """Of 170,000 parameters, or as few as there can be; the tiny teachers are hardly larger."""
    grown = replace(spec, decoder_parameters=10_000_000)  # as a real teacher's
    try:
        return student_for(grown, 0.017)
    except ValueError as too_small:
        (smallest,) = re.findall(r"the smallest student has (\d+)", str(too_small))
    return student_for(grown, int(smallest) / grown.decoder_parameters)


def keep(store: Path, name: str, values: np.ndarray[Any, Any]) -> None:
    """An array of a chunk per clip."""
    group = zarr.open_group(str(store), mode="a", zarr_format=3)
    array = create_clip_array(
        group, name, clips=len(values), shape=values.shape[1:], dtype=str(values.dtype),
        is_compressed=False,
    )  # fmt: skip
    for clip, value in enumerate(values):
        array[clip] = value


def error_to_blind(job: Job, decoder: torch.nn.Module) -> float:
    """The student's mean squared error on the train clips, over that of the best video which is the
    same for all of them. A student that does not read its latents has 1 or more."""
    train = slice(SPLITS.count("train"))
    latents = zarr.open_group(str(Path(job.latents) / "latents.zarr"), mode="r")["latents"][train]
    pixels = zarr.open_group(str(Path(job.clips) / "clips.zarr"), mode="r")["video"][train]
    video = to_network(pixels)
    with torch.no_grad():
        decoded = decoder(torch.from_numpy(latents))
    blind = video.mean(dim=0, keepdim=True)
    return float((decoded - video).square().mean() / (blind - video).square().mean())


def trained(job: Job, **changes: Any) -> tuple[float, float, list[float]]:
    """`error_to_blind` before and after training with these params, and the loss of each step."""
    params = replace(job.params, **changes)
    steps = params.steps
    params = replace(params, checkpoint_every=steps, validate_every=steps)
    loop = Loop(replace(job, params=params), on_event=lambda event: None, save=lambda state: None)
    decoder = loop.training.student.decoder
    before = error_to_blind(job, decoder)
    assert loop.run()[0] == "finished"
    losses = [row["loss"] for row in loop.history]
    assert len(losses) == steps
    return before, error_to_blind(job, decoder), losses


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_teach_a_student_to_read_its_latents(
    make_teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """A lower loss alone may be the mean colour, learned without a look at the latents.

    It takes a random start longer to find out about them. A linear one reads them before the first
    step; here with less contrast, which the steps have to restore.
    """

    def pale_start(decoder: TurboVaedDecoder, *clips: torch.Tensor) -> None:
        start_decoder(decoder, *clips)
        with torch.no_grad():
            for weights in decoder.conv_out.parameters():
                weights.mul_(0.3)

    monkeypatch.setattr(student, "start_decoder", pale_start)
    job = make_job(family, make_teacher(family), tmp_path, 3e-3, colours=COLOURFUL)
    before, after, _ = trained(job, start="linear", steps=10, weight_teacher=0.05)
    assert after < 0.5 < before


@pytest.mark.slow
def test_steps_from_a_random_start_teach_a_student_to_read_its_latents(
    make_teacher, tmp_path: Path
) -> None:
    job = make_job("ltx-video", make_teacher("ltx-video"), tmp_path, 3e-2, colours=COLOURFUL)
    job = replace(job, plan=replace(job.plan, mode="none", reconstruction=False))
    before, after, _ = trained(job, steps=60, warmup_share=0.05, weight_teacher=0.0)
    assert after < 0.5 and before > 1


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_start_lowers_its_loss(make_teacher, tmp_path: Path, family: str) -> None:
    """What the first test above finds faster."""
    job = make_job(family, make_teacher(family), tmp_path, 1e-2)
    *_, losses = trained(job, steps=20)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
