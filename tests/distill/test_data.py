"""Batches: which clips, crops of the same crop in every array, and nothing that is not there."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter

import fsspec
import numpy as np
import pytest
import torch
import zarr

from turbo_vaed.distill.data import Batch, Clips, Crop, Prefetcher
from turbo_vaed.errors import CorruptFile, DataRefused

CROP = 16


@pytest.fixture
def data(toy_data) -> Clips:
    clips, latents, targets = toy_data
    return Clips(clips=clips, latents=latents, targets=targets)


def crops(data: Clips, step: int, *, count: int = 3, seed: int = 1) -> list[Crop]:
    return data.draw_crops(split="train", size=CROP, count=count, seed=seed, step=step)


def test_crops_are_a_function_of_seed_and_step(data, toy_data):
    again = Clips(clips=toy_data[0], latents=toy_data[1])
    for step in (0, 7, 5000):
        assert crops(data, step) == crops(again, step)
    assert crops(data, 3) != crops(data, 4)
    assert crops(data, 3) != crops(data, 3, seed=2)
    found = [crop for step in range(200) for crop in crops(data, step)]
    assert {crop.row for crop in found} == {crop.column for crop in found} == set(range(5))
    corners = [{(crop.row, crop.column) for crop in crops(data, step)} for step in range(9)]
    assert max(map(len, corners)) == 3, "the samples of a step lie where they like"
    # A crop's crop is not tied to its clip, nor its row to its column.
    assert len({(crop.clip, crop.row, crop.column) for crop in found}) == 4 * 5 * 5


def test_every_clip_is_drawn_once_per_epoch(data):
    clips = [crop.clip for step in range(8) for crop in crops(data, step)]  # six epochs of four
    epochs = [clips[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Counter(clips) == dict.fromkeys(range(4), 6)


def test_a_crop_is_of_the_same_place_in_every_array(data):
    found = crops(data, 2, count=4)
    batch = data.read(found, CROP)
    assert batch.latents.shape == (4, 6, 3, 4, 4)
    assert batch.source.shape == batch.teacher.shape == (4, 3, 5, 16, 16)
    assert {name: tuple(f.shape) for name, f in batch.features.items()} == {
        "up_block_0": (4, 2, 3, 8, 8)
    }
    tensors = [batch.latents, batch.source, batch.teacher, *batch.features.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    # The first latent frame is the mean of frame 0 and itself.
    means = batch.source[:, :, 0].reshape(4, 3, 4, 4, 4, 4).mean((3, 5))
    assert torch.allclose(means, batch.latents[:, :3, 0], atol=0.02)
    pixels = (batch.source + 1) * 127.5
    assert torch.allclose((batch.teacher + 1) * 127.5, pixels.round() // 8 * 8, atol=1e-3)
    for crop, feature in zip(found, batch.features["up_block_0"], strict=True):
        rows = 100 * crop.clip + 2 * crop.row + torch.arange(8.0)
        columns = (2 * crop.column + torch.arange(8.0)) / 32
        assert torch.equal(feature[0], rows[:, None].expand(3, 8, 8))
        assert torch.equal(feature[1, 0], columns.expand(8, 8))
        assert torch.equal(feature[1, :, 0, 0] - columns[0], torch.arange(3.0))


def test_a_crop_of_a_tiled_clip_is_one_tile(toy_data):
    facts = json.loads((toy_data[1] / "latents.json").read_text())
    (toy_data[1] / "latents.json").write_text(json.dumps(facts | {"tiles": 2}))
    tiled = Clips(clips=toy_data[0], latents=toy_data[1])
    corners = {(crop.row, crop.column) for step in range(30) for crop in crops(tiled, step)}
    assert corners == {(0, 0), (0, 4), (4, 0), (4, 4)}


def test_whole_clips_and_crops_without_targets(data, toy_data):
    bare = Clips(clips=toy_data[0], latents=toy_data[1])
    batch = bare.read(crops(bare, 0), CROP)
    assert batch.teacher is None and batch.features == {}
    (val,) = data.of_split("val")
    whole = data.whole(val)
    assert whole.latents.shape == (1, 6, 3, 8, 8) and whole.source.shape == (1, 3, 5, 32, 32)
    assert whole.teacher is None and whole.features == {}
    crop = bare.read([Crop(clip=val, row=4, column=0)], CROP)
    assert torch.equal(crop.source, whole.source[..., 16:, :16])
    with pytest.raises(DataRefused, match="nightly"):
        data.of_split("nightly")


@pytest.mark.parametrize(
    ("folder", "array", "named"),
    [
        (0, "clips.zarr/video", "'video' of clip 1"),
        (1, "latents.zarr/latents", "'latents' of clip 1"),
        (2, "targets.zarr/reconstruction", "'reconstruction' of clip 1"),
        (2, "targets.zarr/features/up_block_0", "'features/up_block_0' of clip 1"),
    ],
)
def test_a_lost_chunk_is_never_read_as_zeros(data, toy_data, folder, array, named):
    shutil.rmtree(toy_data[folder] / array / "c" / "1")
    data.read([Crop(clip=0, row=0, column=0)], CROP)
    with pytest.raises(CorruptFile, match=named):
        data.read([Crop(clip=0, row=0, column=0), Crop(clip=1, row=0, column=0)], CROP)


def test_chunks_are_read_once_while_they_fit_into_memory(data, toy_data, monkeypatch):
    first = [Crop(clip=0, row=0, column=0)]
    batch = data.read(first, CROP)
    shutil.rmtree(toy_data[0] / "clips.zarr/video/c/0")
    assert torch.equal(data.read(first, CROP).source, batch.source)
    data.clear_memory()
    with pytest.raises(CorruptFile, match="'video' of clip 0"):
        data.read(first, CROP)
    monkeypatch.setattr("turbo_vaed.distill.data.MEMORY_BYTES", 1000)
    second = [Crop(clip=1, row=0, column=0)]
    data.read(second, CROP)
    shutil.rmtree(toy_data[0] / "clips.zarr/video/c/1")
    with pytest.raises(CorruptFile, match="'video' of clip 1"):
        data.read(second, CROP)


def test_folders_that_do_not_belong_together_are_refused(toy_data):
    clips, latents, targets = toy_data
    index = json.loads((clips / "clips.json").read_text())["clips"]
    (clips / "clips.json").write_text(json.dumps({"clips": index[:-1]}))
    with pytest.raises(CorruptFile, match=r" 6 clips.* 5"):
        Clips(clips=clips, latents=latents)
    (targets / "targets.json").unlink()
    with pytest.raises(CorruptFile, match=r"targets\.json"):
        Clips(clips=clips, latents=latents, targets=targets)


def test_features_that_do_not_fit_the_latents_are_refused(toy_data):
    clips, latents, targets = toy_data
    group = zarr.open_group(str(targets / "targets.zarr"), mode="a")
    group.create_array("features/up_block_0", shape=(6, 2, 3, 12, 12), dtype="f2", overwrite=True)
    with pytest.raises(CorruptFile, match="'features/up_block_0'"):
        Clips(clips=clips, latents=latents, targets=targets)


@pytest.mark.slow
def test_data_in_a_bucket_reads_as_data_on_a_disk(data, toy_data, s3_url):
    for folder in toy_data:
        fsspec.filesystem("s3").put(f"{folder}/", f"{s3_url}/{folder.name}/", recursive=True)
    clips, latents, targets = (f"{s3_url}/{folder.name}" for folder in toy_data)
    there = Clips(clips=clips, latents=f"{latents}/", targets=targets)
    here, found = data.read(crops(data, 1), CROP), there.read(crops(there, 1), CROP)
    assert torch.equal(here.source, found.source) and torch.equal(here.teacher, found.teacher)
    assert torch.equal(here.features["up_block_0"], found.features["up_block_0"])
    (val,) = data.of_split("val")
    with pytest.raises(CorruptFile, match=f"of clip {val}"):
        there.read([Crop(clip=val, row=0, column=0)], CROP)


def batch_of(step: int) -> Batch:
    return Batch(latents=torch.full((1,), step), source=torch.zeros(1))


def test_the_prefetcher_reads_ahead_in_order_and_no_further_than_the_end():
    read: list[int] = []
    is_ahead = threading.Event()

    def load(step: int) -> Batch:
        assert threading.current_thread() is not threading.main_thread()
        read.append(step)
        if step == 5:
            is_ahead.set()
        return batch_of(step)

    with Prefetcher(load, stop=8, device=torch.device("cpu")) as batches:
        assert batches.get(3).latents.item() == 3
        assert is_ahead.wait(10), "two batches are read ahead"
        assert read == [3, 4, 5]
        assert [batches.get(step).latents.item() for step in range(4, 8)] == [4, 5, 6, 7]
    assert read == [3, 4, 5, 6, 7]
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_an_error_of_a_read_is_raised_at_its_step():
    def load(step: int) -> Batch:
        if step == 1:
            raise CorruptFile("lost")
        return batch_of(step)

    with Prefetcher(load, stop=9, device=torch.device("cpu")) as batches:
        batches.get(0)
        with pytest.raises(CorruptFile, match="lost"):
            batches.get(1)
        assert batches.get(2).latents.item() == 2


def test_a_batch_moves_to_a_device_as_a_whole():
    batch = Batch(
        latents=torch.ones(1),
        source=torch.ones(1),
        teacher=torch.ones(1),
        features={"a": torch.ones(1)},
    )
    moved = batch.to(torch.device("meta"))
    tensors = [moved.latents, moved.source, moved.teacher, *moved.features.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and len(tensors) == 4
    assert np.array_equal(batch.latents, [1])
