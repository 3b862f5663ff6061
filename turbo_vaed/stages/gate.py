"""Stage `gate`: every package on a device, what it put out against the source, and verdicts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turbo_vaed.devices import Failed, Measurement, Plan
from turbo_vaed.devices.device import Device, measure_on
from turbo_vaed.devices.opened import open_device
from turbo_vaed.devices.teacher import Precision, TeacherTimes, has_gpu, measure_teacher
from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.export import Package, Target, load_package
from turbo_vaed.gate import Candidate, Verdict, choose, judge, write_verdict
from turbo_vaed.gate.evidence import evidence_of
from turbo_vaed.gate.output_quality import Shown, look_at
from turbo_vaed.gate.provenance import data_sha256, git_revision
from turbo_vaed.gate.test_split import TestSplit, load_student
from turbo_vaed.stages.export import fitted, left_out, package_folder, wanted
from turbo_vaed.workspace import Workspace

TIMEOUT_SECONDS = 1800.0
"""Of one measuring process: it hangs, or is of no use on a phone either."""


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A package, what it did on the device and what came of it."""

    target: Target
    package: Package
    found: Measurement | Failed
    used: Measurement | Failed
    """Of the program that the device's apps use, where that is another one."""
    shown: Shown
    verdict: Verdict
    unreliable_reason: str
    """Why it ran to no end, or its times or the teacher's are no basis; empty where they are."""
    place: Path
    """Where its verdict, measurement and frames are kept."""

    def candidate(self) -> Candidate:
        measured = {check.name: check.measured for check in self.verdict.checks}
        used = self.used
        return Candidate(
            name=str(self.target),
            verdict=self.verdict,
            psnr_db=measured["psnr"],
            latency_seconds=used.latency.median if isinstance(used, Measurement) else None,
            size_bytes=self.package.size_bytes,
        )


def run(workspace: Workspace) -> dict[str, object]:
    """Judge every package of `export.targets` that runs on this host, and choose what ships.

    Writes gate/candidates/NAME/ with verdict.json, measurement.json and frames.zarr of each;
    choice.json; and those three of the chosen one beside package/, which is what ships. A verdict
    that fails is a result like any other: the stage has done its work.

    Raises:
        CorruptFile: an input is missing or damaged.
        UserError: none of the packages runs on this host.
        Fault: a device reported nonsense.
    """
    split = TestSplit.open(workspace)
    evaluation = _read_evaluation(workspace, split)
    packages, elsewhere = _packages(workspace)
    with workspace.writing("gate") as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            teacher = _teacher(workspace, split, Path(scratch))
            origin = {
                "data_sha256": data_sha256(workspace),
                "git_revision": git_revision(workspace.root),
            }
            judged = [
                _judge(workspace, split, target, package, evaluation, teacher, folder, origin)
                for target, package in packages.items()
            ]
        candidates = [one.candidate() for one in judged]
        choice = choose(candidates, workspace.params.thresholds.choose)
        chosen = next(one for one in judged if str(one.target) == choice.name)
        for name in ("verdict.json", "measurement.json", "frames.zarr"):
            source = chosen.place / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / name)
            if source.is_dir():  # the frames of the others are in nobody's way, and large
                for one in judged:
                    shutil.rmtree(one.place / name)
        shutil.copytree(chosen.package.folder, folder / "package")
        document = {
            "chosen": choice.name,
            "reason": choice.reason,
            "choose": workspace.params.thresholds.choose,
            "candidates": [
                _row(one, candidate) for one, candidate in zip(judged, candidates, strict=True)
            ],
            "not_measured": elsewhere,
        }
        _write(document, folder / "choice.json")
    verdict = chosen.verdict
    return {
        "result": verdict.result,
        "package": choice.name,
        "why": choice.reason,
        "failed": [check.reason for check in verdict.failed],
        **{check.name: check.measured for check in verdict.checks},
        "package_sha256": verdict.package_sha256,
    }


def check_device(workspace: Workspace) -> None:
    """Refuse, before anything is computed, targets of which none runs on the gate's device.

    Raises:
        UserError: it names the device, its runtimes and the targets.
    """
    device, targets = _device(workspace), wanted(workspace)
    if not any(target.runtime in device.runtimes for target in targets):
        raise UserError(
            f"export.targets: found {', '.join(map(str, targets))}, of which {device.name} "
            f"(gate.device) runs none; expected one for {' or '.join(device.runtimes)}: add it, or "
            "name another device"
        )


