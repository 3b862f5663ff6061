"""Exported programs, run by the real ExecuTorch runtime, and packages."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from turbo_vaed.export import (
    ExportError,
    IoSpec,
    executorch,
    export_xnnpack,
    load_package,
    write_package,
)
from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder

pytestmark = pytest.mark.slow

LATENT_SHAPE = (1, 8, 2, 4, 6)


def small_config() -> DecoderConfig:
    """Every kind of layer but a level that keeps its size; tests/devices run one."""
    return DecoderConfig(
        latent_channels=8,
        decoder_block_out_channels=(16, 20),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_only=(True, False),
        decoder_is_dw_conv=(False, False, True),
        decoder_dw_kernel_size=5,
        patch_size=4,
    )


def run(program: Path, latents: Tensor) -> Tensor:
    from executorch.runtime import Runtime

    # The bytes and the program must outlive the method: it holds neither, and reads freed
    # memory without them.
    data = program.read_bytes()
    loaded = Runtime.get().load_program(data)
    method = loaded.load_method("forward")
    assert method is not None
    video: Tensor = method.execute((latents,))[0]
    return video.clone()


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, for a data range of 2 ([-1, 1])."""
    return 10 * math.log10(4 / float(((a - b) ** 2).mean().clamp_min(1e-20)))


@pytest.fixture(scope="module")
def decoder() -> TurboVaedDecoder:
    torch.manual_seed(0)
    return TurboVaedDecoder(small_config()).requires_grad_(False)


