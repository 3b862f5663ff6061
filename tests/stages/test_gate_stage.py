"""gate on made-up clips: a real package in the real runtime, a real verdict."""

import dataclasses
import hashlib
import re
import shutil
import statistics
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from turbo_vaed.config.devices import AdbProfile
from turbo_vaed.dataset.manifest import write_manifest
from turbo_vaed.devices import Failed, Measurement
from turbo_vaed.devices.host import machine
from turbo_vaed.devices.teacher import TeacherTimes
from turbo_vaed.errors import CorruptFile, Fault
from turbo_vaed.export import load_package, write_package
from turbo_vaed.gate import assessment, baseline, read_verdict
from turbo_vaed.models import load_decoder
from turbo_vaed.stages import gate
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

TESTS = [1, 3, 4]


def test_the_gate_stores_the_frames_of_the_device(judged, files):
    group = zarr.open_group(str(judged.workspace.folder("gate") / "frames.zarr"), mode="r")
    assert group.attrs["indices"] == TESTS
    frames = group["video"][:].astype(int)
    assert frames.shape == (3, 5, 32, 32, 3)
    assert np.abs(frames - files.student_video(judged.workspace)).max() <= 1
    names = {path.name for path in judged.workspace.folder("gate").iterdir()}
    assert names == {
        "candidates",
        "choice.json",
        "frames.zarr",
        "measurement.json",
        "package",
        "verdict.json",
    }


def test_the_verdict_names_the_bytes_and_measurements_it_judged(judged, files):
    workspace = judged.workspace
    verdict = read_verdict(workspace.folder("gate") / "verdict.json")
    document = files.read(workspace, "gate", "measurement.json")
    evaluation = files.read(workspace, "evaluate", "evaluation.json")
    measurement = Measurement.from_json(document)
    (candidate,) = files.read(workspace, "gate", "choice.json")["candidates"]
    assert candidate["unreliable_reason"] == measurement.unreliable_reason
    package = load_package(workspace.folder("gate") / "package")
    assert (verdict.customer, verdict.use_case) == ("demo", "education")
    assert verdict.result == "passes", verdict.not_passed
    assert verdict.package_sha256 == measurement.package_sha256 == package.sha256
    assert verdict.data_sha256 == hashlib.sha256(b"aa\nff").hexdigest()
    assert verdict.git_revision == "unknown"  # the temporary root is no checkout

    measured = {check.name: check.measured for check in verdict.checks}
    clips = document["quality_clips"]
    mean_psnr = statistics.mean(clip["psnr"] for clip in clips)
    assert measured["psnr"] == pytest.approx(mean_psnr)
    assert measured["worst_psnr"] == pytest.approx(min(clip["psnr"] for clip in clips))
    teacher_psnr = evaluation["teacher"]["psnr"]["mean"]
    assert measured["psnr_retention"] == pytest.approx(mean_psnr / teacher_psnr)
    assert measured["ssim"] == pytest.approx(statistics.mean(clip["ssim"] for clip in clips))
    assert measured["ms_ssim"] == pytest.approx(statistics.mean(c["ms_ssim"] for c in clips))
    assert measured["psnr"] == pytest.approx(evaluation["student"]["psnr"]["mean"], abs=0.01)
    assert measured["parity_psnr"] == document["parity_psnr_db"]
    assert measured["package_mb"] == package.size_bytes / 1e6
    assert measured["peak_memory_mb"] == measurement.peak_memory_bytes / 1e6
    assert measured["cold_start_seconds"] == measurement.cold_start_seconds
    latencies = (document["latency_seconds"], document["teacher_latency_seconds"])
    assert [len(samples) for samples in latencies] == [6, 3]  # of two processes, and of one
    assert (document["device_kind"], document["teacher_machine"]) == ("host", machine())
    assert [len(samples) for samples in measurement.seconds_by_process] == [3, 3]
    ratio = measurement.latency.median / statistics.median(latencies[1])
    assert measured["latency_ratio"] == pytest.approx(ratio)