def _packages(workspace: Workspace) -> tuple[dict[Target, Package], dict[str, str]]:
    """What runs here; and of the rest, why it was not measured, by its name."""
    here, elsewhere = {}, {}
    device, refused = _device(workspace), left_out(workspace)
    for target in wanted(workspace):
        folder = package_folder(workspace, target)
        if why := refused.get(folder.name):
            elsewhere[str(target)] = why
            continue
        try:
            package = load_package(folder)
        except (FileNotFoundError, ValueError) as error:
            raise CorruptFile(f"{error}; run the export stage again") from error
        if target.runtime in device.runtimes:
            here[target] = package
        else:
            elsewhere[str(target)] = f"its runtime does not run on {device.name}"
    if not here:
        raise UserError(
            f"none of export.targets runs on {device.name}; add one that does, "
            "executorch-xnnpack/fp32 say: "
            + "; ".join(f"{name}: {why}" for name, why in elsewhere.items())
        )
    return here, elsewhere


def _device(workspace: Workspace) -> Device:
    """That of `gate.device`."""
    limit = workspace.params.gate.max_background_cpu_share
    return open_device(
        workspace.params.device,
        workspace.root,
        max_background_cpu_share=limit,
        charge=workspace.run_context.charge,
        tags=workspace.run_context.tags,
    )


def _judge(
    workspace: Workspace,
    split: TestSplit,
    target: Target,
    package: Package,
    evaluation: Mapping[str, Any],
    teacher: Mapping[str, Any],
    folder: Path,
    origin: Mapping[str, str],
) -> _Judged:
    place = folder / "candidates" / target.folder_name
    place.mkdir(parents=True)
    params = workspace.params
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = measure_on(
            _device(workspace),
            package,
            _latents(split, Path(scratch)),
            plan=plan(workspace),
            out_folder=Path(scratch),
            timeout_seconds=TIMEOUT_SECONDS,
        )
        decoded = None if isinstance(found, Failed) else Path(scratch)
        shown = look_at(split, decoded, load_student(workspace), place, evaluation["worst_share"])
    on_device = None if isinstance(found, Failed) else _on_device(workspace, split, package, folder)
    used = found if on_device is None else on_device
    teacher_unreliable_reason = _unreliable_reason(teacher, params.gate.max_background_cpu_share)
    evidence = evidence_of(
        package,
        found,
        teacher["teacher_latency_seconds"],
        shown,
        evaluation,
        params.gate.confidence,
        on_device=on_device,
        teacher_unreliable_reason=teacher_unreliable_reason,
    )
    verdict = judge(
        evidence,
        customer=workspace.customer,
        use_case=params.use_case,
        thresholds=params.thresholds,
        min_parity_psnr=getattr(params.export.min_parity_db, target.precision),
        package_sha256=package.sha256,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=str(target),
        device=found.device,
        **origin,
    )
    document = {
        **found.to_json(),
        "device_kind": params.device.kind,
        **teacher,
        "quality": shown.quality,
        "quality_clips": list(shown.clips),
        "parity_psnr_db": shown.parity_psnr_db,
        "on_device": None
        if on_device is None
        else {"shape": _shape_of(workspace), **on_device.to_json()},
    }
    _write(document, place / "measurement.json")
    write_verdict(verdict, place)
    return _Judged(
        target=target,
        package=package,
        found=found,
        used=used,
        shown=shown,
        verdict=verdict,
        unreliable_reason=_doubt(found) or _doubt(used) or teacher_unreliable_reason,
        place=place,
    )


def _on_device(
    workspace: Workspace, split: TestSplit, package: Package, folder: Path
) -> Measurement | Failed | None:
    """What the program for the device's own shape did there, on latents of two clips repeated to
    it; None where that is the clips' program."""
    if workspace.params.device.shape is None:
        return None
    package = package.shaped(_shape_of(workspace))
    if package.at == 0:
        return None
    import numpy as np

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        latents = Path(scratch) / "latents.npy"
        np.save(latents, fitted(split.latents(split.indices[:2]), package.io.latent_shape))
        return measure_on(
            _device(workspace),
            package,
            latents,
            plan=plan(workspace),
            out_folder=Path(scratch),
            timeout_seconds=TIMEOUT_SECONDS,
        )


def _shape_of(workspace: Workspace) -> str:
    """The device's own shape, as programs are named by: `9x720x1280`."""
    return "x".join(map(str, workspace.params.device.shape or ()))


