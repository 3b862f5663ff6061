"""The runner that an app developer copies: on a real package, against PyTorch and the library."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.exports import exported_once
from turbo_vaed.export import ExportJob, Package, Target, export_package
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.windows import TimeSpec

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "on_device" / "decode.py"
CONFIG = DecoderConfig(  # little to lower, and a halo that a short program can hold
    latent_channels=4,
    decoder_block_out_channels=(16,),
    decoder_layers_per_block=(1, 1),
    spatio_temporal_scaling=(True,),
    decoder_spatio_only=(False,),
    decoder_is_dw_conv=(False, True),
    patch_size=2,
)
LENGTH = CONFIG.time_spec.exact_overlap + 2


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("on_device_decode", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def decoder() -> TurboVaedDecoder:
    torch.manual_seed(0)
    return TurboVaedDecoder(CONFIG).requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One decoder is exported by several tests, and by both processes that run them."""
    with exported_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def package(decoder: TurboVaedDecoder, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return packaged(decoder, tmp_path_factory.mktemp("package"), "fp32")


def packaged(decoder: TurboVaedDecoder, folder: Path, precision: str) -> Package:
    job = ExportJob(
        decoder=decoder,
        latent_shape=(1, 4, LENGTH, 8, 12),
        precision=precision,
        folder=folder / "scratch",
    )
    return export_package(Target.parse(f"executorch-xnnpack/{precision}"), folder / "package", job)


def make_latents(frames: int, width: int = 12) -> np.ndarray:
    """Slow in time and space, so that a video codec keeps what is in it."""
    torch.manual_seed(1)
    coarse = torch.randn(1, 4, 3, 2, 2)
    smooth = torch.nn.functional.interpolate(coarse, (frames, 8, width), mode="trilinear")
    return smooth[0].numpy()


def by_pytorch(decoder: TurboVaedDecoder, latents: np.ndarray) -> np.ndarray:
    """All at once, (T, H, W, 3) uint8."""
    video = decoder(torch.from_numpy(latents)[None])[0].clamp(-1, 1)
    return ((video + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def io_of(package: Package) -> dict:
    return json.loads((package.folder / "package.json").read_text())["io"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_scripts_windows_equal_decoding_at_once(
    runner: ModuleType, decoder: TurboVaedDecoder, package: Package
) -> None:
    latents = make_latents(LENGTH + 5)
    io = io_of(package)
    overlap, exact = runner.overlap_of(io)
    assert overlap == exact == CONFIG.time_spec.exact_overlap
    pieces = list(runner.decode(package.program_path, io, latents, overlap))
    assert len(pieces) == 4
    expected = by_pytorch(decoder, latents)
    difference = np.abs(np.concatenate(pieces).astype(int) - expected)
    assert difference.max() <= 1
    assert expected.std() > 10, "a video in which a difference shows"


def test_a_half_precision_package_takes_and_returns_float16(
    runner: ModuleType, decoder: TurboVaedDecoder, tmp_path: Path
) -> None:
    package = packaged(decoder, tmp_path, "fp16")
    io = io_of(package)
    assert (io["latent_dtype"], io["video_dtype"]) == ("float16", "float16")
    latents = make_latents(LENGTH + 5)
    made = np.concatenate(list(runner.decode(package.program_path, io, latents, LENGTH - 2)))
    difference = np.abs(made.astype(int) - by_pytorch(decoder, latents))
    assert difference.max() <= 4 and difference.mean() < 0.5


@given(
    ratio=st.integers(1, 8),
    is_first_alone=st.booleans(),
    halo=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    length=st.integers(2, 20),
    further=st.integers(0, 30),
    data=st.data(),
)
def test_the_script_plans_windows_as_the_library_does(
    runner: ModuleType,
    ratio: int,
    is_first_alone: bool,
    halo: tuple[int, int],
    length: int,
    further: int,
    data: st.DataObject,
) -> None:
    time = TimeSpec(
        frames_per_latent=ratio,
        first_latent_frames=1 if is_first_alone else ratio,
        halo_frames=halo,
    )
    io = {**asdict(time), "latent_shape": [1, 4, length, 8, 8]}
    assert runner.overlap_of(io)[1] == time.exact_overlap
    overlap = data.draw(st.integers(time.least_overlap, length - 1))
    expected = time.windows(length + further, length=length, overlap=overlap)
    found = list(runner.windows(io, length + further, overlap))
    assert found == [(w.start, w.kept_start, w.kept_stop) for w in expected]


def test_the_script_writes_an_mp4(
    runner: ModuleType,
    decoder: TurboVaedDecoder,
    package: Package,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command line, which prints progress and that a short overlap is not exact."""
    latents = make_latents(LENGTH + 5)
    np.save(tmp_path / "latents.npy", latents)
    arguments = [package.folder, tmp_path / "latents.npy", tmp_path / "v.mp4", "--overlap", 2]
    monkeypatch.setattr(sys, "argv", ["decode.py", *map(str, arguments)])
    runner.main()
    printed = capsys.readouterr().err
    expected = by_pytorch(decoder, latents)
    assert f"{len(expected)}/{len(expected)} frames" in printed
    assert f"overlap by 2, not by {CONFIG.time_spec.exact_overlap}" in printed
    with av.open(str(tmp_path / "v.mp4")) as container:
        pictures = [
            frame.to_ndarray(format="rgb24", src_colorspace="ITU709")
            for frame in container.decode(video=0)
        ]
    # In blocks, for 4:2:0 keeps no colour of single pixels, and a random decoder's differ.
    found, wanted = blocks(np.stack(pictures)), blocks(expected)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean(axis=(1, 2, 3)).max() < 4, "of 255, in every frame"
    assert np.abs(wanted[:-1] - wanted[1:]).mean() > 1, "frames are not all the same"
    assert wanted.mean(axis=(0, 1, 2)).std() > 4, "nor are the colours"


def test_the_mp4_preserves_colours(runner: ModuleType, tmp_path: Path) -> None:
    """Flat pictures of strong colours, read back by the matrix that the file names."""
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128)]
    pieces = [np.full((1, 32, 48, 3), colour, np.uint8) for colour in colours]
    runner.write_mp4(tmp_path / "v.mp4", iter(pieces), Fraction(25), len(pieces))
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 1, "BT.709"
        assert container.streams.video[0].average_rate == 25
        for frame, colour in zip(container.decode(video=0), colours, strict=True):
            found = frame.to_ndarray(format="rgb24", src_colorspace="ITU709")
            assert np.abs(found.mean(axis=(0, 1)) - colour).max() < 4


def blocks(video: np.ndarray) -> np.ndarray:
    """Means of 4x4 pixels, (T, H, W, 3) -> (T, H/4, W/4, 3)."""
    frames, height, width, _ = video.shape
    return video.reshape(frames, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4))


def test_the_program_of_the_latents_shape_is_used(
    runner: ModuleType, decoder: TurboVaedDecoder, tmp_path: Path
) -> None:
    shapes = [(1, 4, LENGTH, 8, 12), (1, 4, LENGTH, 8, 16)]
    jobs = [
        ExportJob(decoder=decoder, latent_shape=s, precision="fp32", folder=tmp_path / str(i))
        for i, s in enumerate(shapes)
    ]
    package = export_package(Target.parse("executorch-xnnpack/fp32"), tmp_path / "package", *jobs)
    read = runner.read_package(package.folder)
    for place, shape in enumerate(shapes):
        name, io = runner.program_for(read, shape[1:])
        assert name == package.programs[place].name and tuple(io["latent_shape"]) == shape
        latents = make_latents(LENGTH + 2, width=shape[4])
        made = runner.decode(package.folder / name, io, latents, LENGTH - 1)
        difference = np.concatenate(list(made)).astype(int) - by_pytorch(decoder, latents)
        assert np.abs(difference).mean() < 2


def test_the_longest_program_that_fits_is_used(runner: ModuleType) -> None:
    def program(name: str, length: int) -> dict:
        return {"name": name, "io": {"latent_shape": [1, 4, length, 8, 12]}}

    package = {
        "program": "short",
        "io": program("", 3)["io"],
        "further": [program("long", 9), program("longer", 33)],
    }
    found = [runner.program_for(package, (4, frames, 8, 12))[0] for frames in (3, 20, 33)]
    assert found == ["short", "long", "longer"]


def test_latents_that_do_not_fit_the_package_are_refused(package: Package, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((4, LENGTH, 8, 16), np.float32))
    done = run(package.folder, tmp_path / "wide.npy", tmp_path / "v.mp4")
    assert done.returncode == 1
    shapes = rf"found .*\(4, {LENGTH}, 8, 16\).*\(4, {LENGTH} or more, 8, 12\)"
    assert re.search(shapes, done.stderr), done.stderr


def test_an_altered_or_foreign_package_is_refused(
    runner: ModuleType, package: Package, tmp_path: Path
) -> None:
    whole = json.loads((package.folder / "package.json").read_text())
    assert runner.read_package(package.folder) == whole
    (tmp_path / "decoder.pte").write_bytes(b"another")
    for change, message in (
        ({}, r"decoder\.pte: .*package\.json"),
        ({"format": 3}, r"format 3, .*\b4\b"),
        ({"target": "litert/fp32"}, "for litert/fp32"),
    ):
        (tmp_path / "package.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(SystemExit, match=message):
            runner.read_package(tmp_path)


def test_too_little_or_an_impossible_overlap_is_refused(
    runner: ModuleType, package: Package
) -> None:
    io = io_of(package)
    with pytest.raises(SystemExit, match=f"found {LENGTH - 1} latent frames"):
        list(runner.windows(io, LENGTH - 1, 2))
    with pytest.raises(SystemExit, match=f"overlap: found {LENGTH}, allowed: 1 to {LENGTH - 1}"):
        list(runner.windows(io, LENGTH + 1, LENGTH))


def test_the_script_needs_no_project_code_and_prints_its_usage() -> None:
    """No import but the standard library's and of what an app's prototype has."""
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"av", "numpy", "torch", "executorch"}
    done = run("--help")
    assert done.returncode == 0
    assert "LATENTS float32 (C, t, h, w)" in done.stdout