@pytest.fixture(scope="module")
def program(decoder: TurboVaedDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Channels-last, as after training: the export must not care, nor change it.
    mean, std = [0.1 * i for i in range(8)], [1 + 0.2 * i for i in range(8)]
    path = export_xnnpack(
        decoder,
        latent_shape=LATENT_SHAPE,
        folder=tmp_path_factory.mktemp("program"),
        latent_mean=mean,
        latent_std=std,
    )
    assert decoder.conv_in.folded is None
    return path


def test_a_program_agrees_with_eager_pytorch(decoder: TurboVaedDecoder, program: Path) -> None:
    latents = torch.randn(LATENT_SHAPE)
    scale = torch.arange(8).reshape(1, 8, 1, 1, 1)
    expected = decoder(latents * (1 + 0.2 * scale) + 0.1 * scale)
    video = run(program, latents)
    assert video.shape == expected.shape
    assert psnr(video, expected) >= 60
    assert program.name == "decoder.pte"
    assert [path.name for path in program.parent.iterdir()] == ["decoder.pte"]


@pytest.mark.nightly
def test_tiny_preset_without_scaling(tmp_path: Path) -> None:
    """The programs of test_precisions.py have no scaling; the end-to-end tests export a preset."""
    torch.manual_seed(1)
    decoder = TurboVaedDecoder(PRESETS["tiny-ltx"]).requires_grad_(False)
    latents = torch.randn(1, 32, 2, 3, 4)
    path = export_xnnpack(decoder, latent_shape=(1, 32, 2, 3, 4), folder=tmp_path)
    assert psnr(run(path, latents), decoder(latents)) >= 60


def sorted_channels(x: Tensor) -> Tensor:
    return torch.sort(x, dim=1).values


@pytest.mark.parametrize(
    ("operation", "dtype", "outside"),
    [(sorted_channels, torch.float32, "sort"), (nn.functional.silu, torch.float16, "copy")],
)
def test_a_graph_of_several_subgraphs_is_refused(
    operation: Callable[[Tensor], Tensor], dtype: torch.dtype, outside: str
) -> None:
    """XNNPACK has no sort; PyTorch's own silu takes float16 by way of float32."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(operation(self.first(x)))
            return out

    x = torch.zeros(1, 4, 4, 4, dtype=dtype)
    exported = torch.export.export(Between().requires_grad_(False).to(dtype), (x,))
    with pytest.raises(ExportError, match=rf"\d+ subgraphs .*: .*{outside}"):
        executorch._lower(exported)


def test_a_refused_graph_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_exported: object) -> bytes:
        raise ExportError

    monkeypatch.setattr(executorch, "_lower", refuse)
    decoder = TurboVaedDecoder(small_config())
    with pytest.raises(ExportError):
        export_xnnpack(decoder, latent_shape=LATENT_SHAPE, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_shape_or_scaling_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    decoder = TurboVaedDecoder(small_config())
    with pytest.raises(ValueError, match=r"latent_shape: .* allowed: 8 channels"):
        export_xnnpack(decoder, latent_shape=(1, 4, 2, 4, 4), folder=tmp_path)
    for mean, std, message in (
        ([0.0] * 8, None, "latent_std: found None"),
        ([0.0] * 7, [1.0] * 8, "latent_mean: found 7 values"),
        ([0.0] * 8, [0.0] * 8, "latent_std: found 0.0, allowed: finite numbers > 0"),
        ([math.nan] * 8, [1.0] * 8, "latent_mean: found nan"),
    ):
        with pytest.raises(ValueError, match=message):
            export_xnnpack(
                decoder,
                latent_shape=LATENT_SHAPE,
                folder=tmp_path,
                latent_mean=mean,
                latent_std=std,
            )


# --- packages ---


@pytest.fixture
def anything(tmp_path: Path) -> Path:
    path = tmp_path / "decoder.pte"
    path.write_bytes(b"program" * 100)
    return path


@pytest.fixture
def io() -> IoSpec:
    return IoSpec.of(small_config(), LATENT_SHAPE, latent_mean=[0.0] * 8, latent_std=[2.0] * 8)


def test_package_round_trip(anything: Path, io: IoSpec, tmp_path: Path) -> None:
    written = write_package(tmp_path / "package", anything, io)
    loaded = load_package(tmp_path / "package")
    assert loaded == written
    assert loaded.sha256 == written.sha256 and len(loaded.sha256) == 64
    assert loaded.program_path.read_bytes() == anything.read_bytes()
    assert loaded.size_bytes == 700
    assert loaded.io.video_shape == (1, 3, 3, 64, 96)
    assert set(loaded.tools) == {"torch", "executorch"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.pte", "package"]


def test_the_digest_is_of_contents_only(anything: Path, io: IoSpec, tmp_path: Path) -> None:
    first = write_package(tmp_path / "a", anything, io)
    assert write_package(tmp_path / "b", anything, io).sha256 == first.sha256
    anything.write_bytes(b"another program")
    second = write_package(tmp_path / "a", anything, io)  # takes the place of the first
    assert second.sha256 != first.sha256
    assert load_package(tmp_path / "a") == second


def test_a_program_may_be_a_folder(io: IoSpec, tmp_path: Path) -> None:
    program = tmp_path / "decoder.mlpackage"
    (program / "Data").mkdir(parents=True)
    (program / "Manifest.json").write_text("{}")
    (program / "Data" / "weight.bin").write_bytes(b"w")
    write_package(tmp_path / "package", program, io, tools=["torch"])
    names = [file.name for file in load_package(tmp_path / "package").files]
    assert names == ["decoder.mlpackage/Data/weight.bin", "decoder.mlpackage/Manifest.json"]


def test_a_package_has_a_program_for_each_shape(anything: Path, io: IoSpec, tmp_path: Path) -> None:
    """All of them under one digest; each looked at by its shape, with its own size."""
    wider = IoSpec.of(small_config(), (1, 8, 2, 4, 12))
    other = tmp_path / "other" / "decoder.pte"
    other.parent.mkdir()
    other.write_bytes(b"wide")
    alone = write_package(tmp_path / "alone", anything, io)
    write_package(tmp_path / "package", anything, io, further=[(other, wider)])
    package = load_package(tmp_path / "package")
    assert [program.shape for program in package.programs] == ["3x64x96", "3x64x192"]
    seen = package.shaped("3x64x192")
    assert (seen.program, seen.io, seen.program_bytes) == ("decoder-3x64x192.pte", wider, 4)
    assert seen.program_path.read_bytes() == b"wide" and package.program_bytes == 700
    assert package.size_bytes == seen.size_bytes == 704
    assert seen.sha256 == package.sha256 != alone.sha256
    assert seen.shaped("3x64x96") == package
    with pytest.raises(ValueError, match=r"found 9x9x9, .*3x64x96, 3x64x192"):
        package.shaped("9x9x9")
    with pytest.raises(ValueError, match="3x64x96, 3x64x96"):
        write_package(tmp_path / "twice", anything, io, further=[(other, io)])
    seen.program_path.write_bytes(b"WIDE")
    with pytest.raises(ValueError, match="decoder-3x64x192"):
        load_package(tmp_path / "package")


@pytest.mark.parametrize("tampered", [b"PROGRAM" * 100, b"short", None])
def test_a_tampered_file_is_refused(
    tampered: bytes | None, anything: Path, io: IoSpec, tmp_path: Path
) -> None:
    package = write_package(tmp_path / "package", anything, io)
    if tampered is None:
        package.program_path.unlink()
    else:
        package.program_path.write_bytes(tampered)
    with pytest.raises(ValueError, match=r"package/decoder\.pte"):
        load_package(tmp_path / "package")


def test_a_tampered_description_is_refused(anything: Path, io: IoSpec, tmp_path: Path) -> None:
    write_package(tmp_path / "package", anything, io)
    path = tmp_path / "package" / "package.json"
    good = json.loads(path.read_text())
    for change in (
        {"io": good["io"] | {"latent_std": [3.0] * 8}},
        {"io": good["io"] | {"wings": 2}},
        {"files": []},
        {"further": [{"name": "decoder-9x9x9.pte", "io": good["io"]}]},
        {"files": [good["files"][0] | {"name": "../decoder.pte"}]},
        {"format": 1},
        {"tools": None},
        {"target": "onnx/fp32"},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=r"package\.json: not a valid"):
            load_package(tmp_path / "package")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"package\.json"):
        load_package(tmp_path / "package")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"package\.json"):
        load_package(tmp_path / "package")


def test_nothing_is_left_of_a_write_that_failed(
    anything: Path, io: IoSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_package(tmp_path / "package", anything, io)

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("turbo_vaed.export.package.shutil.copyfile", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_package(tmp_path / "package", anything, io)
    assert load_package(tmp_path / "package") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.pte", "package"]


def test_missing_programs_and_tools_are_refused(anything: Path, io: IoSpec, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pte"):
        write_package(tmp_path / "package", tmp_path / "nothing.pte", io)
    with pytest.raises(ValueError, match="'not-a-tool'"):
        write_package(tmp_path / "package", anything, io, tools=["not-a-tool"])
    assert not (tmp_path / "package").exists()
