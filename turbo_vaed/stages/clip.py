"""Stage `clip`: manifest and videos -> clips of T frames in Zarr, split for train, val, test."""

from __future__ import annotations

from turbo_vaed.dataset.clip_store import cut_clips
from turbo_vaed.dataset.clips import SourceVideo, plan_clips
from turbo_vaed.dataset.manifest import read_manifest
from turbo_vaed.workspace import Workspace

STAGE_VERSION = 1
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Write clip/clips.zarr and clip/clips.json from the good files of the manifest.

    Raises:
        DataRefused: no train or no test clip is left.
        CorruptFile: the manifest is missing or broken, or a video changed since `validate`.
    """
    params = workspace.params.clip
    manifest = read_manifest(workspace.folder("validate") / "manifest.parquet")
    columns = ["path", "sha256", "width", "height", "frames", "fps"]
    rows = manifest[manifest["status"] == "ok"][columns].to_dict("records")
    plan = plan_clips(
        [SourceVideo(**{str(k): v for k, v in row.items()}) for row in rows],
        frames=params.frames,
        size=params.size,
        clips_per_video=params.clips_per_video,
        train_share=params.train_share,
        val_share=params.val_share,
        seed=params.seed,
    )
    with workspace.writing("clip") as folder:
        cut_clips(plan, workspace.source, folder)
    return {
        "clips": len(plan.clips),
        **plan.counts,
        "split_by": plan.split_by,
        "split_reason": plan.split_reason,
        "left_out": [f"{path}: {reason}" for path, reason in plan.left_out],
    }
