"""Decodes a latents file to an mp4 on the ExecuTorch runtime, window by window.

A start for an app: it needs executorch, numpy and av, and nothing of turbo_vaed. What the fields
of package.json mean and why windows overlap: docs/on-device.md.

    python decode.py PACKAGE LATENTS.npy VIDEO.mp4

PACKAGE is a folder with package.json and decoder.pte; LATENTS float32 (C, t, h, w) in the scale
that the package takes, of the height and width of one of its programs and with at least as many
latent frames as that decodes at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FORMAT = 4
SHORT_OVERLAP = 4
"""Latent frames in common where the program is too short for the exact overlap: no frame is then
farther than about 48 dB from decoding at once, which does not show (docs/on-device.md)."""


def read_package(folder: Path) -> dict[str, Any]:
    """package.json, with its files verified."""
    package: dict[str, Any] = json.loads((folder / "package.json").read_text())
    if package["format"] != FORMAT:
        raise SystemExit(f"{folder}: format {package['format']}, this runner reads {FORMAT}")
    if not package["target"].startswith("executorch-xnnpack/"):
        raise SystemExit(f"{folder}: for {package['target']}, this runner has ExecuTorch's XNNPACK")
    for file in package["files"]:
        if hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() != file["sha256"]:
            raise SystemExit(f"{folder / file['name']}: not the file that package.json describes")
    return package


def program_for(package: dict[str, Any], shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Name and I/O spec of the program that takes latents (C, t, h, w): a package has one for each
    shape. The longest, for windows overlap."""
    first = {"name": package["program"], "io": package["io"]}
    fitting, takes = {}, []
    for program in (first, *package["further"]):
        _, channels, length, height, width = program["io"]["latent_shape"]
        if (channels, height, width) == (shape[0], *shape[2:]) and length <= shape[1]:
            fitting[length] = program["name"], program["io"]
        takes.append(f"({channels}, {length} or more, {height}, {width})")
    if not fitting:
        raise SystemExit(f"found latents {shape}, the package takes {' or '.join(takes)}")
    return fitting[max(fitting)]


def overlap_of(io: dict[str, Any]) -> tuple[int, int]:
    """Latent frames that two windows have in common: what to take, and what would be exact."""
    ratio, first = io["frames_per_latent"], io["first_latent_frames"]
    exact = math.ceil((sum(io["halo_frames"]) + ratio - first) / ratio)
    length = io["latent_shape"][2]
    return (exact if exact < length else min(SHORT_OVERLAP, length - 1)), exact


def windows(io: dict[str, Any], latents: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(first latent frame, first frame to keep, first not to) of each window.

    The last window ends with the video. A cut shares the frames that two windows have in common
    as the halo asks for it.
    """
    ratio, first = io["frames_per_latent"], io["first_latent_frames"]
    before, after = io["halo_frames"]
    length = io["latent_shape"][2]
    least = int(first < ratio)
    if latents < length:
        raise SystemExit(f"found {latents} latent frames, the program takes {length} or more")
    if not least <= overlap < length:
        raise SystemExit(f"overlap: found {overlap}, allowed: {least} to {length - 1}")
    frames = first + ratio * (length - 1)
    starts = [*range(0, latents - length, length - overlap), latents - length]
    cut = 0
    for start, downstream in zip(starts, [*starts[1:], None], strict=True):
        if downstream is None:
            next_cut = ratio * start + frames
        else:
            shared = frames - ratio * (downstream - start)
            next_cut = ratio * downstream + shared * before // (before + after)
        yield start, cut - ratio * start, next_cut - ratio * start
        cut = next_cut


def decode(
    path: Path, io: dict[str, Any], latents: np.ndarray, overlap: int
) -> Iterator[np.ndarray]:
    """Frames (n, H, W, 3) uint8 as they are complete; memory does not grow with the video."""
    import torch  # late, as the next one: together they take ten seconds
    from executorch.runtime import Runtime

    length = io["latent_shape"][2]
    runtime = Runtime.get()
    program = runtime.load_program(path)  # must outlive its method
    method = program.load_method("forward")
    for start, kept_start, kept_stop in windows(io, latents.shape[1], overlap):
        window = np.ascontiguousarray(
            latents[None, :, start : start + length], dtype=io["latent_dtype"]
        )
        # (1, 3, T, H, W) of video_dtype, about [-1, 1]
        (video,) = method.execute([torch.from_numpy(window)])
        kept = video[0, :, kept_start:kept_stop].float().numpy().clip(-1, 1)
        yield ((kept + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 3, 0)


def write_mp4(path: Path, pieces: Iterator[np.ndarray], fps: Fraction, total: int) -> None:
    """H.264, 4:2:0, BT.709; prints its progress to stderr."""
    done = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        for piece in pieces:
            if not done:
                start, first = time.perf_counter(), len(piece)  # the program is loaded by now
                stream.height, stream.width = piece.shape[1:3]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "16"}
                stream.codec_context.colorspace = 1  # BT.709, and so are the next two
                stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
            for picture in piece:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
                container.mux(stream.encode(frame))
            done += len(piece)
            pace = (done - first) / (time.perf_counter() - start)
            print(f"\r{done}/{total} frames, {pace:.1f} a second", end="", file=sys.stderr)
        container.mux(stream.encode(None))
    print(file=sys.stderr)


def main() -> None:
    """Read the arguments, decode, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--fps", type=Fraction, default=Fraction(25))
    parser.add_argument("--overlap", type=int, help="latent frames that windows have in common")
    given = parser.parse_args()

    package = read_package(given.package)
    latents = np.load(given.latents, mmap_mode="r")
    if latents.dtype != np.float32 or latents.ndim != 4:
        raise SystemExit(
            f"{given.latents}: found {latents.dtype} {latents.shape}, expected float32 (C, t, h, w)"
        )
    program, io = program_for(package, latents.shape)
    length = io["latent_shape"][2]
    overlap, exact = overlap_of(io)
    overlap = overlap if given.overlap is None else given.overlap
    if overlap < exact and latents.shape[1] > length:
        print(
            f"windows of {length} latent frames overlap by {overlap}, not by {exact}: frames near "
            "a cut are close to what decoding at once gives, not equal to it",
            file=sys.stderr,
        )
    total = io["first_latent_frames"] + io["frames_per_latent"] * (latents.shape[1] - 1)
    pieces = decode(given.package / program, io, latents, overlap)
    write_mp4(given.video, pieces, given.fps, total)


if __name__ == "__main__":
    main()
