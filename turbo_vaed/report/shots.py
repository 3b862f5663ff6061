"""Which test clips a page shows, and their pixels.

Shapes: N clips, T frames, H height, W width; videos are uint8 (N,T,H,W,3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from turbo_vaed.report.context import Shot, Video

Clip = Mapping[str, Any]
Stored = tuple[Any, Mapping[str, Any]]
"""A Zarr array and its attributes."""

WORST = "Worst clip"


def pick(
    *,
    tests: Sequence[Clip],
    scores: Mapping[int, Mapping[str, Any]],
    source: Any,
    teacher: Stored | None,
    phone: Stored | None,
    most: int,
) -> tuple[tuple[Shot, ...], Shot | None]:
    """At most `most` test clips, best first, and the worst of all where a device showed it.

    Args:
        tests: the test clips of clips.json.
        scores: index -> its row in evaluation.json; empty where nothing was evaluated.
        source: `video` of clips.zarr.
        teacher: `reconstruction` of latents.zarr.
        phone: `video` of frames.zarr, with the clips' indices.

    Raises:
        ValueError: the device's frames are not those of the test clips.
        KeyError: a test clip was not evaluated.
    """
    if not tests:
        return (), None
    rows = {} if phone is None else _rows(phone, [clip["index"] for clip in tests])

    def shot(clip: Clip, label: str) -> Shot:
        index = clip["index"]
        video = np.asarray(source[index])
        from_teacher = None if teacher is None else np.asarray(teacher[0][index])
        from_device = None if phone is None else np.asarray(phone[0][rows[index]])
        return Shot(
            index=index,
            label=label,
            path=clip["path"],
            start_frame=clip["start_frame"],
            fps=float(clip["fps"]),
            source=video,
            teacher=from_teacher,
            phone=from_device,
            teacher_psnr=None if from_teacher is None else _psnr(from_teacher, video),
            phone_psnr=None if from_device is None else _psnr(from_device, video),
        )

    if not scores:
        return tuple(shot(clip, "Test clip") for clip in _in_turn(tests, most)), None
    ranked = sorted(tests, key=lambda clip: -scores[clip["index"]]["student"]["psnr"])
    shots = tuple(shot(clip, label) for clip, label in _labelled(ranked, most))
    worst = next(one for one in shots if one.label == WORST)
    return shots, None if worst.phone is None else worst


def _rows(phone: Stored, tests: Sequence[int]) -> dict[int, int]:
    """Index in clips.zarr -> row of frames.zarr."""
    array, attributes = phone
    indices = [int(i) for i in attributes["indices"]]
    if sorted(indices) != sorted(tests) or len(indices) != array.shape[0]:
        raise ValueError(
            f"gate/frames.zarr holds {array.shape[0]} clips (indices {indices}), "
            f"the test split has {list(tests)}"
        )
    return {index: row for row, index in enumerate(indices)}


def _labelled(ranked: Sequence[Clip], most: int) -> list[tuple[Clip, str]]:
    """Worst, best and median clip, then clips of videos not seen yet, then the quartiles."""
    last = len(ranked) - 1
    labels = {last: WORST}
    labels.setdefault(0, "Best clip")
    labels.setdefault(last // 2, "Median clip")
    seen = {ranked[i]["path"] for i in labels}
    for i, clip in enumerate(ranked):
        if clip["path"] not in seen:
            labels.setdefault(i, "Another video")
            seen.add(clip["path"])
    labels.setdefault(last // 4, "Upper quartile")
    labels.setdefault(last * 3 // 4, "Lower quartile")
    chosen = list(labels.items())[: max(1, most)]
    return [(ranked[i], label) for i, label in sorted(chosen)]


def _in_turn(clips: Sequence[Clip], most: int) -> list[Clip]:
    """A clip of each video in turn, up to `most`."""
    by_path: dict[str, list[Clip]] = {}
    for clip in clips:
        by_path.setdefault(clip["path"], []).append(clip)
    rounds = max(map(len, by_path.values()))
    turns = [group[i] for i in range(rounds) for group in by_path.values() if i < len(group)]
    return turns[:most]


def _psnr(video: Video, reference: Video) -> float:
    """dB of one clip (T,H,W,3), by the project's one definition."""
    from turbo_vaed.metrics import frames_from_uint8, psnr

    return float(psnr(frames_from_uint8(video), frames_from_uint8(reference)))
