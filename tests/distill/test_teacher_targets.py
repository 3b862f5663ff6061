"""The teacher's targets: the cheaper way is chosen, and a cache holds the teacher's output."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Budget, Spending
from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array
from turbo_vaed.dataset.latents import to_pixels
from turbo_vaed.distill import teacher_targets
from turbo_vaed.distill.data import Clips, Crop
from turbo_vaed.distill.teacher_cache import CacheWriter, TeacherTargetsSpec, delete_cache
from turbo_vaed.distill.teacher_targets import (
    CacheCosts,
    RecomputedTargets,
    TeacherTargetsPlan,
    choose,
    fill_cache,
    plan_teacher_targets,
    prepare_teacher_targets,
)
from turbo_vaed.errors import BudgetRefused, CorruptFile, Fault, UserError
from turbo_vaed.models.teachers import load_teacher

BLOCKS = ("mid_block", "up_block_1")
SPLITS = ("train", "test", "train", "train", "val", "train")
TRAIN = [0, 2, 3, 5]
CPU = torch.device("cpu")

# --- what is chosen -------------------------------------------------------------------------------

seconds = st.floats(1e-4, 100)
rates = st.floats(1, 1e4)
costs = st.builds(
    CacheCosts,
    train_clips=st.integers(20, 5000),
    cached_clips=st.integers(0, 20),
    samples=st.integers(1, 10**6),
    workers=st.integers(1, 16),
    clips_in_memory=st.integers(0, 10**4),
    bytes_per_clip=st.integers(1, 10**8),
    read_mb_per_s=rates,
    write_mb_per_s=rates,
    free_bytes=st.none() | st.integers(0, 10**11),
    teacher_seconds_per_clip=seconds,
    teacher_seconds_per_crop=seconds,
    teacher_bytes=st.just(1),
    memory_bytes=st.just(100),
    affordable_seconds=st.just(math.inf),
)


def mode(costs: CacheCosts, setting: Literal["auto", "cache"] = "auto") -> str:
    return choose(costs, setting)[0]


@given(costs)
def test_the_choice_is_the_cheaper_of_what_fits(costs):
    needed = 1.1 * costs.missing_clips * costs.bytes_per_clip
    if costs.free_bytes is not None and needed > costs.free_bytes:
        assert choose(costs, "auto") == ("recompute", costs.disk_shortage())
    else:
        is_cheap = costs.cache_seconds <= costs.recompute_seconds
        assert mode(costs) == ("cache" if is_cheap else "recompute")


@given(costs, st.floats(1, 1000))
def test_a_change_in_favour_of_a_cache_never_rejects_it(costs, factor):
    """More steps, a slower teacher, faster storage, more cached clips, more room."""
    if mode(costs) == "recompute":
        return
    changed = partial(dataclasses.replace, costs)
    better = [
        changed(samples=int(costs.samples * factor)),
        changed(
            teacher_seconds_per_clip=factor * costs.teacher_seconds_per_clip,
            teacher_seconds_per_crop=factor * costs.teacher_seconds_per_crop,
        ),
        changed(read_mb_per_s=factor * costs.read_mb_per_s),
        changed(write_mb_per_s=factor * costs.write_mb_per_s),
        changed(cached_clips=costs.train_clips),
        changed(free_bytes=None),
        changed(clips_in_memory=10**6),
    ]
    assert [mode(other) for other in better] == ["cache"] * len(better)


TYPICAL = CacheCosts(
    train_clips=100,
    cached_clips=20,
    samples=2000,
    workers=2,
    clips_in_memory=0,
    bytes_per_clip=10**7,
    read_mb_per_s=500,
    write_mb_per_s=100,
    free_bytes=10**9,
    teacher_seconds_per_clip=0.5,
    teacher_seconds_per_crop=0.25,
    teacher_bytes=10**9,
    memory_bytes=8 * 10**9,
    affordable_seconds=3600,
)


def test_seconds_of_a_typical_case():
    assert TYPICAL.write_seconds == pytest.approx(80 * (0.5 + 0.1) / 2)
    assert TYPICAL.read_seconds == pytest.approx(2000 * 0.02 / 2)
    assert TYPICAL.cache_seconds == pytest.approx(44)
    assert TYPICAL.recompute_seconds == pytest.approx(250)
    assert mode(TYPICAL) == "cache"
    assert mode(dataclasses.replace(TYPICAL, samples=100)) == "recompute"
    for figure in ("44.0 s", "24.0 s", "80 of 100", "20.0 s", "1000 reads", "10.00 MB", "250.0 s"):
        assert figure in TYPICAL.comparison()


def test_a_clip_that_stays_in_memory_is_read_once():
    half = dataclasses.replace(TYPICAL, clips_in_memory=50)
    assert half.reads_per_worker == 50 + 1000 / 2
    assert dataclasses.replace(TYPICAL, clips_in_memory=1000).reads_per_worker == 100
    few = dataclasses.replace(TYPICAL, clips_in_memory=1000, samples=20)
    assert few.reads_per_worker == 10


def test_a_cache_beyond_the_budget_is_not_started():
    poor = dataclasses.replace(TYPICAL, affordable_seconds=23)
    for setting in ("auto", "cache"):
        chosen, why = choose(poor, setting)
        assert chosen == "recompute"
        assert "24 s" in why and "23 s" in why
    assert mode(dataclasses.replace(TYPICAL, affordable_seconds=24.1)) == "cache"
    with pytest.raises(BudgetRefused):
        mode(dataclasses.replace(poor, teacher_bytes=3 * 10**9))


def test_a_setting_is_followed_where_possible():
    few = dataclasses.replace(TYPICAL, samples=1)
    assert mode(few) == "recompute"
    assert mode(few, "cache") == "cache"
    full = dataclasses.replace(TYPICAL, free_bytes=80 * 10**7)
    with pytest.raises(UserError, match=r"0\.88 GB.* 0\.80 GB"):
        mode(full, "cache")


def test_a_teacher_too_large_for_the_workers_is_cached_or_refused():
    large = dataclasses.replace(TYPICAL, teacher_bytes=3 * 10**9, samples=1)
    assert choose(large, "auto") == ("cache", large.memory_shortage())
    assert "3.0 GB" in large.memory_shortage()
    with pytest.raises(UserError):
        mode(dataclasses.replace(large, free_bytes=0))


# --- what is cached -------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path, tiny_teacher: Path) -> TeacherTargetsSpec:
    """Six clips of 5 frames of 32x32, their latents made up."""
    rng = np.random.default_rng(0)
    arrays = {
        ("clip", "clips.zarr", "video"): rng.integers(0, 256, (6, 5, 32, 32, 3), dtype=np.uint8),
        ("encode", "latents.zarr", "latents"): rng.normal(size=(6, 8, 2, 4, 4)).astype("f4"),
    }
    for (folder, store, name), values in arrays.items():
        group = zarr.open_group(str(tmp_path / folder / store), mode="w", zarr_format=3)
        array = create_clip_array(
            group, name, clips=6, shape=values.shape[1:], dtype=values.dtype, is_compressed=True
        )
        array[:] = values
    clips = [{"index": i, "split": split} for i, split in enumerate(SPLITS)]
    (tmp_path / "clip" / "clips.json").write_text(json.dumps({"clips": clips}))
    sha256 = load_teacher("ltx-video", tiny_teacher).sha256
    facts = {"compression": [4, 8, 8], "teacher_sha256": sha256}
    (tmp_path / "encode" / "latents.json").write_text(json.dumps(facts))
    weights = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    return TeacherTargetsSpec(
        family="ltx-video",
        weights=str(weights),
        clips=str(tmp_path / "clip"),
        latents=str(tmp_path / "encode"),
        targets=str(tmp_path / "targets"),
        blocks=BLOCKS,
        reconstruction=True,
    )


def params(**changes: object) -> DistillParams:
    values: dict[str, object] = {"crop": 16, "steps": 10**6}
    return DistillParams(**(values | changes))  # type: ignore[arg-type]


TIMES = ("teacher_seconds_per_clip", "teacher_seconds_per_crop")
RATES = ("read_mb_per_s", "write_mb_per_s")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Without Ray: workers are this process. The clips of every measurement are noted, and its
    times replaced by such that a million steps ask for a cache and a single one does not."""
    calls: list[list[int]] = []

    def run(function, spec, clips, *rest):
        calls.append(list(clips))
        found = function(spec, clips, *rest, device="cpu")
        times = dict.fromkeys(TIMES, 1.0) | dict.fromkeys(RATES, 1e3)
        assert all(getattr(found, name) > 0 for name in times)
        return dataclasses.replace(found, **times)

    def pass_over(
        worker,
        arguments,
        clips,
        *,
        batch_size,
        check_budget,
        report_progress=lambda done: None,
        **_,
    ):
        made = worker(*arguments, device="cpu")
        for start in range(0, len(clips), batch_size):
            check_budget(len(clips) - start)
            made({"index": np.array(clips[start : start + batch_size])})
        for done in range(1, len(clips) + 1):
            report_progress(done)

    monkeypatch.setattr(teacher_targets, "run_on_worker", run)
    monkeypatch.setattr(teacher_targets, "pass_over_clips", pass_over)
    monkeypatch.setattr(teacher_targets, "room", lambda: ("cpu", 2))
    monkeypatch.setattr(teacher_targets, "ray_session", lambda _address: nullcontext())
    return calls


