"""The moving and the still pictures of a report, as the templates take them.

Shapes: T frames, H height, W width; videos are uint8 (T,H,W,3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbo_vaed.report import formatting, media
from turbo_vaed.report.context import Shot, Video

CRFS = (12, 18, 24, 30)
"""Qualities of H.264 (lower is better) that are tried until the clips fit."""
MOST_VIDEO_BYTES = 7_500_000
"""Of all clips together; a data URI takes a third more, and the page stays below 12 MB."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One of the pictures side by side in a video, and its caption."""

    name: str
    video: Video
    caption: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Still:
    """One picture with its caption."""

    name: str
    uri: str
    about: str
    alt: str


def shots(context_shots: Sequence[Shot]) -> list[dict[str, Any]]:
    """Each shot as one video of its panels, at the best quality that fits `MOST_VIDEO_BYTES`.

    One video, for separate ones drift apart while they play.
    """
    panels = [_panels(shot) for shot in context_shots]
    loops: list[bytes] = []
    for crf in CRFS:
        loops = [
            media.loop([panel.video for panel in row], shot.fps, crf=crf)
            for shot, row in zip(context_shots, panels, strict=True)
        ]
        if sum(map(len, loops)) <= MOST_VIDEO_BYTES:
            break
    return [
        {
            "label": shot.label,
            "path": shot.path,
            "start_frame": shot.start_frame,
            "frames": len(shot.source),
            "height": shot.source.shape[1],
            "width": shot.source.shape[2] * len(row),
            "panels": row,
            "uri": media.data_uri("video/mp4", video),
            "alt": f"{shot.label} of {shot.path}: {panel_names([shot])}, side by side",
        }
        for shot, row, video in zip(context_shots, panels, loops, strict=True)
    ]


def panel_names(context_shots: Sequence[Shot]) -> str:
    """`source, teacher and package`, or those of them that were reached."""
    names = [panel.name.lower() for panel in _panels(context_shots[0])] if context_shots else []
    return formatting.enumerated(names)


def _panels(shot: Shot) -> list[Panel]:
    panels = [Panel(name="Source", video=shot.source, caption="the customer's video")]
    if shot.teacher is not None:
        psnr = formatting.decibel(shot.teacher_psnr)
        panels.append(Panel(name="Teacher", video=shot.teacher, caption=psnr))
    if shot.phone is not None:
        share = ""
        if shot.phone_psnr is not None and shot.teacher_psnr:
            share = f"{formatting.percent(shot.phone_psnr / shot.teacher_psnr)} of the teacher's"
        psnr = formatting.decibel(shot.phone_psnr)
        panels.append(Panel(name="Package", video=shot.phone, caption=psnr, detail=share))
    return panels


def error_map(shot: Shot) -> dict[str, Any]:
    """The worst frame of a shot: source, teacher and phone, and the error of those two.

    Both maps have one scale, in 8-bit levels.
    """
    assert shot.phone is not None
    frame = media.worst_frame(shot.source, shot.phone)
    source, phone = shot.source[frame], shot.phone[frame]
    error = media.absolute_error(source, phone)
    top = media.top_level(error)
    seen = [("Package", phone, shot.phone_psnr)]
    if shot.teacher is not None:
        seen.insert(0, ("Teacher", shot.teacher[frame], shot.teacher_psnr))
    stills = [_still("Source", media.png(source), shot, frame)]
    stills += [
        _still(name, media.png(picture), shot, frame, formatting.decibel(psnr) + " (clip)")
        for name, picture, psnr in seen
    ]
    stills += [_error(name, media.absolute_error(source, picture), top, shot, frame)
               for name, picture, _ in seen]  # fmt: skip
    return {
        "stills": stills,
        "path": shot.path,
        "start_frame": shot.start_frame,
        "frame": frame + 1,
        "height": source.shape[0],
        "width": source.shape[1],
        "has_teacher": shot.teacher is not None,
        "top": top,
        "marks": [*(f"{top * i // 4}" for i in range(4)), f"{top} or more"],
        "gradient": media.heat_gradient(),
    }


def _error(name: str, error: NDArray[np.float32], top: int, shot: Shot, frame: int) -> Still:
    about = f"mean {error.mean():.1f}, largest {error.max():.0f} levels"
    title = f"Error of the {name.lower()}"
    return _still(title, media.png(media.heat(error, top)), shot, frame, about)


def _still(name: str, content: bytes, shot: Shot, frame: int, about: str = "") -> Still:
    alt = f"{name}: frame {frame + 1} of the clip of {shot.path} from frame {shot.start_frame}"
    uri = media.data_uri("image/png", content)
    return Still(name=name, uri=uri, about=about, alt=f"{alt}; {about}" if about else alt)
