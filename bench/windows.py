"""What an overlap costs that is shorter than the exact one: windows against one-shot decoding.

Run: python bench/windows.py STUDENT TEACHER VIDEO... [--help]. Its last line is JSON, also
written to bench/results. STUDENT is a trained one (work/NAME/distill/student), TEACHER an
LTX-Video VAE. By length of the window and overlap in latent frames: PSNR against the same student
decoding all at once (range 1, frames clamped; the mean and the worst frame of all videos), and
against the source.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from turbo_vaed.dataset.latents import to_network  # noqa: E402
from turbo_vaed.dataset.video import frames_of, open_video  # noqa: E402
from turbo_vaed.models import TurboVaedDecoder, load_decoder  # noqa: E402
from turbo_vaed.models.teachers import load_teacher  # noqa: E402

LENGTHS = (3, 5, 9, 17)
OVERLAPS = (1, 2, 3, 4, 6, 8)


def clip(path: Path, frames: int, size: int) -> Tensor:
    """The middle of a video's first frames, (1, 3, T, size, size)."""
    with open_video(path) as (container, stream):
        pictures = [f.to_ndarray(format="rgb24") for f, _ in zip(
            frames_of(container, stream), range(frames), strict=False
        )]  # fmt: skip
    height, width, _ = pictures[0].shape
    y, x = (height - size) // 2, (width - size) // 2
    return to_network(np.stack(pictures)[None, :, y : y + size, x : x + size])


def psnr_by_frame(video: Tensor, reference: Tensor) -> list[float]:
    """dB of each frame, over pixels of range 1; at most 150."""
    difference = (video.clamp(-1, 1) - reference.clamp(-1, 1)).double() / 2
    errors = difference.square().mean(dim=(0, 1, 3, 4))
    return [min(150.0, float(-10 * torch.log10(error.clamp_min(1e-15)))) for error in errors]


def windowed(decoder: TurboVaedDecoder, latents: Tensor, length: int, overlap: int) -> Tensor:
    """What a runner shows."""
    windows = decoder.config.time_spec.windows(latents.shape[2], length=length, overlap=overlap)
    return torch.cat(
        [
            decoder(latents[:, :, w.start : w.stop])[:, :, w.kept_start : w.kept_stop]
            for w in windows
        ],
        dim=2,
    )


def measure(
    decoder: TurboVaedDecoder, clips: list[tuple[Tensor, Tensor]]
) -> Iterator[dict[str, Any]]:
    """A row for each length and overlap."""
    wholes = [decoder(latents) for latents, _ in clips]
    exact = decoder.config.time_spec.exact_overlap
    pairs = [(n, k) for n in LENGTHS for k in OVERLAPS if k < n]
    for length, overlap in [*pairs, (exact + 1, exact)]:
        to_whole: list[float] = []
        to_source: list[float] = []
        of_whole: list[float] = []
        for (latents, source), whole in zip(clips, wholes, strict=True):
            if latents.shape[2] < length:
                continue
            video = windowed(decoder, latents, length, overlap)
            to_whole += psnr_by_frame(video, whole)
            to_source += psnr_by_frame(video, source)
            of_whole += psnr_by_frame(whole, source)
        yield {
            "length": length,
            "overlap": overlap,
            "computed_times": round(length / (length - overlap), 2),
            "to_one_shot_db": round(statistics.mean(to_whole), 1),
            "worst_frame_db": round(min(to_whole), 1),
            "to_source_db": round(statistics.mean(to_source), 2),
            "one_shot_to_source_db": round(statistics.mean(of_whole), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=137)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher("ltx-video", given.teacher)
    decoder = load_decoder(given.student).for_inference()
    clips = []
    for path in given.videos:
        source = clip(path, given.frames, given.size)
        source = source[:, :, : teacher.latent_spec.nearest_frames(source.shape[2])[0]]
        clips.append((teacher.encode(source), source))
    with torch.inference_mode():
        rows = []
        for row in measure(decoder, clips):
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    time = decoder.config.time_spec
    result = {
        "videos": [path.name for path in given.videos],
        "frames": [source.shape[2] for _, source in clips],
        "size": given.size,
        "halo_frames": time.halo_frames,
        "exact_overlap": time.exact_overlap,
        "rows": rows,
    }
    (ROOT / "bench" / "results" / "windows.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