def check_cache(spec: TeacherTargetsSpec) -> None:
    """Every train clip's targets are what the teacher makes of its latents, and no other's."""
    teacher = load_teacher(spec.family, spec.weights)
    latents = zarr.open_group(f"{spec.latents}/latents.zarr", mode="r")["latents"][:]
    expected = teacher.decode_with_features(torch.from_numpy(latents[TRAIN]), BLOCKS)
    data = Clips(clips=spec.clips, latents=spec.latents, targets=spec.targets)
    batch = data.read([Crop(clip=clip, row=0, column=0) for clip in TRAIN], 32)
    assert batch.teacher is not None
    pixels = to_pixels(batch.teacher).astype(int)
    assert np.abs(pixels - to_pixels(expected.video)).max() <= 1
    for block in BLOCKS:
        feature = expected.features[block]
        error = (batch.features[block] - feature).pow(2).mean().sqrt() / feature.std()
        assert error < 1e-3, block
        array = zarr.open_array(spec.store, path=f"features/{block}", mode="r")
        assert array.dtype == np.float16
        assert array.chunks == (1, *feature.shape[1:]) and array.compressors == ()
    with pytest.raises(CorruptFile, match="of clip 1 is missing"):
        data.read([Crop(clip=1, row=0, column=0)], 32)


