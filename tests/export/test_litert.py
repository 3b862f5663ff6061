"""LiteRT programs: made by the real converter in its own environment, run by the real runtime."""

from __future__ import annotations

import copy
import math
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.export.small import short_decoder
from turbo_vaed.devices._runtimes import open_program
from turbo_vaed.errors import UserError
from turbo_vaed.export import (
    ExportError,
    ExportJob,
    Package,
    Target,
    export_package,
    litert,
    load_package,
)
from turbo_vaed.models import TurboVaedDecoder

pytestmark = pytest.mark.slow

SHAPE = (1, 8, 2, 4, 6)
MEAN, STD = [0.1 * i for i in range(8)], [1 + 0.2 * i for i in range(8)]


@pytest.fixture(scope="module")
def decoder() -> TurboVaedDecoder:
    return short_decoder()


@pytest.fixture(scope="module")
def packages(
    decoder: TurboVaedDecoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Package]:
    """One of each precision."""
    return {
        precision: export(decoder, precision, tmp_path_factory.mktemp(precision))
        for precision in ("fp32", "fp16", "int8")
    }


def export(decoder: TurboVaedDecoder, precision: str, folder: Path) -> Package:
    job = ExportJob(
        decoder=decoder,
        latent_shape=SHAPE,
        precision=precision,
        folder=folder / "scratch",
        latent_mean=MEAN,
        latent_std=STD,
    )
    return export_package(Target.parse(f"litert/{precision}"), folder / "package", job)


def parity_db(decoder: TurboVaedDecoder, package: Package, latents: Tensor) -> float:
    """Of a package's video and PyTorch's, for a data range of 2 ([-1, 1])."""
    shape = (1, 8, 1, 1, 1)
    expected = decoder(latents * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape))
    video = torch.from_numpy(open_program("litert", package.program_path, 1)(latents.numpy()))
    assert video.shape == expected.shape == package.io.video_shape
    return 10 * math.log10(4 / float((video - expected).double().square().mean()))


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("fp16", 60), ("int8", 38)])
def test_the_runtime_puts_out_what_pytorch_does(
    precision: str,
    least_db: float,
    decoder: TurboVaedDecoder,
    packages: dict[str, Package],
) -> None:
    torch.manual_seed(1)
    assert parity_db(decoder, packages[precision], torch.randn(SHAPE)) >= least_db


def test_a_smaller_precision_is_a_smaller_file(packages: dict[str, Package]) -> None:
    size = {precision: package.size_bytes for precision, package in packages.items()}
    assert size["fp16"] < 0.6 * size["fp32"]
    assert size["int8"] < 0.4 * size["fp32"]


def test_int8_leaves_layers_of_the_whole_picture_in_float(
    packages: dict[str, Package],
) -> None:
    """By the type of every convolution's weights, and the layer in its output's name."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(packages["int8"].program_path))
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    types: dict[bool, set[str]] = {True: set(), False: set()}
    for operation in interpreter._get_ops_details():
        if "CONV" in operation["op_name"]:
            layer = tensors[operation["outputs"][0]]["name"]
            is_kept = any(part in layer for part in ("Norm", "conv_out", "upsampler2d"))
            types[is_kept].add(tensors[operation["inputs"][1]]["dtype"].__name__)
    assert types == {True: {"float32"}, False: {"int8"}}


def test_a_package_names_the_tools_that_made_it(packages: dict[str, Package]) -> None:
    package = load_package(packages["fp32"].folder)
    assert package.target == "litert/fp32"
    assert package.tools["litert-torch"] == "0.10.0"
    assert set(package.tools) >= {"torch", "ai-edge-litert", "litert-converter"}
    assert [path.name for path in package.folder.parent.joinpath("scratch").iterdir()] == [
        "decoder.tflite"
    ]


def test_the_same_decoder_gives_the_same_bytes(
    decoder: TurboVaedDecoder,
    packages: dict[str, Package],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """int8: whatever the converter and the quantiser draw or date would show."""
    monkeypatch.setattr(litert, "_last", None)
    again = export(decoder, "int8", tmp_path)
    assert again.sha256 == packages["int8"].sha256
    assert again.files == packages["int8"].files


def test_the_conversion_cache_separates_decoders_and_shapes(
    decoder: TurboVaedDecoder, packages: dict[str, Package]
) -> None:
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        other.conv_out.conv.bias[0] += 1e-3
    keys = {
        litert._key(one, shape) for one in (decoder, other) for shape in (SHAPE, (1, 8, 3, 4, 6))
    }
    assert len(keys) == 4


def test_without_the_litert_environment_the_error_has_the_command_to_make_it(
    decoder: TurboVaedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBO_VAED_LITERT", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"nothing/bin/python: .*`make litert`"):
        export(decoder, "fp32", tmp_path)
    (tmp_path / "nothing" / "bin").mkdir(parents=True)
    (tmp_path / "nothing" / "bin" / "python").touch()
    with pytest.raises(UserError, match=r"without litert-torch.*make litert"):
        export(decoder, "fp32", tmp_path)
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo no operator for that >&2; exit 3", "exit code 3; .*: no operator"),
        ("kill -9 $$", r"\(SIGKILL\).*: none"),
        ("true", "no program"),
        ("sleep 60", "stopped after 0.2 s"),
    ],
)
def test_a_converter_that_fails_is_an_error_with_its_last_words(
    body: str,
    message: str,
    decoder: TurboVaedDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A script in the place of the environment's Python."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("TURBO_VAED_LITERT", str(python.parents[1]))
    monkeypatch.setattr(litert, "CONVERTERS", ())
    monkeypatch.setattr(litert, "_last", None)
    if body.startswith("sleep"):
        monkeypatch.setattr(litert, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ExportError, match=message):
        export(decoder, "fp32", tmp_path)
    assert not (tmp_path / "package").exists()
    assert list((tmp_path / "scratch").iterdir()) == []
