"""One package measured on the device and judged: its verdict, measurement and frames on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turbo_vaed.devices import Failed, Measurement
from turbo_vaed.devices.device import Device, measure_on
from turbo_vaed.devices.timing import Plan
from turbo_vaed.export import Package, Target
from turbo_vaed.export.shapes import fitted
from turbo_vaed.gate.baseline import TIMEOUT_SECONDS, Baseline
from turbo_vaed.gate.choice import Candidate
from turbo_vaed.gate.evidence import evidence_of
from turbo_vaed.gate.judge import judge
from turbo_vaed.gate.output_quality import OutputQuality, measure_output
from turbo_vaed.gate.provenance import Provenance
from turbo_vaed.gate.test_split import TestSplit, load_student
from turbo_vaed.gate.verdict import VERDICT_NAME, Verdict, write_verdict
from turbo_vaed.runtime.files import write_json
from turbo_vaed.workspace import Workspace

MEASUREMENT_NAME = "measurement.json"
FRAMES_NAME = "frames.zarr"
RESULTS = (VERDICT_NAME, MEASUREMENT_NAME, FRAMES_NAME)
"""What an assessment leaves in its folder."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A package, what it did on the device, and its verdict."""

    target: Target
    package: Package
    found: Measurement | Failed
    """Of the program for the clips: what it put out is judged."""
    used: Measurement | Failed
    """Of the program that the device's apps use, which may be another: its speed is judged."""
    output: OutputQuality
    verdict: Verdict
    unreliable_reason: str
    """Why it failed, or its times or the teacher's are no basis for a verdict; empty where they
    are."""
    folder: Path
    """Where its verdict, measurement and frames are."""

    @property
    def candidate(self) -> Candidate:
        """What the choice among several packages depends on."""
        measured = {check.name: check.measured for check in self.verdict.checks}
        used = self.used
        return Candidate(
            name=str(self.target),
            verdict=self.verdict,
            psnr_db=measured["psnr"],
            latency_seconds=used.latency.median if isinstance(used, Measurement) else None,
            size_bytes=self.package.size_bytes,
        )

    def row(self) -> dict[str, Any]:
        """Its row in choice.json."""
        used = self.used if isinstance(self.used, Measurement) else None
        candidate = self.candidate
        return {
            "name": candidate.name,
            "result": self.verdict.result,
            "not_passed": [check.name for check in self.verdict.not_passed],
            "unreliable_reason": self.unreliable_reason,
            "psnr_db": candidate.psnr_db,
            "parity_psnr_db": self.output.parity_psnr_db,
            "median_latency_seconds": candidate.latency_seconds,
            "latency_interval_seconds": [used.latency.low, used.latency.high] if used else None,
            "size_bytes": candidate.size_bytes,
            "package_sha256": self.package.sha256,
        }


def assess(
    workspace: Workspace,
    target: Target,
    package: Package,
    *,
    device: Device,
    split: TestSplit,
    latents_npy: Path,
    evaluation: Mapping[str, Any],
    baseline: Baseline,
    provenance: Provenance,
    folder: Path,
) -> Assessment:
    """Measure a package on the device, judge it, and write `RESULTS` into `folder`.

    Args:
        latents_npy: of the test clips, in the order of the split.
        evaluation: the content of evaluation.json.

    Raises:
        Fault: the device was lost, or sent an invalid report.
    """
    folder.mkdir(parents=True)
    params = workspace.params
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        decoded = Path(scratch)
        found = measure_on(
            device,
            package,
            latents_npy,
            plan=Plan.of(params.gate),
            out_folder=decoded,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        output = measure_output(
            split,
            None if isinstance(found, Failed) else decoded,
            load_student(workspace),
            folder / FRAMES_NAME,
            evaluation["worst_share"],
        )
    # A program that failed already is not measured again at the device's shape.
    on_device = (
        None if isinstance(found, Failed) else _at_device_shape(workspace, package, device, split)
    )
    evidence = evidence_of(
        package,
        found,
        baseline.cpu.seconds,
        output,
        evaluation,
        params.gate.confidence,
        on_device=on_device,
        teacher_unreliable_reason=baseline.unreliable_reason,
    )
    verdict = judge(
        evidence,
        customer=workspace.customer,
        use_case=params.use_case,
        thresholds=params.thresholds,
        min_parity_psnr=getattr(params.export.min_parity_db, target.precision),
        package_sha256=package.sha256,
        data_sha256=provenance.data_sha256,
        git_revision=provenance.git_revision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=str(target),
        device=found.device,
    )
    document = {
        **found.to_json(),
        "device_kind": params.device.kind,
        **baseline.to_json(),
        "quality": output.quality,
        "quality_clips": list(output.clips),
        "parity_psnr_db": output.parity_psnr_db,
        "on_device": None
        if on_device is None
        else {"shape": _device_shape(workspace), **on_device.to_json()},
    }
    write_json(folder / MEASUREMENT_NAME, document)
    write_verdict(verdict, folder)
    used = found if on_device is None else on_device
    return Assessment(
        target=target,
        package=package,
        found=found,
        used=used,
        output=output,
        verdict=verdict,
        unreliable_reason=_unreliable(found) or _unreliable(used) or baseline.unreliable_reason,
        folder=folder,
    )


def _at_device_shape(
    workspace: Workspace, package: Package, device: Device, split: TestSplit
) -> Measurement | Failed | None:
    """The program for the device's own shape, on latents of two clips repeated to that shape; None
    where that is the clips' program."""
    if workspace.params.device.shape is None:
        return None
    package = package.shaped(_device_shape(workspace))
    if package.at == 0:
        return None
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        latents_npy = Path(scratch) / "latents.npy"
        np.save(latents_npy, fitted(split.latents(split.indices[:2]), package.io.latent_shape))
        return measure_on(
            device,
            package,
            latents_npy,
            plan=Plan.of(workspace.params.gate),
            out_folder=Path(scratch),
            timeout_seconds=TIMEOUT_SECONDS,
        )


def _device_shape(workspace: Workspace) -> str:
    """The device's own shape, as programs are named by: `9x720x1280`."""
    return "x".join(map(str, workspace.params.device.shape or ()))


def _unreliable(found: Measurement | Failed) -> str:
    return found.reason if isinstance(found, Failed) else found.unreliable_reason
