"""Stage `evaluate`: teacher and student against the source, on clips neither was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from turbo_vaed.errors import Fault
from turbo_vaed.gate.test_split import TestSplit, load_student
from turbo_vaed.runtime.files import write_json
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from turbo_vaed.models import TurboVaedDecoder


STAGE_VERSION = 1
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Write evaluate/evaluation.json: PSNR, SSIM, MS-SSIM, detail and, for clips of two or more
    frames, flicker per clip, with mean and worst share.

    Both pictures are compared as 8-bit video: the teacher's as `encode` stored it, the
    student's rounded alike.

    Raises:
        CorruptFile: clips, latents or the student are missing or damaged.
        Fault: the student puts out NaN or infinity.
    """
    from turbo_vaed.metrics import QUALITY, clip_quality, summarise_quality

    params = workspace.params.evaluate
    split = TestSplit.open(workspace)
    clips: list[dict[str, object]] = []
    teacher, student = [], []
    decoded = _decode(load_student(workspace), split, params.batch_size)
    for clip, video in zip(split.clips, decoded, strict=True):
        source = split.source(clip["index"])
        teacher.append(clip_quality(split.reconstruction(clip["index"]), source))
        student.append(clip_quality(video, source))
        named = {key: clip[key] for key in ("index", "path", "start_frame")}
        clips.append({**named, "teacher": teacher[-1], "student": student[-1]})

    of_teacher = summarise_quality(teacher, params.worst_share)
    of_student = summarise_quality(student, params.worst_share)
    retention = {n: _share(of_student[n]["mean"], of_teacher[n]["mean"]) for n in QUALITY}
    worst = min(range(len(clips)), key=lambda i: student[i]["psnr"])
    document = {
        "teacher": of_teacher,
        "student": of_student,
        "retention": retention,
        "worst_share": params.worst_share,
        "clips": clips,
        "worst_clip": split.indices[worst],
    }
    with workspace.writing("evaluate") as folder:
        write_json(folder / "evaluation.json", document)
    figures = {
        f"{who}_{name}": quality[name]["mean"]
        for who, quality in (("teacher", of_teacher), ("student", of_student))
        for name in QUALITY
    }
    return {
        "test_clips": len(clips),
        **figures,
        "student_worst_psnr": of_student["psnr"]["worst"],
        "psnr_retention": retention["psnr"],
    }


def _decode(
    decoder: TurboVaedDecoder, split: TestSplit, batch_size: int
) -> Iterator[NDArray[np.uint8]]:
    """The student's video of each test clip in turn, (T, H, W, 3)."""
    import torch

    from turbo_vaed.metrics import uint8_from_network

    indices = split.indices
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        with torch.inference_mode():
            video = decoder(torch.from_numpy(split.latents(batch)))
        if not bool(torch.isfinite(video).all()):
            raise Fault(
                f"the student puts out NaN or infinity for test clips {batch}: its weights are "
                "no good; look at the losses in distill/history.json and distil again"
            )
        yield from uint8_from_network(video)


def _share(value: float, of: float) -> float | None:
    """Their quotient; None where the teacher's own figure is not above 0."""
    return value / of if of > 0 else None