def test_a_complete_cache_needs_no_teacher_in_a_second_run(spec, measured):
    plan = plan_teacher_targets(spec, params(), batch_size=1)
    assert plan.mode == "cache" and plan.reason
    assert (plan.blocks, plan.reconstruction) == (BLOCKS, True)
    assert plan.figures["bytes_per_clip"] == 15360 + 2 * (16 * 2 * 4 * 4 + 8 * 5 * 16 * 16)
    assert 0 < plan.figures["feature_error"] < 1e-3
    assert all(value > 0 for value in plan.figures.values())
    progress: list[tuple[int, int]] = []
    added = fill_cache(spec, batch_size=2, report_progress=lambda *now: progress.append(now))
    assert added == 3, "the measured clip stays cached"
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    check_cache(spec)
    shutil.rmtree(spec.weights)
    plan = plan_teacher_targets(spec, params(steps=1), batch_size=1)
    assert plan.mode == "cache" and plan.figures == {}, "nothing is measured"
    assert fill_cache(spec, batch_size=1) == 0


def test_a_pass_stopped_by_the_budget_keeps_its_clips(spec, measured):
    assert plan_teacher_targets(spec, params(), batch_size=1).mode == "cache"

    def check_budget(seconds):
        if seconds < 3:
            raise BudgetRefused("no more")

    with pytest.raises(BudgetRefused, match="no more"):
        fill_cache(spec, batch_size=1, check_budget=check_budget)
    assert len(spec.missing()) == 2
    broke = plan_teacher_targets(spec, params(), batch_size=1, affordable_seconds=lambda: 0.0)
    assert broke.mode == "recompute" and broke.figures == {}
    plan = plan_teacher_targets(spec, params(), batch_size=1, affordable_seconds=lambda: 1e-3)
    assert plan.mode == "recompute" and plan.figures["seconds_cached"] > 0


