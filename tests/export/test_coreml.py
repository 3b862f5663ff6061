"""Core ML programs: made by coremltools, executed by the interpreter of what they are made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.small import (
    SHAPE,
    expected_video,
    hashes,
    packaged,
    packaged_elsewhere,
    small_decoder,
)
from turbo_vaed.errors import Fault
from turbo_vaed.export import ExportError, ExportJob, Package, Target, export_package
from turbo_vaed.export.mil import OPERATIONS, open_mlpackage
from turbo_vaed.gate.parity import verify
from turbo_vaed.models import TurboVaedDecoder
from turbo_vaed.runtime.import_noise import quiet_imports

pytestmark = pytest.mark.slow

with quiet_imports():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

TARGET = "coreml/fp16"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TurboVaedDecoder, Package]:
    return packaged(TARGET, tmp_path_factory.mktemp("coreml"))


def test_the_program_computes_what_pytorch_does(made: tuple[TurboVaedDecoder, Package]) -> None:
    decoder, package = made
    latents = torch.randn(SHAPE)
    expected = expected_video(decoder, latents)
    video = torch.from_numpy(open_mlpackage(package.program_path)(latents.numpy()))
    assert video.shape == expected.shape == package.io.video_shape
    noise = (video - expected).square().mean() / expected.square().mean()
    assert -10 * math.log10(noise) >= 45


def test_coremltools_names_its_input_and_output(made: tuple[TurboVaedDecoder, Package]) -> None:
    """As the runner on a Mac reads them; only `predict` is not on Linux."""
    path, unit = str(made[1].program_path), ct.ComputeUnit["CPU_AND_GPU"]
    with quiet_imports(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = ct.models.MLModel(path, compute_units=unit).get_spec().description
    names = [[feature.name for feature in f] for f in (described.input, described.output)]
    assert names == [["latents"], ["video"]]


def test_gains_and_offsets_that_training_moved_are_computed_too(tmp_path: Path) -> None:
    """Fresh ones are 1 and 0, which the converter leaves out; others it fuses."""
    decoder = small_decoder()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    job = ExportJob(decoder=decoder, latent_shape=SHAPE, precision="fp16", folder=tmp_path)
    package = export_package(Target.parse(TARGET), tmp_path / "package", job)
    latents = np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype(np.float32)
    assert verify(package, decoder, latents, limit_db=50).parity_psnr_db < 100


def test_a_conversion_that_computes_something_else_is_refused(
    made: tuple[TurboVaedDecoder, Package],
) -> None:
    decoder, package = made
    latents = np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype(np.float32)
    # Without its scaling the decoder is another one than the program's.
    with pytest.raises(Fault, match=r"^coreml/fp16: .* measured -?[0-9.]+ dB"):
        verify(package, decoder, latents, limit_db=40)


def test_another_process_writes_the_same_bytes(
    made: tuple[TurboVaedDecoder, Package], tmp_path: Path
) -> None:
    assert hashes(packaged_elsewhere(TARGET, tmp_path)) == hashes(made[1].folder)


X = np.random.default_rng(1).normal(size=(2, 4, 5, 6)).astype(np.float32)
WEIGHT = np.random.default_rng(2).normal(size=(6, 2, 3, 3)).astype(np.float32)


CHANNELS = np.arange(4, dtype=np.float32)


def by_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, 4, 1, 1)


def convolved() -> np.ndarray:
    """Two groups, stride 2, dilation 2, another padding on each side; by its definition."""
    padded = np.pad(X, ((0, 0), (0, 0), (1, 2), (3, 0)))
    rows, columns = (padded.shape[2] - 5) // 2 + 1, (padded.shape[3] - 5) // 2 + 1
    out = np.zeros((2, 6, rows, columns))
    for o in range(6):
        group = padded[:, 2 * (o // 3) : 2 * (o // 3) + 2]
        for r in range(rows):
            for c in range(columns):
                seen = group[:, :, 2 * r : 2 * r + 5 : 2, 2 * c : 2 * c + 5 : 2]
                out[:, o, r, c] = (seen * WEIGHT[o]).sum((1, 2, 3)) + o
    return out


CASES: dict[str, tuple[Callable, np.ndarray]] = {
    "add": (lambda x: mb.add(x=x, y=np.float32(2.5)), X + 2.5),
    "sub": (lambda x: mb.sub(x=np.float32(1), y=x), 1 - X),
    "mul": (lambda x: mb.mul(x=x, y=x), X * X),
    "relu": (lambda x: mb.relu(x=x), X.clip(0)),
    "silu": (lambda x: mb.silu(x=x), X / (1 + np.exp(-X))),
    "rsqrt": (
        lambda x: mb.rsqrt(x=mb.mul(x=x, y=x), epsilon=np.float32(0.5)),
        1 / np.sqrt(X * X + 0.5),
    ),
    "cast": (
        lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"),
        X.astype(np.float16).astype(np.float32),
    ),
    "reshape": (lambda x: mb.reshape(x=x, shape=(4, 2, 30)), X.reshape(4, 2, 30)),
    "transpose": (lambda x: mb.transpose(x=x, perm=(3, 0, 2, 1)), X.transpose(3, 0, 2, 1)),
    "slice_by_index": (
        lambda x: mb.slice_by_index(
            x=x, begin=(1, 0, 0, 1), end=(2, 3, 0, -1), stride=(1, 2, 2, 1),
            begin_mask=(False, True, True, False), end_mask=(False, False, True, False),
        ),
        X[1:2, :3:2, ::2, 1:-1],
    ),
    "split": (
        lambda x: mb.split(x=x, split_sizes=(1, 3), axis=1)[1], X[:, 1:],
    ),
    "concat": (
        lambda x: mb.concat(values=(x, mb.add(x=x, y=np.float32(1))), axis=2),
        np.concatenate((X, X + 1), axis=2),
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(
            x=x, mean=CHANNELS, variance=CHANNELS + 1, gamma=CHANNELS - 2, beta=CHANNELS * 2,
            epsilon=np.float32(0.5),
        ),
        (X - by_channel(CHANNELS)) / np.sqrt(by_channel(CHANNELS) + 1.5)
        * (by_channel(CHANNELS) - 2) + 2 * by_channel(CHANNELS),
    ),
    "conv": (
        lambda x: mb.conv(
            x=x, weight=WEIGHT, bias=np.arange(6, dtype=np.float32), strides=(2, 2),
            pad_type="custom", pad=(1, 2, 3, 0), dilations=(2, 2), groups=2,
        ),
        convolved(),
    ),
}  # fmt: skip


def saved(build: Callable, path: Path) -> Path:
    """A program of one input, in float32, and no pass over it that would fold anything away."""

    @mb.program(input_specs=[mb.TensorSpec(shape=X.shape)], opset_version=ct.target.iOS17)
    def program(x):
        return build(x)

    with quiet_imports():
        ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        ).save(str(path))
    return path


@pytest.mark.parametrize("name", CASES)
def test_an_operation_means_what_core_ml_means(name: str, tmp_path: Path) -> None:
    build, expected = CASES[name]
    run = open_mlpackage(saved(build, tmp_path / "one.mlpackage"))
    np.testing.assert_allclose(run(X), expected, rtol=1e-4, atol=1e-4)


def test_every_operation_has_its_test() -> None:
    assert set(CASES) == set(OPERATIONS)


def test_an_operation_without_an_interpreter_is_refused(tmp_path: Path) -> None:
    path = saved(lambda x: mb.tanh(x=x), tmp_path / "one.mlpackage")
    with pytest.raises(ExportError, match=r"\btanh\b.*: add, batch_norm"):
        open_mlpackage(path)