def test_the_package_agrees_with_pytorch(judged, files):
    """Against its own floats: parity in the verdict is real, not the cap and not of rounding."""
    parity = files.read(judged.workspace, "gate", "measurement.json")["parity_psnr_db"]
    decoder = load_decoder(judged.workspace.folder("distill") / "student").eval()
    stored = files.stored(judged.workspace, "encode", "latents.zarr", "latents")
    latents = torch.from_numpy(stored[TESTS])
    with torch.no_grad():
        expected = torch.cat([decoder(one[None]) for one in latents]).double().numpy()
    errors = ((np.load(judged.decoded) - expected) / 2) ** 2
    assert parity == pytest.approx(min(100, -10 * np.log10(errors.mean((1, 2, 3, 4)).max())), abs=2)
    assert parity >= 60


def failed_checks(workspace: Workspace) -> set[str]:
    verdict = read_verdict(workspace.folder("gate") / "verdict.json")
    assert (verdict.result == "passes") == (not verdict.not_passed)
    return {check.name for check in verdict.not_passed}


def test_the_teacher_is_also_timed_on_the_hosts_gpu(judged_copy, remeasured, monkeypatch, files):
    remeasured()
    timed = []

    def measure(*_, plan, device, precision, **__):
        timed.append((device, precision, plan.max_warmup))
        if device == "cuda":
            return TeacherTimes(machine="NVIDIA L4", seconds=(0.01, 0.02))
        return TeacherTimes(machine="a processor", seconds=(1.0, 2.0, 3.0))

    monkeypatch.setattr(baseline, "measure_teacher", measure)
    monkeypatch.setattr(baseline, "has_gpu", lambda: True)
    longer = dataclasses.replace(judged_copy.params.gate, max_warmup=20)
    params = dataclasses.replace(judged_copy.params, gate=longer)
    figures = gate.run(dataclasses.replace(judged_copy, params=params))
    assert timed == [("cpu", "float32", 2), ("cuda", "bfloat16", 20)]
    document = files.read(judged_copy, "gate", "measurement.json")
    assert document["teacher_gpu_latency_seconds"] == [0.01, 0.02]
    assert (document["teacher_gpu"], document["teacher_machine"]) == ("NVIDIA L4", "a processor")
    assert document["teacher_latency_seconds"] == [1.0, 2.0, 3.0]
    # The package, on a CPU, is judged against the CPU's seconds.
    assert figures["latency_ratio"] == pytest.approx(document["median_latency_seconds"] / 2)


def test_a_gpu_that_fails_the_teacher_fails_no_gate(judged_copy, remeasured, monkeypatch, files):
    remeasured()
    on_cpu = baseline.measure_teacher

    def measure(*arguments, device, **options):
        if device == "cuda":
            raise Fault("the teacher crashed; its last words: in /a/place\nCUDA out of memory")
        return on_cpu(*arguments, device=device, **options)

    monkeypatch.setattr(baseline, "measure_teacher", measure)
    monkeypatch.setattr(baseline, "has_gpu", lambda: True)
    assert gate.run(judged_copy)["result"] == "passes"
    document = files.read(judged_copy, "gate", "measurement.json")
    assert document["teacher_gpu_failed"] == "CUDA out of memory"
    assert "teacher_gpu_latency_seconds" not in document


def test_without_a_gpu_there_are_no_gpu_figures(judged_copy, remeasured, monkeypatch, files):
    remeasured()
    monkeypatch.setattr(baseline, "has_gpu", lambda: False)
    gate.run(judged_copy)
    document = files.read(judged_copy, "gate", "measurement.json")
    assert not [key for key in document if key.startswith("teacher_gpu")]


