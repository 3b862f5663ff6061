"""Stage `gate`: every package measured on the device and judged; one of them is what ships."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from turbo_vaed.gate import choose
from turbo_vaed.gate.assessment import FRAMES_NAME, RESULTS, Assessment, assess
from turbo_vaed.gate.baseline import time_teacher
from turbo_vaed.gate.packages import gate_device, packages_for
from turbo_vaed.gate.provenance import provenance_of
from turbo_vaed.gate.test_split import TestSplit, read_evaluation
from turbo_vaed.runtime.files import write_json
from turbo_vaed.workspace import Workspace

STAGE_VERSION = 1
"""Increase it when the same input would give another output, so that DVC reruns the stage."""


def run(workspace: Workspace) -> dict[str, object]:
    """Judge every package of `export.targets` that runs on the device, and choose what ships.

    Writes gate/candidates/NAME/ with verdict.json and measurement.json of each; choice.json; and
    verdict.json, measurement.json and frames.zarr of the chosen one next to package/, which is what
    ships. A verdict that fails is a result like any other: the stage has done its work.

    Raises:
        CorruptFile: an input is missing or damaged.
        UserError: none of the packages runs on the device.
        Fault: a device sent an invalid report.
    """
    split = TestSplit.open(workspace)
    evaluation = read_evaluation(workspace, split)
    device = gate_device(workspace)
    packages, not_measured = packages_for(workspace, device)
    provenance = provenance_of(workspace)
    with workspace.writing("gate") as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            latents_npy = split.write_latents(Path(scratch))
            baseline = time_teacher(workspace, latents_npy)
            assessments = [
                assess(
                    workspace, target, package, device=device, split=split,
                    latents_npy=latents_npy, evaluation=evaluation, baseline=baseline,
                    provenance=provenance, folder=folder / "candidates" / target.folder_name,
                )
                for target, package in packages.items()
            ]  # fmt: skip
        by = workspace.params.thresholds.choose
        choice = choose([one.candidate for one in assessments], by)
        chosen = next(one for one in assessments if str(one.target) == choice.name)
        _ship(chosen, assessments, folder)
        document = {
            "chosen": choice.name,
            "reason": choice.reason,
            "choose": by,
            "candidates": [one.row() for one in assessments],
            "not_measured": not_measured,
        }
        write_json(folder / "choice.json", document)
    verdict = chosen.verdict
    return {
        "result": verdict.result,
        "package": choice.name,
        "why": choice.reason,
        "not_passed": [check.name for check in verdict.not_passed],
        **{check.name: check.measured for check in verdict.checks},
        "package_sha256": verdict.package_sha256,
    }


def _ship(chosen: Assessment, assessments: Sequence[Assessment], folder: Path) -> None:
    """Copy the chosen package and its results to `folder`. Frames stay there alone: they are large,
    and those of other candidates are read by nothing."""
    for name in RESULTS:
        source = chosen.folder / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    for one in assessments:
        shutil.rmtree(one.folder / FRAMES_NAME)
    shutil.copytree(chosen.package.folder, folder / "package")