def test_a_pass_that_was_killed_continues_with_the_missing_clips(spec, measured):
    assert plan_teacher_targets(spec, params(), batch_size=2).mode == "cache"
    assert spec.missing() == [3, 5] and measured == [[0, 2]]
    assert fill_cache(spec, batch_size=2) == 2
    store = Path(spec.store)
    shutil.rmtree(store / "reconstruction" / "c" / "2")
    chunk = store / "features" / "mid_block" / "c" / "5" / "0" / "0" / "0" / "0"
    os.truncate(chunk, 7)
    kept = store / "reconstruction" / "c" / "0" / "0" / "0" / "0" / "0"
    written = kept.stat().st_mtime_ns
    assert spec.missing() == [2, 5]
    plan = plan_teacher_targets(spec, params(), batch_size=2)
    assert plan.mode == "cache" and "2 of 4 clips" in plan.reason
    assert len(measured) == 1, "the measurement is kept"
    assert fill_cache(spec, batch_size=2) == 2
    check_cache(spec)
    assert kept.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_cache_in_a_bucket(spec, measured, s3_url):
    there = dataclasses.replace(spec, targets=f"{s3_url}/targets")
    assert plan_teacher_targets(there, params(), batch_size=3).mode == "cache"
    assert there.missing() == [5]
    assert fill_cache(there, batch_size=3) == 1
    assert there.missing() == []
    check_cache(there)
    bucket = fsspec.filesystem("s3")
    bucket.rm(f"{there.store}/reconstruction/c/3", recursive=True)
    assert there.missing() == [3]
    delete_cache(there)
    assert bucket.find(there.targets) == [] and there.missing() == TRAIN


def test_other_params_are_measured_again_and_another_teacher_is_refused(spec, measured):
    plan_teacher_targets(spec, params(), batch_size=1)
    plan_teacher_targets(spec, params(crop=32), batch_size=1)
    plan_teacher_targets(spec, params(crop=32, micro_batch=1), batch_size=1)
    assert measured == [[0], [2], [3]], "cached clips stay"
    plan_teacher_targets(dataclasses.replace(spec, blocks=("up_block_0",)), params(), batch_size=1)
    assert measured[3:] == [[0]]
    assert {path.parent.name for path in Path(spec.store).glob("features/*/c")} == {"up_block_0"}
    plan_teacher_targets(spec, params(), batch_size=1)
    Path(spec.targets, "targets.json").write_text("{")
    plan_teacher_targets(spec, params(), batch_size=1)
    assert measured[4:] == [[0], [0]], "arrays without a description are not used"
    facts = json.loads(Path(spec.latents, "latents.json").read_text())
    facts["teacher_sha256"] = "another"
    Path(spec.latents, "latents.json").write_text(json.dumps(facts))
    with pytest.raises(CorruptFile, match="sha256 another"):
        plan_teacher_targets(spec, params(), batch_size=1)


def test_a_plan_that_needs_no_measurement_makes_none(spec, measured):
    nothing = dataclasses.replace(spec, blocks=(), reconstruction=False)
    assert plan_teacher_targets(nothing, params(), batch_size=1).mode == "none"
    plan = plan_teacher_targets(spec, params(teacher_targets="recompute"), batch_size=1)
    assert plan.mode == "recompute"
    assert measured == [] and not Path(spec.targets).exists()
    plan = plan_teacher_targets(spec, params(steps=1, batch_size=2), batch_size=1)
    assert plan.mode == "recompute" and len(measured) == 1


def test_features_too_large_for_half_precision_are_stored_in_single_or_refused(
    spec, measured, monkeypatch
):
    """Known from the first clips they are stored in single precision; in later clips they fail."""
    decode = CacheWriter.decode

    def large(scale: float) -> None:
        def louder(self, latents, *tiles):
            found = decode(self, latents, *tiles)
            return found | {"features/mid_block": scale * found["features/mid_block"]}

        monkeypatch.setattr(CacheWriter, "decode", louder)

    large(1e6)
    plan_teacher_targets(spec, params(), batch_size=1)
    array = ClipArray(spec.store, "features/mid_block", remedy="")[0]
    assert array.dtype == np.float32 and np.isfinite(array).all()
    delete_cache(spec)
    large(1)
    plan_teacher_targets(spec, params(), batch_size=1)
    large(1e6)
    with pytest.raises(Fault, match=r"features/mid_block .*\[2\] .*float16"):
        fill_cache(spec, batch_size=1)


