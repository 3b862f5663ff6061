from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import zarr

from turbo_vaed.dataset.latents import encode_clips, to_network, to_pixels
from turbo_vaed.dataset.ray_session import ray_session
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.models.teachers import load_teacher


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(cpus=2):
        yield
    assert not ray.is_initialized()


@pytest.fixture
def clips(tmp_path: Path) -> str:
    video = np.random.default_rng(0).integers(0, 256, (5, 5, 16, 16, 3), dtype=np.uint8)
    group = zarr.open_group(str(tmp_path / "clips.zarr"), mode="w", zarr_format=3)
    group.create_array("video", data=video, chunks=(1, 5, 16, 16, 3))
    return str(tmp_path / "clips.zarr")


def test_pixels_survive_the_way_there_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8, 1).repeat(3, axis=-1)
    network = to_network(pixels)
    assert tuple(network.shape) == (1, 3, 4, 8, 8)
    assert (network.min(), network.max()) == (-1, 1)
    np.testing.assert_array_equal(to_pixels(network), pixels)
    assert set(to_pixels(torch.tensor([-9.0, 9.0]).reshape(1, 1, 2, 1, 1)).ravel()) == {0, 255}


@pytest.mark.usefixtures("session")
def test_every_clip_is_encoded_and_decoded_by_the_teacher(
    clips: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "latents.zarr")
    make = partial(load_teacher, "ltx-video", tiny_teacher)
    encode_clips(clips, out, make_codec=make, latent_shape=(8, 2, 2, 2), batch_size=2)
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
    difference = np.abs(pictures[:].astype(int) - to_pixels(teacher.decode(expected)))
    assert difference.max() <= 1 and pictures[:].std() > 0
    assert ray.is_initialized(), "a session that was there before stays"


@pytest.mark.usefixtures("session")
def test_what_breaks_in_a_worker_keeps_its_words(
    clips: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "latents.zarr")
    gone = partial(load_teacher, "ltx-video", tmp_path / "gone")
    with pytest.raises(UserError, match=r"folder .*gone does not exist; put config"):
        encode_clips(clips, out, make_codec=gone, latent_shape=(8, 2, 2, 2), batch_size=2)
    make = partial(load_teacher, "ltx-video", tiny_teacher)
    with pytest.raises(Fault, match=r"gave latents \(8, 2, 2, 2\).*\(9, 2, 2, 2\) were expected"):
        encode_clips(clips, out, make_codec=make, latent_shape=(9, 2, 2, 2), batch_size=5)
