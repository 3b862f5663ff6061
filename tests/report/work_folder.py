"""A work folder as the stages leave it, and the costs of a run, made up for reports.

Shapes: T frames, H height, W width; videos are uint8 (T,H,W,3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tests.gate.made_up import evidence, use_case
from turbo_vaed.config.schema import UseCase
from turbo_vaed.costs import CostSummary, StageRow
from turbo_vaed.gate import judge
from turbo_vaed.report.collect import collect
from turbo_vaed.report.context import ReportContext

STARTED = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
FINISHED = datetime(2026, 11, 22, 9, 41, 8, tzinfo=UTC)
SHA = "3f9c2a71b04d" * 5 + "abcd"
THRESHOLDS = use_case()


def moving(size: int, frames: int, seed: int) -> np.ndarray:
    """A coloured texture that drifts: uint8 (T,H,W,3)."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 2 * np.pi, size)
    waves = [
        np.sin(np.outer(np.sin(grid * rng.integers(1, 4)), grid) + t / 4 + phase)
        for t in range(frames)
        for phase in rng.uniform(0, 6, 1).repeat(3) + np.arange(3)
    ]
    video = np.stack(waves).reshape(frames, 3, size, size).transpose(0, 2, 3, 1)
    return np.rint((video + 1) * 127.5).astype(np.uint8)


def noisy(video: np.ndarray, levels: float, seed: int) -> np.ndarray:
    """The video with an error of about so many levels."""
    noise = np.random.default_rng(seed).normal(0, levels, video.shape)
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def db(video: np.ndarray, reference: np.ndarray) -> float:
    """PSNR, written down a second time."""
    mse = np.mean((video.astype(float) / 255 - reference.astype(float) / 255) ** 2)
    return float(-10 * np.log10(mse))