def test_the_measurement_names_the_kind_of_its_device(judged_copy, remeasured, files):
    remeasured()
    phone = AdbProfile(name="pixel", kind="adb", runner="tools/runner")
    params = dataclasses.replace(judged_copy.params, device=phone)
    gate.run(dataclasses.replace(judged_copy, params=params))
    assert files.read(judged_copy, "gate", "measurement.json")["device_kind"] == "adb"


def test_a_machine_busy_during_the_teachers_timing_makes_the_ratio_inconclusive(
    judged_copy, remeasured, monkeypatch, files
):
    """It is timed once more, for it may have been a moment; the package's own times stand."""
    remeasured()
    shares = iter((0.6, 0.3, 0.6, 0.1))
    monkeypatch.setattr(baseline, "measure_teacher", lambda *a, **k: TeacherTimes(
        machine="a processor", seconds=(9.0, 9.0, 9.0), background_cpu_share=next(shares)
    ))  # fmt: skip
    strict = dataclasses.replace(judged_copy.params.gate, max_background_cpu_share=0.25)
    workspace = dataclasses.replace(
        judged_copy, params=dataclasses.replace(judged_copy.params, gate=strict)
    )
    assert gate.run(workspace)["result"] == "inconclusive"
    assert failed_checks(workspace) == {"latency_ratio"}
    (row,) = files.read(workspace, "gate", "choice.json")["candidates"]
    assert re.search("30% .*teacher", row["unreliable_reason"])
    assert gate.run(workspace)["result"] == "passes", "the second time the machine was idle"


def test_a_cold_start_is_inconclusive_where_its_repeats_disagree_across_the_limit(
    judged_copy, remeasured, monkeypatch
):
    remeasured()
    again = assessment.measure_on

    def measure(*arguments, **options):
        found = again(*arguments, **options)
        return dataclasses.replace(found, cold_start_seconds=4.95, cold_starts=(4.1, 5.8))

    monkeypatch.setattr(assessment, "measure_on", measure)
    limit = dataclasses.replace(judged_copy.params.thresholds, max_cold_start_seconds=5.0)
    params = dataclasses.replace(judged_copy.params, thresholds=limit)
    assert gate.run(dataclasses.replace(judged_copy, params=params))["result"] == "inconclusive"
    assert failed_checks(judged_copy) == {"cold_start_seconds"}


def test_speed_and_memory_are_judged_at_the_devices_own_shape(
    shaped_copy, remeasured, monkeypatch, files
):
    """A wider video than the clips'; what it looks like, and the time against the teacher's, are of
    the clips."""
    workspace, really = shaped_copy, assessment.measure_on
    remeasured()
    of_clips = assessment.measure_on

    def measure(device, package, latents, **options):
        run = really if package.at else of_clips
        return run(device, package, latents, **options)

    monkeypatch.setattr(assessment, "measure_on", measure)
    gate.run(workspace)
    document = files.read(workspace, "gate", "measurement.json")
    own, wide = Measurement.from_json(document), Measurement.from_json(document["on_device"])
    assert document["on_device"]["shape"] == "5x64x96"
    verdict = read_verdict(workspace.folder("gate") / "verdict.json")
    measured = {check.name: check.measured for check in verdict.checks}
    assert measured["fps"] == wide.fps < own.fps, "six times the pixels"
    assert measured["cold_start_seconds"] == wide.cold_start_seconds
    assert measured["peak_memory_mb"] == wide.peak_memory_bytes / 1e6
    ratio = own.latency.median / statistics.median(document["teacher_latency_seconds"])
    assert measured["latency_ratio"] == pytest.approx(ratio)
    shipped = load_package(workspace.folder("gate") / "package")
    assert verdict.package_sha256 == wide.package_sha256 == shipped.sha256
    assert measured["package_mb"] == shipped.size_bytes / 1e6, "all that ships"
    (row,) = files.read(workspace, "gate", "choice.json")["candidates"]
    assert row["median_latency_seconds"] == wide.latency.median


