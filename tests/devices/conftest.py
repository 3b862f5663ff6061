"""A package, latents and a plan that every device can be tried with."""

import numpy as np
import pytest

from tests.devices.small import SHAPE
from tests.export.small import small_decoder
from tests.exports import exported_once
from turbo_vaed.export import ExportJob, Target, export_package


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


@pytest.fixture(scope="session")
def half(exported):
    """A package that takes and gives float16."""
    return exported("executorch-xnnpack/fp16")


@pytest.fixture(scope="session")
def coreml(exported):
    return exported("coreml/fp16")


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype(np.float32))
    return path
