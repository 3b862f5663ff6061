from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import zarr

from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array
from turbo_vaed.dataset.clip_pass import run_on_worker
from turbo_vaed.dataset.latents import (
    Encoder,
    assemble,
    cut,
    encode_clips,
    to_network,
    to_pixels,
)
from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.models.teachers import load_teacher


@pytest.fixture
def clips(tmp_path: Path) -> str:
    video = np.random.default_rng(0).integers(0, 256, (5, 5, 16, 16, 3), dtype=np.uint8)
    group = zarr.open_group(str(tmp_path / "clips.zarr"), mode="w", zarr_format=3)
    group.create_array("video", data=video, chunks=(1, 5, 16, 16, 3))
    return str(tmp_path / "clips.zarr")


SHAPE = (8, 2, 2, 2)
encode = partial(encode_clips, latent_shape=SHAPE, reconstructed=(), batch_size=2)


def test_pixels_survive_conversion_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8, 1).repeat(3, axis=-1)
    network = to_network(pixels)
    assert tuple(network.shape) == (1, 3, 4, 8, 8)
    assert (network.min(), network.max()) == (-1, 1)
    np.testing.assert_array_equal(to_pixels(network), pixels)
    assert set(to_pixels(torch.tensor([-9.0, 9.0]).reshape(1, 1, 2, 1, 1)).ravel()) == {0, 255}


@pytest.mark.usefixtures("on_ray")
def test_every_clip_is_encoded_and_the_chosen_ones_are_decoded(
    clips: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "latents.zarr")
    make = partial(load_teacher, "ltx-video", tiny_teacher)
    # Of a batch of two: both, one, none; and a clip alone.
    encode(clips, out, make_codec=make, reconstructed=[0, 1, 2, 4])
    group = zarr.open_group(out, mode="r")
    latents, pictures = group["latents"], group["reconstruction"]
    assert (latents.shape, latents.chunks, latents.dtype) == (
        (5, 8, 2, 2, 2), (1, 8, 2, 2, 2), np.float32
    )  # fmt: skip
    assert (pictures.shape, pictures.chunks) == ((5, 5, 16, 16, 3), (1, 5, 16, 16, 3))
    teacher = make()
    video = to_network(zarr.open_array(clips, path="video", mode="r")[:])
    expected = teacher.encode(video)
    np.testing.assert_allclose(latents[:], expected.numpy(), atol=1e-5)
    decoded = to_pixels(teacher.decode(expected)).astype(int)
    for clip in (0, 1, 2, 4):
        assert np.abs(pictures[clip] - decoded[clip]).max() <= 1
    with pytest.raises(CorruptFile, match=r"'reconstruction' .*clip 3 .*missing.*look"):
        ClipArray(out, "reconstruction", remedy="look")[3]
    assert ray.is_initialized(), "a session that was there before stays"


@pytest.mark.usefixtures("on_ray")
def test_an_error_in_a_worker_keeps_its_class_and_message(
    clips: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "latents.zarr")
    gone = partial(load_teacher, "ltx-video", tmp_path / "gone")
    with pytest.raises(UserError, match=r"/gone .*config\.json"):
        encode(clips, out, make_codec=gone)
    make = partial(load_teacher, "ltx-video", tiny_teacher)
    with pytest.raises(Fault, match=r"gave latents \(8, 2, 2, 2\).*\(9, 2, 2, 2\) were expected"):
        encode(clips, out, make_codec=make, latent_shape=(9, 2, 2, 2), batch_size=5)


def half(number: int, *, device: str) -> tuple[float, str, int]:
    if number % 2:
        raise UserError(f"{number} is odd")
    return number / 2, device, os.getpid()


@pytest.mark.usefixtures("on_ray")
def test_a_function_runs_on_a_worker_and_its_error_comes_back() -> None:
    result, device, process = run_on_worker(half, 6)
    assert (result, device) == (3, "cpu") and process != os.getpid()
    with pytest.raises(UserError, match=r"^3 is odd$"):
        run_on_worker(half, 3)


@pytest.fixture
def out(tmp_path: Path) -> str:
    """Arrays for five clips' latents and pictures, of which none is written yet."""
    out = str(tmp_path / "latents.zarr")
    group = zarr.open_group(out, mode="w", zarr_format=3)
    for name, one, dtype in (("latents", SHAPE, "f4"), ("reconstruction", (5, 16, 16, 3), "u1")):
        create_clip_array(group, name, clips=5, shape=one, dtype=dtype, is_compressed=True)
    return out


def test_a_teacher_whose_latents_are_not_finite_is_a_fault(
    clips: str, out: str, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path
) -> None:
    """In this process: a worker behaves the same wherever it runs."""
    worker = Encoder(
        partial(load_teacher, "ltx-video", tiny_teacher), clips, out, SHAPE, frozenset(),
        device="cpu",
    )  # fmt: skip
    encode_well = worker.codec.encode
    monkeypatch.setattr(worker.codec, "encode", lambda video: encode_well(video) * torch.nan)
    with pytest.raises(Fault, match=r"clips \[3\], finite"):
        worker({"index": np.array([3])})


def test_a_lost_clip_is_not_encoded_as_a_black_one(
    clips: str, out: str, tiny_teacher: Path
) -> None:
    make = partial(load_teacher, "ltx-video", tiny_teacher)
    worker = Encoder(make, clips, out, SHAPE, frozenset(), device="cpu")
    shutil.rmtree(Path(clips) / "video" / "c" / "4")
    worker({"index": np.array([3])})
    with pytest.raises(CorruptFile, match=r"'video' .*clip 4 .*missing.*`dvc checkout`"):
        worker({"index": np.array([3, 4])})


def test_tiles_are_encoded_independently(clips: str, out: str, tiny_teacher: Path) -> None:
    """Of a batch of two one clip is cut and one is not."""
    make = partial(load_teacher, "ltx-video", tiny_teacher)
    worker = Encoder(make, clips, out, SHAPE, frozenset([2]), frozenset([3]), 2, device="cpu")
    worker({"index": np.array([2, 3])})
    video = to_network(zarr.open_array(clips, path="video", mode="r")[:])
    teacher = make()
    whole, latents = teacher.encode(video[2:4]).numpy(), zarr.open_group(out, mode="r")["latents"]
    np.testing.assert_allclose(latents[2], whole[0], atol=1e-5)
    assert np.abs(latents[3] - whole[1]).max() > 1e-2
    for row in range(2):
        for column in range(2):
            tile = video[3:4, ..., row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            expected = teacher.encode(tile)[0, ..., 0, 0].numpy()
            np.testing.assert_allclose(latents[3][..., row, column], expected, atol=1e-5)


def test_tiles_are_cut_and_assembled_without_loss() -> None:
    x = torch.arange(2 * 3 * 2 * 6 * 12).reshape(2, 3, 2, 6, 12)
    tiles = cut(x, 3)
    assert tiles.shape == (18, 3, 2, 2, 4)
    assert torch.equal(tiles[9 + 5], x[1, ..., 2:4, 8:12])  # second clip, second row, third column
    assert torch.equal(assemble(tiles, 3), x)
