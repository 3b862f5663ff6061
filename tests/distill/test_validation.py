"""The student on the validation clips: figures by the metrics of the gate, and only where asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from turbo_vaed.distill import validation as module
from turbo_vaed.distill.data import Batch, Clips
from turbo_vaed.distill.job import Job
from turbo_vaed.distill.validation import Validation, frames, validate
from turbo_vaed.metrics import detail, flicker, ms_ssim, psnr, ssim
from turbo_vaed.models import TurboVaedDecoder

VAL = [1, 3, 4]
CPU = torch.device("cpu")


@pytest.fixture
def clips(make_job: Callable[..., Job]) -> tuple[TurboVaedDecoder, Clips]:
    """An untrained student, and three validation clips."""
    job = make_job()
    path = Path(job.clips) / "clips.json"
    index = [{"index": i, "split": "val" if i in VAL else "train"} for i in range(6)]
    path.write_text(json.dumps({"clips": index}))
    torch.manual_seed(0)
    return TurboVaedDecoder(job.student), Clips(clips=job.clips, latents=job.latents)


def seen(student: TurboVaedDecoder, data: Clips, share: float | None = None) -> Validation:
    return validate(student, data, rank=0, world=1, device=CPU, worst_share=share)


def test_the_figures_are_means_of_the_clips_and_of_the_worst_of_them(clips) -> None:
    student, data = clips
    pairs = []
    with torch.no_grad():
        for index in VAL:
            clip = data.whole(index)
            pairs.append((frames(student(clip.latents)), frames(clip.source)))
    of = {m.__name__: [float(m(*pair)) for pair in pairs]
          for m in (psnr, ssim, ms_ssim, detail, flicker)}  # fmt: skip
    found = seen(student, data, 0.67)
    assert found.psnr == pytest.approx(np.mean(of["psnr"]), rel=1e-6)
    assert found.ssim == pytest.approx(np.mean(of["ssim"]), rel=1e-5)
    expected = {name: np.mean(of[name]) for name in ("ms_ssim", "detail", "flicker")}
    expected["worst_psnr"] = np.mean(sorted(of["psnr"])[:2])
    assert found.more == pytest.approx(expected, rel=1e-9)
    assert seen(student, data, 0.05).more["worst_psnr"] == min(of["psnr"])


def test_figures_that_are_not_required_are_not_computed(clips, monkeypatch) -> None:
    student, data = clips
    full = seen(student, data, 0.05)
    monkeypatch.setattr(module, "metrics_of", lambda frames: pytest.fail("it was computed"))
    plain = seen(student, data)
    assert plain.more == {}
    assert (plain.psnr, plain.ssim) == (full.psnr, full.ssim)  # to the digit


def test_clips_of_one_frame_have_no_flicker(clips, monkeypatch) -> None:
    student, data = clips
    data.video.shape = (6, 1, 32, 32, 3)

    def first(index: int) -> Batch:
        clip = Clips.whole(data, index)
        return Batch(latents=clip.latents[:, :, :1], source=clip.source[:, :, :1])

    monkeypatch.setattr(data, "whole", first)
    assert seen(student, data, 0.05).more.keys() == {"worst_psnr", "ms_ssim", "detail"}