def build_work(
    work: Path,
    videos: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    phone: Sequence[np.ndarray],
    paths: Sequence[str],
    *,
    thresholds: UseCase = THRESHOLDS,
    stopped: str = "finished",
    losses: Mapping[str, float] = MappingProxyType({}),
    warnings: Sequence[Mapping[str, Any]] = (),
    restarts: Sequence[Mapping[str, Any]] = (),
    reason: str = "",
    target_psnr: float | None = None,
) -> Path:
    """Every stage's outputs: the first two of every six clips are for training, one for val.

    `losses` are more parts of it than the L1 ones, and about their values.
    """
    import pandas as pd
    import zarr

    splits = [("train", "train", "val", "test", "test", "test")[i % 6] for i in range(len(videos))]
    tests = [i for i, split in enumerate(splits) if split == "test"]
    frames, size = videos[0].shape[:2]

    def store(stage: str, name: str, array: str, stacked: np.ndarray, **attributes: Any) -> None:
        group = zarr.open_group(work / stage / name, mode="a")
        group.create_array(array, data=stacked, chunks=(1, *stacked.shape[1:]))
        group.attrs.update(attributes)

    def document(stage: str, name: str, content: dict[str, Any]) -> None:
        path = work / stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    bad = {"lectures/broken.mp4": "moov atom not found: the file is cut short or no video",
           "notes.mp4": "does not decode: Invalid data found when processing input"}  # fmt: skip
    good = sorted(set(paths))
    (work / "validate").mkdir(parents=True)
    pd.DataFrame(
        [
            dict(path=path, sha256=SHA, bytes=1_055_736, status="ok", reason=None, container="mp4",
                 codec="h264", width=1280, height=720, fps=25.0, frames=132, seconds=5.28)
            for path in good
        ]
        + [
            dict(path=path, sha256=SHA, bytes=20_123, status="quarantined", reason=reason)
            for path, reason in bad.items()
        ]
    ).to_parquet(work / "validate" / "manifest.parquet")  # fmt: skip
    document("validate", "validation.json", {
        "files": len(good) + len(bad), "ok": len(good), "success": True,
        "quarantined": [{"path": path, "reason": reason} for path, reason in bad.items()],
        "expectations": [
            {"name": "file decodes", "column": "decodable", "severity": "critical",
             "success": False, "observed": "2 of 5 files fail",
             "expected": "every file decodes as a video, to its end"},
            {"name": "short side", "column": "short_side", "severity": "critical",
             "success": True, "observed": "0 of 5 files fail", "expected": "at least 128 px"},
            {"name": "no near copies", "column": "phash", "severity": "warning",
             "success": False, "observed": "2 of 5 files fail",
             "expected": "no two files with the same perceptual hash"},
        ],
    })  # fmt: skip

    store("clip", "clips.zarr", "video", np.stack(videos))
    document("clip", "clips.json", {
        "split_by": "time", "frames": frames, "size": size,
        "split_reason": f"{len(good)} good videos; a split by source needs at least 5",
        "counts": {name: splits.count(name) for name in ("train", "val", "test")},
        "clips": [
            {"index": i, "path": path, "sha256": SHA, "fps": 25.0, "start_frame": 9 * i,
             "y": 0, "x": 0, "split": split}
            for i, (path, split) in enumerate(zip(paths, splits, strict=True))
        ],
    })  # fmt: skip

    store("encode", "latents.zarr", "reconstruction", np.stack(teacher))
    document("encode", "latents.json", {
        "family": "ltx-video", "channels": 32, "compression": [4, 8, 8], "mean": [0.0] * 32,
        "std": [1.0] * 32, "teacher_sha256": "7ea" + SHA[3:], "clips": len(videos),
        "teacher_decoder_parameters": 4_512_003,
    })  # fmt: skip

    done = 400 if stopped == "finished" else 120
    steps = [
        {"step": step, "seconds": step * 0.8, "learning_rate": 2e-4,
         "loss_source": 0.05 + 0.03 * np.exp(-step / 60) + 0.006 * np.sin(step * 1.7),
         "loss_teacher": 0.02 + 0.05 * np.exp(-step / 50) + 0.004 * np.sin(step * 2.3),
         "spent_usd": str(Decimal("0.004") + Decimal("0.0000178") * step)}
        for step in range(1, done + 1)
    ]  # fmt: skip
    for row in steps:
        row["loss"] = row["loss_source"] + row["loss_teacher"]
        row |= {f"loss_{name}": value * (1 + 1 / row["step"]) for name, value in losses.items()}
        if row["step"] % 40 == 0:
            row["val_psnr"] = 28.6 - 3.2 * np.exp(-row["step"] / 110)
    document("distill", "history.json", {
        "steps": steps, "stopped": stopped, "steps_done": done, "steps_planned": 400,
        "reason": reason or ("all 400 steps done" if stopped == "finished" else
                             "$0.08 of $0.08 spent; the next step would eat into the reserve."),
        "target_psnr": target_psnr, "limit_usd_per_tenth_db": None,
        "best_step": done, "student_parameters": 1_038_211,
        "teacher_decoder_parameters": 4_512_003, "workers": 2, "precision": "bf16",
        "start": "linear", "usd_per_tenth_db": "0.00041",
        "recipe": {"L1 to the source": 1.0, "L1 to the teacher": 0.25, **losses},
        "targets": {"mode": "cache", "reason": "reading is 8 times as fast as the teacher"},
        "warnings": warnings, "restarts": restarts,
    })  # fmt: skip

    def quality(video: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        value = db(video, reference)
        return {"psnr": value, "ssim": 0.84, "ms_ssim": 0.95, "flicker": 0.3 / value}

    def summary(who: str) -> dict[str, dict[str, float]]:
        columns = {key: sorted(clip[who][key] for clip in rows) for key in rows[0][who]}
        return {
            key: {"mean": float(np.mean(values)), "worst": values[-1 if key == "flicker" else 0]}
            for key, values in columns.items()
        }

    rows = [
        {"index": i, "path": paths[i], "start_frame": 9 * i,
         "teacher": quality(teacher[i], videos[i]), "student": quality(phone[i], videos[i])}
        for i in tests
    ]  # fmt: skip
    both = {who: summary(who) for who in ("teacher", "student")}
    kept = {
        key: both["student"][key]["mean"] / both["teacher"][key]["mean"]
        for key in ("psnr", "ssim", "ms_ssim")
    }
    worst = min(rows, key=lambda row: row["student"]["psnr"])["index"]
    document("evaluate", "evaluation.json", {
        **both, "retention": kept, "worst_share": 0.05, "clips": rows, "worst_clip": worst,
    })  # fmt: skip

    document("gate", "package/package.json", {
        "format": 1, "program": "decoder.pte", "files": [],
        "io": {"latent_shape": [1, 32, 3, size // 8, size // 8],
               "video_shape": [1, 3, frames, size, size]}, "size_bytes": 4_310_220,
        "tools": {"torch": "2.13.0", "executorch": "1.5.1"}, "sha256": "9ac" + SHA[3:],
    })  # fmt: skip

    store("gate", "frames.zarr", "video", np.stack([phone[i] for i in tests]), indices=tests)
    document("gate", "measurement.json", {
        "device": "host", "machine": "x86_64, 2 cores, Linux 6.8", "runtime": "executorch 1.5.1",
        "package_sha256": "9ac" + SHA[3:], "threads": 1, "warmup": 2,
        "latency_seconds": [0.131, 0.128, 0.135, 0.129, 0.142], "cold_start_seconds": 0.34,
        "median_latency_seconds": 0.131, "latency_interval_seconds": [0.1285, 0.1415],
        "confidence": 0.95,
        "peak_memory_bytes": 312_000_000, "baseline_memory_bytes": 180_000_000,
        "clips": len(tests), "teacher_latency_seconds": [0.311, 0.308, 0.322, 0.310, 0.309],
        "quality": both["student"],
    })  # fmt: skip
    verdict = judge(
        evidence(
            psnr_db=both["student"]["psnr"]["mean"], ssim=0.84, ms_ssim=0.95,
            worst_psnr_db=both["student"]["psnr"]["worst"],
            teacher_psnr_db=both["teacher"]["psnr"]["mean"], parity_psnr_db=78.3,
            cold_start_seconds=0.34, peak_memory_bytes=312e6, package_bytes=4_310_220,
            latency_seconds=0.131, teacher_latency_seconds=0.310,
            intervals={"latency_ratio": (0.41, 0.44)},
        ),
        customer=work.name, use_case="education", thresholds=thresholds, min_parity_psnr=60.0,
        package_sha256="9ac" + SHA[3:], data_sha256="da7a" + SHA[4:], git_revision="8c1d5e0f77",
        created=FINISHED.isoformat(),
    )  # fmt: skip
    document("gate", "verdict.json", verdict.to_json())
    document("gate", "choice.json", {
        "chosen": "executorch-xnnpack/fp32", "choose": "best",
        "not_measured": {},
        "reason": "executorch-xnnpack/fp32 has the best PSNR of the 2 packages that pass, "
        "of 2 that were measured",
        "candidates": [
            {"name": f"executorch-xnnpack/{precision}", "result": "passes", "not_passed": [],
             "psnr_db": psnr, "parity_psnr_db": 78.3, "median_latency_seconds": seconds,
             "latency_interval_seconds": [seconds - 0.0025, seconds + 0.0105],
             "size_bytes": 4_310_220, "package_sha256": "9ac" + SHA[3:]}
            for precision, psnr, seconds in (("fp32", 28.0, 0.131), ("int8", 27.6, 0.08))
        ],
    })  # fmt: skip
    return work


def cost_summary(stages: Sequence[str], budget_usd: str = "95") -> CostSummary:
    """Charges of so many stages, distill the longest; a tenth of it wasted."""
    seconds = {"validate": 9, "clip": 14, "encode": 41, "distill": 402, "evaluate": 33,
               "export": 48, "gate": 52}  # fmt: skip
    usd = {stage: Decimal(seconds[stage]) * Decimal("0.08") / 3600 for stage in stages}
    total = sum(usd.values(), Decimal(0))
    rows = tuple(
        StageRow(
            stage=stage,
            node_seconds=Decimal(seconds[stage]),
            usd=usd[stage],
            wasted_usd=usd[stage] / 10 if stage == "distill" else Decimal(0),
            share=usd[stage] / total,
        )
        for stage in stages
    )
    return CostSummary(
        run="demo-3f9c2a71b04d",
        usd=total,
        wasted_usd=sum((row.wasted_usd for row in rows), Decimal(0)),
        stages=rows,
        budget_usd=Decimal(budget_usd),
        budget_share=total / Decimal(budget_usd),
        old_prices=(),
        over_usd=max(Decimal(0), total - Decimal(budget_usd)),
    )


def make_work(folder: Path, **options: Any) -> Path:
    """A full work folder of twelve small clips of two videos; `options` are `build_work`'s."""
    videos = [moving(64, 9, i) for i in range(12)]
    paths = [("bikes.mp4", "lectures/optics.mp4")[i % 2] for i in range(12)]
    teacher = [noisy(video, 6 + i % 4, 100 + i) for i, video in enumerate(videos)]
    phone = [noisy(video, 7 + i % 5, 200 + i) for i, video in enumerate(videos)]
    return build_work(folder, videos, teacher, phone, options.pop("paths", paths), **options)


def gather(work: Path, **options: Any) -> ReportContext:
    """`collect` with the plain values of a run filled in."""
    stages = ("validate", "clip", "encode", "distill", "evaluate", "export", "gate")
    values: dict[str, Any] = {
        "run_id": "demo-3f9c2a71b04d",
        "started": STARTED,
        "finished": FINISHED,
        "costs": cost_summary(stages),
        "price": "$0.08 per hour, local (params.yaml)",
        "shots": 2,
    }
    return collect(work, **(values | options))
