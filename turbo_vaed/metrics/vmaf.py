"""VMAF of Netflix (model vmaf_v0.6.1, Li et al. 2016), through FFmpeg's libvmaf filter.

Needs the extra `vmaf`: imageio-ffmpeg, whose wheel carries an FFmpeg with libvmaf and its models.
The model looks at luma only, and was trained on 1080p seen from three times its height: figures
of smaller frames rank reconstructions, and do not compare with published ones.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turbo_vaed.errors import Fault, UserError
from turbo_vaed.metrics.frames import check_pair
from turbo_vaed.runtime.files import read_json
from turbo_vaed.runtime.isolated import run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_SIDE = 64
"""Below 48 pixels libvmaf of FFmpeg 6 and of FFmpeg 9 were up to 29 points apart on one clip; from
here on at most 0.05."""
TIMEOUT_SECONDS = 600.0
"""Of one clip; FFmpeg compares more than ten 1080p frames a second."""
LUMA = (0.2126, 0.7152, 0.0722)
"""Of R, G and B (ITU-R BT.709)."""


def vmaf(frames: Tensor, reference: Tensor) -> Tensor:
    """VMAF of each clip, the mean over its frames.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). Float64, in [0, 100]; higher is better.
    Identical frames get 97 to 100. Frames are compared as 8-bit luma of video range.

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN, a side below 64 pixels.
        UserError: the extra `vmaf` is not installed.
        Fault: FFmpeg failed, or has no libvmaf.
    """
    check_pair(frames, reference)
    height, width = frames.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"frames: found {height}x{width} pixels, VMAF needs at least {MIN_SIDE} each way"
        )
    clips, references = (x.reshape(-1, *x.shape[-4:]) for x in (frames, reference))
    scores = [_vmaf_of_clip(_luma(x), _luma(y)) for x, y in zip(clips, references, strict=True)]
    return torch.tensor(scores, dtype=torch.float64).reshape(frames.shape[:-4])


def _luma(clip: Tensor) -> NDArray[np.uint8]:
    """(T, 3, H, W) in [0, 1] -> (T, H, W) of 16 to 235."""
    weights = torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1)
    luma = (clip.double().cpu() * weights).sum(dim=-3)
    pixels: NDArray[np.uint8] = (16 + 219 * luma).round().to(torch.uint8).numpy()
    return pixels


def _vmaf_of_clip(luma: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    height, width = luma.shape[1:]
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = [_ffmpeg(), "-nostdin", "-hide_banner", "-loglevel", "error"]
        for file, pixels in (("main.yuv", luma), ("reference.yuv", reference)):
            _write_yuv420(folder / file, pixels)
            size = ["-pix_fmt", "yuv420p", "-video_size", f"{width}x{height}"]
            command += ["-f", "rawvideo", *size, "-i", file]
        command += ["-lavfi", "libvmaf=model=version=vmaf_v0.6.1:log_fmt=json:log_path=log.json"]
        command += ["-f", "null", "-"]
        # In the folder, so that no path needs the filter's own escapes.
        run_command(command, folder=folder, timeout_seconds=TIMEOUT_SECONDS, what=command[0])
        log = folder / "log.json"
        if not log.is_file():
            raise Fault(f"{command[0]}: ended well and left no log.json with the VMAF")
        scores = [frame["metrics"]["vmaf"] for frame in read_json(log)["frames"]]
    if len(scores) != len(luma):
        raise Fault(f"{command[0]}: found {len(scores)} scores for {len(luma)} frames")
    return float(sum(scores) / len(scores))


def _write_yuv420(path: Path, luma: NDArray[np.uint8]) -> None:
    """The frames, each with the grey chroma planes that FFmpeg asks for and VMAF ignores."""
    height, width = luma.shape[1:]
    chroma = bytes([128]) * (2 * ((height + 1) // 2) * ((width + 1) // 2))
    with path.open("wb") as file:
        for frame in luma:
            file.write(frame.tobytes() + chroma)


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "VMAF needs FFmpeg with libvmaf, and imageio-ffmpeg is not installed; "
            "run: pip install 'turbo-vaed[vmaf]'"
        ) from error
    executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    return executable
