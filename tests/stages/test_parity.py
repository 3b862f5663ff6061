"""A package is run before it is believed."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from turbo_vaed.errors import Fault
from turbo_vaed.export import load_package, spread_out, targets
from turbo_vaed.export.shapes import fitted
from turbo_vaed.gate import parity
from turbo_vaed.gate.packages import gate_device, packages_for, read_left_out
from turbo_vaed.gate.parity import verify
from turbo_vaed.gate.test_split import TestSplit, load_student
from turbo_vaed.runtime.isolated import ChildFailed
from turbo_vaed.stages import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split(judged):
    split = TestSplit.open(judged.workspace)
    return split.latents(split.indices)


def test_every_package_has_its_parity_on_the_test_split(judged, files):
    document = files.read(judged.workspace, "export", "parity.json")
    assert list(document) == ["executorch-xnnpack-fp32"]
    found = document["executorch-xnnpack-fp32"]
    assert (found["how"], found["clips"], found["limit_db"]) == ("runtime", 3, 80)
    gate = files.read(judged.workspace, "gate", "measurement.json")["parity_psnr_db"]
    assert found["parity_psnr_db"] == pytest.approx(gate, abs=0.1)


@pytest.mark.usefixtures("in_this_process")
def test_a_conversion_that_computes_something_else_is_refused(judged, split, files):
    """Planted: a program of the same shapes, whole and runnable, with one layer's taps in another
    order than the student's, as a converter that turns time round would leave them."""
    package, student = load_package(files.package(judged.workspace)), load_student(judged.workspace)
    assert verify(package, student, split, limit_db=80.0).clips == len(split)
    with torch.no_grad():
        student.conv_in.conv.weight.copy_(student.conv_in.conv.weight.flip(2))
    with pytest.raises(Fault, match=r"executorch-xnnpack/fp32: .* required >= 80 dB"):
        verify(package, student, split, limit_db=80.0)


@pytest.mark.usefixtures("in_this_process")
def test_a_package_that_outputs_nan_is_refused(judged, split, files, monkeypatch):
    package = load_package(files.package(judged.workspace))

    def decoded(_):
        video = np.zeros((len(split), *package.io.video_shape[1:]), np.float32)
        video[1, 0, 0, 0, 0] = np.nan
        return video

    monkeypatch.setattr(parity, "read_decoded", decoded)
    with pytest.raises(Fault, match="not finite"):
        verify(package, load_student(judged.workspace), split, limit_db=1.0)


def with_export(workspace, **changed):
    section = dataclasses.replace(workspace.params.export, **changed)
    return dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, export=section)
    )


@pytest.fixture
def half_as_whole(monkeypatch):
    """The package of fp16 holds the program of fp32, which is made already: no test of how it is
    converted."""
    runtime = targets.RUNTIMES["executorch-xnnpack"]

    def export(job):
        return runtime.export(dataclasses.replace(job, precision="fp32"))

    monkeypatch.setitem(
        targets.RUNTIMES, "executorch-xnnpack", dataclasses.replace(runtime, export=export)
    )


@pytest.mark.usefixtures("in_this_process")
def test_a_stage_that_refuses_every_package_keeps_the_old_ones(judged_copy):
    strict = dataclasses.replace(judged_copy.params.export.min_parity_db, fp32=101.0)
    before = json.loads((judged_copy.folder("export") / "parity.json").read_text())
    with pytest.raises(Fault, match=r"export\.min_parity_db"):  # 100 is most
        export.run(with_export(judged_copy, min_parity_db=strict))
    assert json.loads((judged_copy.folder("export") / "parity.json").read_text()) == before


@pytest.mark.usefixtures("in_this_process", "half_as_whole")
def test_a_refused_package_does_not_keep_others_from_export(judged_copy, files):
    """The gate judges the other package, and records why this one was left out."""
    strict = dataclasses.replace(judged_copy.params.export.min_parity_db, fp16=101.0)
    targets = ("executorch-xnnpack/fp16", "executorch-xnnpack/fp32")
    workspace = with_export(judged_copy, min_parity_db=strict, targets=targets)
    figures = export.run(workspace)
    assert ">= 101 dB" in figures["executorch-xnnpack/fp16 left out"]
    assert [f.name for f in (workspace.folder("export") / "packages").iterdir()] == [
        "executorch-xnnpack-fp32"
    ]
    packages, not_measured = packages_for(workspace, gate_device(workspace))
    assert [str(target) for target in packages] == ["executorch-xnnpack/fp32"]
    assert not_measured.keys() == {"executorch-xnnpack/fp16"}
    assert ">= 101 dB" in not_measured["executorch-xnnpack/fp16"]


@pytest.mark.usefixtures("in_this_process", "half_as_whole")
def test_a_crashing_package_does_not_keep_others_from_export(judged_copy, monkeypatch):
    def run(package, *_, **__):
        if package.target.endswith("fp16"):
            raise ChildFailed("executorch was killed by SIGSEGV; its last words: none")
        return whole(package, *_, **__)

    whole = parity.decode
    monkeypatch.setattr(parity, "decode", run)
    targets = ("executorch-xnnpack/fp32", "executorch-xnnpack/fp16")
    workspace = with_export(judged_copy, targets=targets)
    export.run(workspace)
    assert read_left_out(workspace).keys() == {"executorch-xnnpack-fp16"}


@pytest.mark.usefixtures("in_this_process")
def test_a_failing_converter_does_not_keep_others_from_export(judged_copy, monkeypatch):
    """With an error of its own library's, as those of five are."""

    def fails(job):
        raise RuntimeError("no kernel for aten.wings")

    broken = dataclasses.replace(targets.RUNTIMES["onnx"], export=fails)
    monkeypatch.setitem(targets.RUNTIMES, "onnx", broken)
    workspace = with_export(judged_copy, targets=("onnx/fp32", "executorch-xnnpack/fp32"))
    export.run(workspace)
    (left_out,) = read_left_out(workspace).items()
    assert left_out[0] == "onnx-fp32" and left_out[1].endswith(": no kernel for aten.wings")


def test_the_clips_for_parity_are_spread_over_all_videos():
    assert spread_out(range(54), 3) == [0, 18, 36]
    assert spread_out(range(2), 3) == [0, 1]
    assert spread_out([7], 1) == [7] and spread_out([], 3) == []


def test_latents_are_repeated_and_cut_to_fit_another_shape():
    latents = np.arange(2 * 1 * 2 * 3 * 3, dtype=np.float32).reshape(2, 1, 2, 3, 3)
    assert np.array_equal(fitted(latents, (1, 1, 2, 3, 3)), latents)
    larger = fitted(latents, (1, 1, 3, 4, 7))
    assert larger.shape == (2, 1, 3, 4, 7)
    assert np.array_equal(larger[:, :, :2, :3, :3], latents)
    assert np.array_equal(larger[:, :, 2, 3, 3:6], latents[:, :, 0, 0, :])