def _doubt(found: Measurement | Failed) -> str:
    return found.reason if isinstance(found, Failed) else found.unreliable_reason


def _row(one: _Judged, candidate: Candidate) -> dict[str, Any]:
    """Of the table of candidates."""
    used = one.used if isinstance(one.used, Measurement) else None
    return {
        "name": candidate.name,
        "result": one.verdict.result,
        "not_passed": [check.name for check in one.verdict.failed],
        "unreliable_reason": one.unreliable_reason,
        "psnr_db": candidate.psnr_db,
        "parity_psnr_db": one.shown.parity_psnr_db,
        "median_latency_seconds": candidate.latency_seconds,
        "latency_interval_seconds": [used.latency.low, used.latency.high] if used else None,
        "size_bytes": candidate.size_bytes,
        "package_sha256": one.package.sha256,
    }


def plan(workspace: Workspace) -> Plan:
    """How long a program is measured, by params.yaml."""
    params = workspace.params.gate
    return Plan(
        threads=params.threads,
        max_warmup=params.max_warmup,
        min_samples=params.min_samples,
        max_samples=params.max_samples,
        max_spread=params.max_spread,
        refused_spread=params.refused_spread,
        confidence=params.confidence,
    )


def _teacher(workspace: Workspace, split: TestSplit, scratch: Path) -> dict[str, Any]:
    """What measurement.json says of the teacher's decoder, timed under the same conditions; and on
    the GPU, where this host has one, as the cloud would run it.

    No verdict hangs on the GPU: where it fails, the document says why instead.
    """
    own = _time_teacher(workspace, split, scratch, "cpu", "float32")
    # Once more: it may have been a moment.
    if (own.background_cpu_share or 0.0) > workspace.params.gate.max_background_cpu_share:
        own = _time_teacher(workspace, split, scratch, "cpu", "float32")
    found = {
        "teacher_latency_seconds": list(own.seconds),
        "teacher_machine": own.machine,
        "teacher_others_share": own.background_cpu_share,
    }
    if not has_gpu():
        return found
    try:
        gpu = _time_teacher(workspace, split, scratch, "cuda", "bfloat16")
    except Fault as error:
        # The last line is what it died of, above it are places of this machine.
        return {**found, "teacher_gpu_failed": str(error).splitlines()[-1][-300:]}
    return {
        **found,
        "teacher_gpu_latency_seconds": list(gpu.seconds),
        "teacher_gpu": gpu.machine,
    }


def _unreliable_reason(teacher: Mapping[str, Any], most: float) -> str:
    """Why the teacher's times are no yardstick; empty where they are one."""
    share = teacher["teacher_others_share"] or 0.0
    if share <= most:
        return ""
    return (
        f"other processes took {share:.0%} of this machine while the teacher was timed, at most "
        f"{most:.0%} is allowed: stop them and measure again"
    )


def _time_teacher(
    workspace: Workspace, split: TestSplit, scratch: Path, device: str, precision: Precision
) -> TeacherTimes:
    params = workspace.params
    # A teacher is slow, and its time is a yardstick: a few samples of it are enough. A GPU is not,
    # and its clock takes a while to rise.
    samples = min(params.gate.min_samples, params.gate.max_samples)
    warmup = params.gate.max_warmup if device == "cuda" else min(2, params.gate.max_warmup)
    return measure_teacher(
        params.encode.teacher_family,
        workspace.teacher_weights(),
        _latents(split, scratch),
        plan=replace(plan(workspace), max_warmup=warmup, max_samples=samples),
        timeout_seconds=TIMEOUT_SECONDS,
        device=device,
        precision=precision,
    )


def _latents(split: TestSplit, scratch: Path) -> Path:
    import numpy as np

    path = scratch / "latents.npy"
    if not path.exists():
        np.save(path, split.latents(split.indices))
    return path


def _read_evaluation(workspace: Workspace, split: TestSplit) -> dict[str, Any]:
    path = workspace.folder("evaluate") / "evaluation.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = [clip["index"] for clip in document["clips"]]
        document["teacher"]["psnr"]["mean"], document["worst_share"]
        [(clip["path"], clip["teacher"]["detail"]) for clip in document["clips"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} is no whole evaluation ({error}); evaluate again") from None
    if found != split.indices:
        raise CorruptFile(f"{path} is about other clips than clips.json; evaluate again")
    return document


def _write(document: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
