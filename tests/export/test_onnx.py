"""ONNX programs: made by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.export.small import ROOT, SHAPE, expected_video, hashes, packaged, packaged_elsewhere
from turbo_vaed.devices._runtimes import open_program
from turbo_vaed.export import Package
from turbo_vaed.models import TurboVaedDecoder

pytestmark = pytest.mark.slow

TARGET = "onnx/fp32"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TurboVaedDecoder, Package]:
    return packaged(TARGET, tmp_path_factory.mktemp("onnx"))


def test_the_runtime_puts_out_what_pytorch_does(made: tuple[TurboVaedDecoder, Package]) -> None:
    decoder, package = made
    latents = torch.randn(SHAPE)
    expected = expected_video(decoder, latents)
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
    assert hashes(packaged_elsewhere(TARGET, tmp_path)) == hashes(made[1].folder)
