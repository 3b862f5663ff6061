"""A package is run before it is believed."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from turbo_vaed.errors import Fault
from turbo_vaed.export import Job, Target, export_package, load_package
from turbo_vaed.models import TurboVaedDecoder
from turbo_vaed.stages import export
from turbo_vaed.stages._held_out import HeldOut, load_student
from turbo_vaed.stages._verify import verify


@pytest.fixture(scope="module")
def held_out(judged):
    split = HeldOut.open(judged.poc)
    return split.latents(split.indices)


def test_every_package_has_its_parity_on_held_out_clips(judged, files):
    document = files.read(judged.poc, "export", "parity.json")
    assert list(document) == ["executorch-xnnpack-fp32"]
    found = document["executorch-xnnpack-fp32"]
    assert (found["how"], found["clips"], found["limit_db"]) == ("runtime", 3, 80)
    gate = files.read(judged.poc, "gate", "measurement.json")["parity_psnr_db"]
    assert found["parity_psnr_db"] == pytest.approx(gate, abs=0.1)


def test_a_conversion_that_computes_something_else_is_caught(judged, held_out, tmp_path):
    """Planted: a program of the same shapes, whole and runnable, with one layer's taps in the
    wrong order, as a converter that turns time round would leave them."""
    student = load_student(judged.poc)
    wrong = TurboVaedDecoder(student.config).eval()
    wrong.load_state_dict(student.state_dict())
    with torch.no_grad():
        wrong.conv_in.conv.weight.copy_(student.conv_in.conv.weight.flip(2))
    package = export_package(
        Target.parse("executorch-xnnpack/fp32"),
        tmp_path / "package",
        Job(decoder=wrong, latent_shape=(1, *held_out.shape[1:]), precision="fp32",
            folder=tmp_path / "program"),
    )  # fmt: skip
    with pytest.raises(Fault, match=r"executorch-xnnpack/fp32: .* dB from PyTorch, at least 80 dB"):
        verify(package, student, held_out, limit_db=80.0)
    assert verify(package, wrong, held_out, limit_db=80.0).clips == len(held_out)


def test_a_package_of_nan_is_caught(judged, held_out, files, monkeypatch):
    package = load_package(files.package(judged.poc))
    from turbo_vaed.stages import _verify

    def decoded(_):
        video = np.zeros((len(held_out), *package.io.video_shape[1:]), np.float32)
        video[1, 0, 0, 0, 0] = np.nan
        return video

    monkeypatch.setattr(_verify, "read_decoded", decoded)
    with pytest.raises(Fault, match="not finite"):
        verify(package, load_student(judged.poc), held_out, limit_db=1.0)


def test_a_limit_that_is_missed_ends_the_stage_and_keeps_the_old_packages(judged_copy):
    section = judged_copy.params.export
    strict = dataclasses.replace(section.min_parity_db, fp32=101.0)  # PSNR ends at 100 dB
    changed = dataclasses.replace(section, min_parity_db=strict)
    params = dataclasses.replace(judged_copy.params, export=changed)
    before = json.loads((judged_copy.folder("export") / "parity.json").read_text())
    with pytest.raises(Fault, match=r"export\.min_parity_db"):
        export.run(dataclasses.replace(judged_copy, params=params))
    assert json.loads((judged_copy.folder("export") / "parity.json").read_text()) == before


def test_latents_are_repeated_and_cut_to_another_shape():
    latents = np.arange(2 * 1 * 2 * 3 * 3, dtype=np.float32).reshape(2, 1, 2, 3, 3)
    assert np.array_equal(export.fitted(latents, (1, 1, 2, 3, 3)), latents)
    larger = export.fitted(latents, (1, 1, 3, 4, 7))
    assert larger.shape == (2, 1, 3, 4, 7)
    assert np.array_equal(larger[:, :, :2, :3, :3], latents)
    assert np.array_equal(larger[:, :, 2, 3, 3:6], latents[:, :, 0, 0, :])