def test_a_program_that_fails_at_the_devices_shape_fails_the_gate(shaped_copy, remeasured, files):
    workspace = shaped_copy
    remeasured()
    of_clips = assessment.measure_on
    failed = Failed(
        device="host", machine="a processor", runtime="executorch", package_sha256="a" * 64,
        reason="it was killed (SIGKILL)",
    )  # fmt: skip
    measured = []

    def measure(device, package, latents, **options):
        measured.append(package.at)
        return failed if package.at else of_clips(device, package, latents, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "measure_on", measure)
        assert gate.run(workspace)["result"] == "fails"
    assert failed_checks(workspace) == {"fps", "cold_start_seconds", "peak_memory_mb"}
    (row,) = files.read(workspace, "gate", "choice.json")["candidates"]
    assert "SIGKILL" in row["unreliable_reason"] and measured == [0, 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "measure_on", lambda *_, **__: measured.append("again") or failed)
        assert gate.run(workspace)["result"] == "fails"
    assert measured[2:] == ["again"], "a phone is not rented for what has failed already"


@pytest.mark.parametrize(("choose", "chosen"), [("fastest", "fp16"), ("best", "fp32")])
def test_the_profile_chooses_which_of_several_packages_ships(
    judged, judged_copy, remeasured, monkeypatch, files, choose, chosen
):
    """Half precision in half the time, with noise on it."""
    packages = judged_copy.folder("export") / "packages"
    whole = load_package(packages / "executorch-xnnpack-fp32")
    write_package(
        packages / "executorch-xnnpack-fp16", whole.program_path, whole.io,
        target="executorch-xnnpack/fp16",
    )  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.05, np.load(judged.decoded).shape)
    remeasured()
    exact = assessment.measure_on

    def measure(device, package, latents, *, out_folder, **options):
        found = exact(device, package, latents, out_folder=out_folder, **options)
        if package.target.endswith("fp32"):
            return found
        decoded = np.load(out_folder / "decoded.npy") + noise.astype(np.float32)
        np.save(out_folder / "decoded.npy", decoded)
        halved = [[s / 2 for s in seconds] for seconds in found.seconds_by_process]
        return dataclasses.replace(found, seconds_by_process=tuple(map(tuple, halved)))

    monkeypatch.setattr(assessment, "measure_on", measure)
    thresholds = dataclasses.replace(judged_copy.params.thresholds, choose=choose, min_parity=1.0)
    section = judged_copy.params.export
    exported = dataclasses.replace(
        section,
        targets=("executorch-xnnpack/fp32", "executorch-xnnpack/fp16"),
        min_parity_db=dataclasses.replace(section.min_parity_db, fp16=1.0),
    )
    params = dataclasses.replace(judged_copy.params, thresholds=thresholds, export=exported)
    workspace = dataclasses.replace(judged_copy, params=params)
    name = f"executorch-xnnpack/{chosen}"
    assert gate.run(workspace)["package"] == name
    choice = files.read(workspace, "gate", "choice.json")
    assert choice["chosen"] == name and len(choice["candidates"]) == 2
    assert all(one["result"] == "passes" for one in choice["candidates"])
    assert read_verdict(workspace.folder("gate") / "verdict.json").target == name
    assert load_package(workspace.folder("gate") / "package").target == name
    seconds = files.read(workspace, "gate", "measurement.json")["median_latency_seconds"]
    assert seconds == min(one["median_latency_seconds"] for one in choice["candidates"]) or (
        choose == "best"
    )


def test_a_failing_verdict_is_a_complete_result(judged_copy, remeasured):
    remeasured()
    strict = dataclasses.replace(judged_copy.params.thresholds, min_ssim=1.0, max_package_mb=0.001)
    params = dataclasses.replace(judged_copy.params, thresholds=strict)
    figures = gate.run(dataclasses.replace(judged_copy, params=params))
    assert failed_checks(judged_copy) == {"ssim", "package_mb"}
    assert figures["result"] == "fails"
    assert len(figures["not_passed"]) == 2
    assert (judged_copy.folder("gate") / "frames.zarr").is_dir()


