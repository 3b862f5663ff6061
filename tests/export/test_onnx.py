"""ONNX programs: made by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from turbo_vaed.devices._runtimes import open_program
from turbo_vaed.export import Job, Package, Target, export_package
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 8, 2, 4, 6)
MEAN, STD = [0.1 * i for i in range(8)], [1 + 0.2 * i for i in range(8)]


def make(folder: Path) -> tuple[TurboVaedDecoder, Package]:
    """As few layers as there are kinds."""
    torch.manual_seed(0)
    config = DecoderConfig(
        latent_channels=8,
        decoder_block_out_channels=(16,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_only=(False,),
        decoder_is_dw_conv=(False, True),
        patch_size=2,
    )
    decoder = TurboVaedDecoder(config).requires_grad_(False)
    job = Job(
        decoder=decoder,
        latent_shape=SHAPE,
        precision="fp32",
        folder=folder / "scratch",
        latent_mean=MEAN,
        latent_std=STD,
    )
    return decoder, export_package(Target.parse("onnx/fp32"), folder / "package", job)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TurboVaedDecoder, Package]:
    return make(tmp_path_factory.mktemp("onnx"))


def test_the_runtime_puts_out_what_pytorch_does(made: tuple[TurboVaedDecoder, Package]) -> None:
    decoder, package = made
    latents, shape = torch.randn(SHAPE), (1, 8, 1, 1, 1)
    expected = decoder(latents * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape))
    video = torch.from_numpy(open_program("onnx", package.program_path, 1)(latents.numpy()))
    assert video.shape == expected.shape == package.io.video_shape
    torch.testing.assert_close(video, expected, rtol=1e-4, atol=1e-4)


def test_the_program_holds_no_path_of_the_machine(made: tuple[TurboVaedDecoder, Package]) -> None:
    program = made[1].program_path.read_bytes()
    for trace in (str(ROOT), sys.prefix, "stack_trace", ".py"):
        assert trace.encode() not in program


def test_another_process_writes_the_same_bytes(
    made: tuple[TurboVaedDecoder, Package], tmp_path: Path
) -> None:
    # Another seed of hashing: the order of sets must not decide.
    code = "import sys, test_onnx; test_onnx.make(test_onnx.Path(sys.argv[1]))"
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    other = (tmp_path / "package" / "decoder.onnx").read_bytes()
    assert hashlib.sha256(other).digest() == (
        hashlib.sha256(made[1].program_path.read_bytes()).digest()
    )
