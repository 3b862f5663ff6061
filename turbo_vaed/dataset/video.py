"""Opening and decoding a video: the one way that the probe and the clip writer share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,ivf,yuv4mpegpipe"
"""What may hold a video. Playlists are left out, since they read other files, and so is the
demuxer that draws a text file as a picture."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream, read from this file alone.

    Raises:
        av.error.FFmpegError: not a video that FFmpeg can read.
        LookupError: readable, with no video in it.
    """
    import av

    limits = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    with av.open(str(path.absolute()), container_options=limits) as container:
        stream = next((s for s in container.streams.video if not _is_cover(s)), None)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise LookupError(f"holds no video stream, only {kinds}")
        stream.thread_type = "AUTO"
        yield container, stream


def frames_of(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame that decodes whole, in order of display, as stored (rotation not applied)."""
    for frame in container.decode(stream):
        if not frame.is_corrupt:
            yield frame


def _is_cover(stream: VideoStream) -> bool:
    """Whether the stream is a picture on an audio file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)
