"""A package, latents and a plan that every device can be tried with."""

import numpy as np
import pytest

from tests.devices.small import SHAPE
from tests.export.small import small_decoder
from turbo_vaed.export import ExportJob, Target, export_package


@pytest.fixture(scope="session")
def decoder():
    return small_decoder()


@pytest.fixture(scope="session")
def package(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    job = ExportJob(
        decoder=decoder, latent_shape=SHAPE, precision="fp32", folder=folder / "program"
    )
    return export_package(Target.parse("executorch-xnnpack/fp32"), folder / "package", job)


@pytest.fixture(scope="session")
def half(decoder, tmp_path_factory):
    """A package that takes and gives float16."""
    folder = tmp_path_factory.mktemp("half")
    job = ExportJob(
        decoder=decoder, latent_shape=SHAPE, precision="fp16", folder=folder / "program"
    )
    return export_package(Target.parse("executorch-xnnpack/fp16"), folder / "package", job)


@pytest.fixture(scope="session")
def coreml(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml")
    job = ExportJob(
        decoder=decoder, latent_shape=SHAPE, precision="fp16", folder=folder / "program"
    )
    return export_package(Target.parse("coreml/fp16"), folder / "package", job)


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype(np.float32))
    return path
