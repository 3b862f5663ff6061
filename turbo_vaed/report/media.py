"""Clips and error maps as data URIs that a page holds inside itself.

Shapes: T frames, H height, W width; videos are uint8 (T,H,W,3), images uint8 (H,W,3).
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbo_vaed.errors import Fault
from turbo_vaed.report.context import Video

ENLARGE_BELOW = 320
"""Pixels: a clip with both sides below is drawn at twice its size, each pixel as four."""
SLOW_FPS = 10
"""Frames per second at which a short clip plays, so that an eye can follow it."""
SHORT_FRAMES = 48
"""A clip below this many frames is slowed and played there and back."""

LINE_PIXELS, LINE_GREY = 2, 128
"""What stands between two clips."""
_BT709 = 1

_HEAT = (
    "000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d",
    "fcffa4",
)  # fmt: skip
"""The inferno colour map of matplotlib, ten of its colours."""


def data_uri(mime: str, content: bytes) -> str:
    """`content` inside a URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def is_slowed(video: Video) -> bool:
    """Whether `loop` slows this clip down."""
    return len(video) < SHORT_FRAMES


def loop(panels: Sequence[Video], fps: float, *, crf: int = 12) -> bytes:
    """An mp4 (H.264, 4:2:0) of clips (T,H,W,3) side by side that a browser plays in a loop.

    Small clips are doubled first, which also preserves their full colour resolution; short ones are
    slowed to `SLOW_FPS` and play there and back, so that the loop has no jump.

    Raises:
        Fault: FFmpeg cannot encode it.
        ValueError: the clips differ in shape.
    """
    shape = panels[0].shape
    if any(panel.shape != shape for panel in panels):
        raise ValueError(f"clips of shapes {[panel.shape for panel in panels]} side by side")
    line = np.full((shape[0], shape[1], LINE_PIXELS, 3), LINE_GREY, dtype=np.uint8)
    separated = [part for panel in panels for part in (line, panel)][1:]
    frames = np.concatenate(separated, axis=2)
    if max(shape[1:3]) < ENLARGE_BELOW:
        frames = frames.repeat(2, axis=1).repeat(2, axis=2)
    if is_slowed(panels[0]):
        frames = np.concatenate([frames, frames[-2:0:-1]])
        fps = min(fps, SLOW_FPS)
    return encode_mp4(frames, fps, crf=crf)


def encode_mp4(video: Video, fps: float, *, crf: int) -> bytes:
    """An mp4 of uint8 (T,H,W,3): libx264, yuv420p, BT.709, with the index in front.

    An odd side is made even by repeating its last line.

    Raises:
        Fault: FFmpeg cannot encode it.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    height, width = video.shape[1:3]
    even = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with tempfile.TemporaryDirectory() as folder:  # FFmpeg reads the file again to move the index
        target = Path(folder) / "clip.mp4"
        try:
            with av.open(target, "w", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = even.shape[1:3]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = ColorRange.MPEG
                for picture in even:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                        format="yuv420p",
                        dst_colorspace=Colorspace.ITU709,
                        dst_color_range=ColorRange.MPEG,
                    )
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except (av.FFmpegError, ValueError) as error:
            raise Fault(
                f"a clip of shape {video.shape} could not be encoded as mp4: {error}"
            ) from error
        return target.read_bytes()


def png(image: NDArray[np.uint8]) -> bytes:
    """A PNG of uint8 (H,W,3)."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(image).save(target, format="PNG", optimize=True)
    return target.getvalue()


def worst_frame(source: Video, output: Video) -> int:
    """The frame with the largest mean squared error."""
    error = (source.astype(np.float32) - output.astype(np.float32)) ** 2
    return int(error.mean(axis=(1, 2, 3)).argmax())


def absolute_error(source: NDArray[np.uint8], output: NDArray[np.uint8]) -> NDArray[np.float32]:
    """|output - source| of two (H,W,3) images in 8-bit levels, mean over the colours: (H,W)."""
    error = np.abs(source.astype(np.float32) - output.astype(np.float32)).mean(axis=2)
    return np.asarray(error, dtype=np.float32)


def top_level(error: NDArray[np.float32]) -> int:
    """The upper end of an error map's scale: a power of two above all but 0.5 % of the pixels."""
    high = float(np.quantile(error, 0.995))
    return next(level for level in (8, 16, 32, 64, 128, 256) if high < level)


def heat(error: NDArray[np.float32], top: int) -> NDArray[np.uint8]:
    """An error map (H,W) in 8-bit levels as colours (H,W,3); `top` and above is the brightest."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _HEAT], dtype=np.float32)
    position = np.clip(error / top, 0, 1) * (len(anchors) - 1)
    low = np.minimum(position.astype(int), len(anchors) - 2)
    share = (position - low)[..., None]
    colours: NDArray[np.uint8] = np.rint(
        anchors[low] * (1 - share) + anchors[low + 1] * share
    ).astype(np.uint8)
    return colours


def heat_gradient() -> str:
    """The colour map as a CSS gradient, from 0 on the left."""
    return f"linear-gradient(90deg, {', '.join('#' + colour for colour in _HEAT)})"
