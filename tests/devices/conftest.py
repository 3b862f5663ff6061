"""Packages and latents that every device can be tried with."""

import json
from importlib import import_module

import numpy as np
import pytest

from tests.devices.small import SHAPE, VIDEO_SHAPE
from tests.export.small import small_decoder
from tests.exports import exported_once
from turbo_vaed.devices import host, teacher
from turbo_vaed.export import ExportJob, IoSpec, Target, export_package, write_package


@pytest.fixture(scope="session")
def decoder():
    return small_decoder()


@pytest.fixture(scope="session")
def exported(decoder, tmp_path_factory):
    """`exported(target)`: the decoder's package for it."""

    def export(name):
        target, folder = Target.parse(name), tmp_path_factory.mktemp("export")
        job = ExportJob(
            decoder=decoder, latent_shape=SHAPE, precision=target.precision,
            folder=folder / "program",
        )  # fmt: skip
        with exported_once(tmp_path_factory):
            return export_package(target, folder / "package", job)

    return export


@pytest.fixture(scope="session")
def package(exported):
    return exported("executorch-xnnpack/fp32")


def _made_up(folder, target, program, dtype="float32"):
    io = IoSpec(
        latent_shape=SHAPE, video_shape=VIDEO_SHAPE, frames_per_latent=2, first_latent_frames=1,
        halo_frames=(9, 9), latent_dtype=dtype, video_dtype=dtype,
    )  # fmt: skip
    return write_package(folder / "package", program, io, target=target)


@pytest.fixture(scope="session")
def android(tmp_path_factory):
    """A package for a fake phone, which runs it by `fake_program`."""
    folder = tmp_path_factory.mktemp("android")
    (folder / "decoder.pte").write_bytes(b"a program for Android")
    return _made_up(folder, "executorch-xnnpack/fp32", folder / "decoder.pte")


@pytest.fixture(scope="session")
def half(tmp_path_factory):
    """A package for a fake iPhone that takes and gives float16."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "decoder.pte").write_bytes(b"a program of half precision")
    return _made_up(folder, "executorch-xnnpack/fp16", folder / "decoder.pte", "float16")


@pytest.fixture(scope="session")
def coreml(tmp_path_factory):
    """A package for a fake Mac or iPhone: its program is a folder."""
    program = tmp_path_factory.mktemp("coreml") / "decoder.mlpackage"
    (program / "Data").mkdir(parents=True)
    (program / "Manifest.json").write_text("{}")
    (program / "Data" / "model").write_bytes(b"a program for Core ML")
    return _made_up(program.parent, "coreml/fp16", program)


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """Packages and teachers are timed here, and not in processes that load PyTorch each."""

    def run_here(module, arguments, **_):
        result = tmp_path / "result.json"
        import_module(module).main([str(result), *arguments])
        return json.loads(result.read_text())

    for starter in (host, teacher):
        monkeypatch.setattr(starter, "run_module", run_here)


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype(np.float32))
    return path
