"""Stage `gate`: the package on a device, what it put out against the source, and a verdict."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.dataset.manifest import read_manifest
from turbo_vaed.devices import Measurement
from turbo_vaed.devices.host import measure, read_decoded
from turbo_vaed.devices.teacher import measure_teacher
from turbo_vaed.errors import CorruptFile
from turbo_vaed.export import load_package
from turbo_vaed.gate import Evidence, judge, write_verdict
from turbo_vaed.poc import Poc
from turbo_vaed.stages._held_out import HeldOut, load_student
from turbo_vaed.stages.export import package_folder, wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TIMEOUT_SECONDS = 1800.0
"""Of one measuring process: it hangs, or is of no use on a phone either."""


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """The frames that the device put out, as figures; None where a value was NaN or infinite."""

    quality: dict[str, dict[str, float]] | None
    """Against the source, {metric: {mean, worst}}."""
    clips: tuple[dict[str, float], ...]
    parity_psnr_db: float | None
    """Against PyTorch, before rounding, of the clip where they differ most."""


def run(poc: Poc) -> dict[str, object]:
    """Write gate/measurement.json, frames.zarr, verdict.json and package/, which is what ships.

    A verdict that fails is a result like any other: the stage has done its work.

    Raises:
        CorruptFile: an input is missing or damaged.
        Fault: the device crashed, hung, was killed, or reported nonsense.
    """
    split = HeldOut.open(poc)
    evaluation = _read_evaluation(poc, split)
    with poc.writing("gate") as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            measurement, teacher_seconds = _measure(poc, split, Path(scratch))
            shown = _compare(
                poc, split, read_decoded(Path(scratch)), folder, evaluation["worst_share"]
            )
        verdict = judge(
            _evidence(poc, measurement, teacher_seconds, shown, evaluation),
            customer=poc.customer,
            use_case=poc.params.use_case,
            thresholds=poc.params.thresholds,
            min_parity_psnr=poc.params.gate.min_parity_psnr,
            package_sha256=measurement.package_sha256,
            data_sha256=_data_sha256(poc),
            git_revision=_git_revision(poc.root),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        document = {
            **measurement.to_json(),
            "teacher_latency_seconds": list(teacher_seconds),
            "quality": shown.quality,
            "quality_clips": list(shown.clips),
            "parity_psnr_db": shown.parity_psnr_db,
        }
        text = json.dumps(document, indent=1, allow_nan=False)
        (folder / "measurement.json").write_text(text + "\n", encoding="utf-8")
        shutil.copytree(_shipped(poc), folder / "package")
        write_verdict(verdict, folder)
    return {
        "result": verdict.result,
        "failed": [check.reason for check in verdict.failed],
        **{check.name: check.measured for check in verdict.checks},
        "package_sha256": verdict.package_sha256,
    }


def _read_evaluation(poc: Poc, split: HeldOut) -> dict[str, Any]:
    path = poc.folder("evaluate") / "evaluation.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = [clip["index"] for clip in document["clips"]]
        document["teacher"]["psnr"]["mean"], document["worst_share"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} is no whole evaluation ({error}); evaluate again") from None
    if found != split.indices:
        raise CorruptFile(f"{path} is about other clips than clips.json; evaluate again")
    return document


def _measure(poc: Poc, split: HeldOut, scratch: Path) -> tuple[Measurement, tuple[float, ...]]:
    """The package on this host, then the teacher's decoder under the same conditions."""
    import numpy as np

    params, weights = poc.params.gate, poc.teacher_weights()
    latents = scratch / "latents.npy"
    np.save(latents, split.latents(split.indices))
    measurement = measure(
        _shipped(poc),
        latents,
        threads=params.threads,
        warmup=params.warmup,
        samples=params.samples,
        out_folder=scratch,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    teacher_seconds = measure_teacher(
        poc.params.encode.teacher_family,
        weights,
        latents,
        threads=params.threads,
        warmup=params.warmup,
        samples=params.samples,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    return measurement, teacher_seconds


def _compare(
    poc: Poc, split: HeldOut, decoded: NDArray[np.float32], folder: Path, worst_share: float
) -> _Shown:
    """Keep what the device put out in frames.zarr; compare it with the source and PyTorch."""
    import numpy as np
    import torch
    import zarr

    from turbo_vaed.dataset.clip_arrays import create_clip_array
    from turbo_vaed.metrics import clip_quality, summarise_quality, uint8_from_network

    student = load_student(poc)
    n, _, frames, height, width = decoded.shape
    shape = (n, frames, height, width, 3)
    group = zarr.open_group(str(folder / "frames.zarr"), mode="w", zarr_format=3)
    group.attrs["indices"] = split.indices
    video = create_clip_array(
        group, "video", clips=n, shape=shape[1:], dtype="uint8", is_compressed=True
    )
    clips, parity = [], []
    for row, index in enumerate(split.indices):
        raw = torch.from_numpy(np.array(decoded[row : row + 1]))
        pixels = uint8_from_network(torch.nan_to_num(raw))[0]
        video[row] = pixels
        if bool(torch.isfinite(raw).all()):
            clips.append(clip_quality(pixels, split.source(index)))
            with torch.inference_mode():
                reference = student(torch.from_numpy(split.latents([index])))
            parity.append(_parity_psnr(raw, reference))
    if len(clips) < n:
        return _Shown(quality=None, clips=(), parity_psnr_db=None)
    return _Shown(
        quality=summarise_quality(clips, worst_share),
        clips=tuple(clips),
        parity_psnr_db=min(parity),
    )


def _parity_psnr(raw: Any, reference: Any) -> float:
    """dB between two float outputs in [-1, 1], over pixels of range 1, neither clamped."""
    from turbo_vaed.metrics import psnr_from_mse

    return float(psnr_from_mse(((raw.double() - reference.double()) / 2).square().mean()))


def _evidence(
    poc: Poc,
    measurement: Measurement,
    teacher_seconds: Sequence[float],
    shown: _Shown,
    evaluation: dict[str, Any],
) -> Evidence:
    quality = shown.quality
    return Evidence(
        psnr_db=quality["psnr"]["mean"] if quality else None,
        ssim=quality["ssim"]["mean"] if quality else None,
        ms_ssim=quality["ms_ssim"]["mean"] if quality else None,
        worst_psnr_db=quality["psnr"]["worst"] if quality else None,
        teacher_psnr_db=evaluation["teacher"]["psnr"]["mean"],
        parity_psnr_db=shown.parity_psnr_db,
        cold_start_seconds=measurement.cold_start_seconds,
        peak_memory_bytes=measurement.peak_memory_bytes,
        package_bytes=load_package(_shipped(poc)).size_bytes,
        latency_seconds=measurement.median_latency_seconds,
        teacher_latency_seconds=statistics.median(teacher_seconds),
    )


def _shipped(poc: Poc) -> Path:
    return package_folder(poc, wanted(poc)[0])


def _data_sha256(poc: Poc) -> str:
    """Of the good files' own hashes, sorted, a line each: names and order do not matter."""
    manifest = read_manifest(poc.folder("validate") / "manifest.parquet")
    hashes = sorted(manifest.loc[manifest["status"] == "ok", "sha256"])
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _git_revision(root: Path) -> str:
    """The commit that is checked out, with `-dirty` where tracked files differ from it.

    `unknown` where there is no commit or no git.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "--verify", "HEAD")
        is_dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{revision}-dirty" if is_dirty else revision