def test_a_cache_that_takes_longer_than_measured_is_abandoned_in_time(spec, monkeypatch):
    """A second costs a dollar: nine are left, and after two clips ten more are needed."""
    checked: list[float] = []
    planned = TeacherTargetsPlan(
        blocks=(), reconstruction=True, mode="cache", reason="cached", figures={"a": 1.0}
    )

    def plan(*_: Any, affordable_seconds: Callable[[], float], **__: Any) -> TeacherTargetsPlan:
        assert affordable_seconds() == 9
        return planned

    def fill(*_: Any, check_budget: Callable[[float], None], **__: Any) -> None:
        for seconds in (0.0, 8.0, 10.0, 3.0):
            checked.append(seconds)
            check_budget(seconds)

    monkeypatch.setattr(teacher_targets, "plan_teacher_targets", plan)
    monkeypatch.setattr(teacher_targets, "fill_cache", fill)
    found = prepare_teacher_targets(
        spec,
        params(),
        batch_size=1,
        ray_address=None,
        spending=Spending(
            budget=Budget(run_usd=Decimal(10), warn_share=Decimal(1), reserve_usd=Decimal(1)),
            usd_per_hour=Decimal(3600),
            spent_usd=lambda: Decimal(0),
        ),
        report_progress=lambda *_: None,
    )
    assert checked == [0.0, 8.0, 10.0]
    assert found == dataclasses.replace(planned, mode="recompute", reason=found.reason)
    assert "10 s more, $10.00" in found.reason


def test_recomputed_targets_are_the_teachers_output_for_the_crop(spec):
    data = Clips(clips=spec.clips, latents=spec.latents)
    plan = TeacherTargetsPlan(
        blocks=("up_block_1",), reconstruction=True, mode="recompute", reason=""
    )
    make = partial(RecomputedTargets, family="ltx-video", weights=spec.weights, device=CPU)
    bare = data.read([Crop(clip=2, row=1, column=2), Crop(clip=3, row=0, column=0)], 16)
    batch = make(plan)(bare)
    latents = zarr.open_group(f"{spec.latents}/latents.zarr", mode="r")["latents"][2:3]
    teacher = load_teacher("ltx-video", spec.weights)
    crop = torch.from_numpy(latents[..., 1:3, 2:4])
    expected = teacher.decode_with_features(crop, ("up_block_1",))
    assert batch.teacher is not None and batch.source is bare.source
    assert torch.allclose(batch.teacher[:1], expected.video.clamp(-1, 1), atol=1e-5)
    assert batch.features.keys() == {"up_block_1"}
    assert torch.allclose(
        batch.features["up_block_1"][:1], expected.features["up_block_1"], atol=1e-4
    )
    silent = make(dataclasses.replace(plan, reconstruction=False))(bare)
    assert silent.teacher is None


def test_targets_of_tiles_are_decoded_tile_by_tile(spec: TeacherTargetsSpec) -> None:
    latents_json = Path(spec.latents, "latents.json")
    latents_json.write_text(json.dumps(json.loads(latents_json.read_text()) | {"tiles": 2}))
    writer = CacheWriter(spec, device="cpu")
    latents = writer.read([1])
    tiled, whole = writer.decode(latents, writer.tiles), writer.decode(latents)
    corner = writer.decode(latents[..., 2:, :2])
    for name, values in tiled.items():
        of_pixels = name == "reconstruction"  # BTHWC; features are BCTHW
        down, across = (2, 3) if of_pixels else (3, 4)
        side = corner[name].shape[down]
        cut_out = values.take(range(side, 2 * side), down).take(range(side), across)
        assert values.shape == whole[name].shape
        assert not np.array_equal(values, whole[name])
        np.testing.assert_allclose(cut_out, corner[name], atol=1 if of_pixels else 1e-4)
