"""Loops and error maps, read back."""

from __future__ import annotations

import io
import re

import av
import numpy as np
import pytest
from PIL import Image

from turbo_vaed.errors import Fault
from turbo_vaed.report import media, pictures
from turbo_vaed.report.context import Shot


def clip(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A bright bar that moves over a coloured ground."""
    video = np.zeros((frames, height, width, 3), dtype=np.uint8)
    video[:] = (30, 90, 160)
    for t in range(frames):
        video[t, :, 4 * t : 4 * t + 4] = (230, 200, 40)
    return video


def read(content: bytes) -> tuple[av.VideoStream, np.ndarray]:
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        return stream, np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])


def test_a_loop_is_an_mp4_that_every_browser_plays() -> None:
    content = media.loop([clip()] * 3, 25.0)
    stream, frames = read(content)
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert content.index(b"moov") < content.index(b"mdat")
    assert frames.shape == (16, 64, 2 * (3 * 48 + 2 * media.LINE_PIXELS), 3)
    assert float(stream.average_rate) == media.SLOW_FPS


def test_a_short_loop_plays_there_and_back() -> None:
    video = clip()
    _, frames = read(media.loop([video], 25.0))
    small = frames[:, ::2, ::2].astype(float)
    order = [int(np.abs(video - f).mean((1, 2, 3)).argmin()) for f in small]
    assert order == [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1]
    assert np.abs(small - video[order]).mean() < 4


def test_a_long_clip_keeps_its_speed() -> None:
    stream, frames = read(media.loop([clip(frames=media.SHORT_FRAMES, width=256)], 29.97))
    assert len(frames) == media.SHORT_FRAMES
    assert float(stream.average_rate) == pytest.approx(29.97, abs=0.01)


def test_odd_sides_are_made_even() -> None:
    _, frames = read(media.encode_mp4(clip(height=33, width=47), 10, crf=12))
    assert frames.shape == (9, 34, 48, 3)


def test_clips_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(9, .*\(8, "):
        media.loop([clip(), clip(frames=8)], 25.0)


def test_a_clip_that_ffmpeg_refuses_is_a_fault() -> None:
    with pytest.raises(Fault, match=r"20_?000"):
        media.encode_mp4(clip(height=2, width=20_000), 10, crf=12)


def test_clips_that_are_too_large_are_compressed_more(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    shot = Shot(
        index=0, label="x", path="x.mp4", start_frame=0, fps=25.0, source=noise, teacher=noise,
        phone=noise, teacher_psnr=30.0, phone_psnr=29.0,
    )  # fmt: skip
    large = len(pictures.shots([shot])[0]["uri"])
    monkeypatch.setattr(pictures, "MOST_VIDEO_BYTES", int(large * 0.75 * 0.6))
    assert len(pictures.shots([shot])[0]["uri"]) < large * 0.6


def test_the_error_map_shows_the_error_in_levels() -> None:
    source = np.full((3, 16, 16, 3), 100, dtype=np.uint8)
    phone = source.copy()
    phone[1, :8] = 103
    phone[2, :, :4] = (100, 130, 100)
    assert media.worst_frame(source, phone) == 2
    error = media.absolute_error(source[2], phone[2])
    assert error[0, 0] == 10 and error[0, 5] == 0
    assert media.top_level(error) == 16
    assert media.top_level(np.zeros((4, 4), dtype=np.float32)) == 8
    colours = media.heat(np.array([[0, 8, 16, 99]], dtype=np.float32), 16)
    brightness = colours.astype(int).sum(axis=2)[0]
    assert tuple(colours[0, 0]) == (0, 0, 4) and tuple(colours[0, 2]) == (0xFC, 0xFF, 0xA4)
    assert brightness[0] < brightness[1] < brightness[2] == brightness[3]
    decoded = np.asarray(Image.open(io.BytesIO(media.png(colours))))
    assert (decoded == colours).all()


def test_error_maps_of_phone_and_teacher_share_a_scale() -> None:
    source = np.full((2, 16, 16, 3), 100, dtype=np.uint8)
    shot = Shot(
        index=4, label="Worst clip", path="x.mp4", start_frame=9, fps=25.0, source=source,
        teacher=source + 3, phone=source + 12, teacher_psnr=30.0, phone_psnr=29.0,
    )  # fmt: skip
    found = pictures.error_map(shot)
    assert found["marks"] == ["0", "4", "8", "12", "16 or more"]
    assert [(still.name, still.about) for still in found["stills"]] == [
        ("Source", ""),
        ("Teacher", "30.00 dB (clip)"),
        ("Package", "29.00 dB (clip)"),
        ("Error of the teacher", "mean 3.0, largest 3 levels"),
        ("Error of the package", "mean 12.0, largest 12 levels"),
    ]
    assert all(re.search(r"frame 1 .*x\.mp4", still.alt) for still in found["stills"])