def test_quality_is_judged_on_the_devices_frames(judged_copy, remeasured, files):
    """A device that inverts one clip fails parity, though PyTorch's own output is as before."""

    def invert(decoded):
        decoded[1] = -decoded[1]
        return decoded

    remeasured(invert)
    before = files.read(judged_copy, "gate", "measurement.json")["quality_clips"]
    gate.run(judged_copy)
    after = files.read(judged_copy, "gate", "measurement.json")["quality_clips"]
    assert failed_checks(judged_copy) == {"parity_psnr"}
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_device_that_outputs_nan_fails_the_gate_without_a_fault(
    judged_copy, remeasured, value, files
):
    def spoil(decoded):
        decoded[2, 0, 0, 0, 0] = value
        return decoded

    remeasured(spoil)
    gate.run(judged_copy)
    quality = {
        "psnr_retention", "psnr", "ssim", "ms_ssim", "worst_psnr", "parity_psnr",
        "flicker_ratio", "detail_retention",
    }  # fmt: skip
    assert failed_checks(judged_copy) == quality
    assert files.read(judged_copy, "gate", "measurement.json")["quality"] is None


def test_the_git_revision_is_that_of_the_checkout(judged_copy, remeasured):
    remeasured()
    for command in (
        ["init", "-q"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m"],
    ):
        subprocess.run(["git", *command], cwd=judged_copy.root, check=True)
    gate.run(judged_copy)
    head = subprocess.check_output(
        ["git", "rev-parse", "HEAD"], cwd=judged_copy.root, text=True
    ).strip()
    assert read_verdict(judged_copy.folder("gate") / "verdict.json").git_revision == head


def test_the_data_hash_depends_on_good_files_and_not_on_their_names(judged_copy, remeasured):
    remeasured()
    path = judged_copy.folder("validate") / "manifest.parquet"
    manifest = pd.read_parquet(path)
    write_manifest(manifest.iloc[::-1].assign(path=["z", "y", "x"]), path)
    gate.run(judged_copy)
    verdicts = [read_verdict(judged_copy.folder("gate") / "verdict.json")]
    write_manifest(manifest.assign(status="ok"), path)
    gate.run(judged_copy)
    verdicts.append(read_verdict(judged_copy.folder("gate") / "verdict.json"))
    assert verdicts[0].data_sha256 == hashlib.sha256(b"aa\nff").hexdigest()
    assert verdicts[1].data_sha256 == hashlib.sha256(b"00\naa\nff").hexdigest()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p, _: (p.folder("evaluate") / "evaluation.json").unlink(), "evaluation.json"),
        (
            lambda p, files: files.shorten(p.folder("evaluate") / "evaluation.json"),
            "evaluation.json",
        ),
        (
            lambda p, files: files.rewrite_clips(p, lambda c: [*c[:4], {**c[4], "split": "val"}]),
            "other clips",
        ),
        (
            lambda p, files: files.shorten(files.package(p) / "decoder.pte"),
            "decoder.pte",
        ),
    ],
)
def test_a_damaged_input_of_the_gate_is_named(judged_copy, damage, message, files):
    damage(judged_copy, files)
    shutil.rmtree(judged_copy.folder("gate"))
    with pytest.raises(CorruptFile, match=message):
        gate.run(judged_copy)
    assert not judged_copy.folder("gate").exists()
    assert not (judged_copy.work / ".gate.partial").exists()


def test_a_damaged_teacher_is_named(judged_copy, remeasured, monkeypatch, files):
    whole = baseline.measure_teacher
    remeasured()
    monkeypatch.setattr(baseline, "measure_teacher", whole)
    files.shorten(judged_copy.teacher_weights() / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CorruptFile, match="teacher"):
        gate.run(judged_copy)
