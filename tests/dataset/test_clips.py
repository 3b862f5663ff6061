from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.dataset.clips import (
    MIN_SOURCES,
    ClipPlan,
    SourceVideo,
    plan_clips,
    time_ranges,
)
from turbo_vaed.errors import DataRefused

shares = st.tuples(st.floats(0.02, 0.9), st.floats(0.02, 0.9)).filter(lambda s: sum(s) < 0.98)


def video(number: int, frames: int = 90, width: int = 64, height: int = 48) -> SourceVideo:
    return SourceVideo(
        path=f"{number:02}.mp4", sha256=f"{number:064x}", width=width, height=height,
        frames=frames, fps=25.0,
    )  # fmt: skip


def plan(videos: list[SourceVideo], **changes: object) -> ClipPlan:
    arguments: dict[str, object] = {
        "frames": 9, "size": 16, "clips_per_video": 12, "train_share": 0.7, "val_share": 0.12,
        "seed": 7,
    }  # fmt: skip
    return plan_clips(videos, **{**arguments, **changes})  # type: ignore[arg-type]


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[SourceVideo], ClipPlan, dict[str, object]]:
    sizes = st.tuples(st.integers(1, 400), st.integers(10, 70), st.integers(10, 70))
    drawn = draw(st.lists(sizes, min_size=1, max_size=9))
    videos = [video(i, f, w, h) for i, (f, w, h) in enumerate([(300, 40, 30), *drawn])]
    train, val = draw(shares)
    arguments: dict[str, object] = {
        "frames": draw(st.integers(1, 33)), "size": draw(st.sampled_from([8, 16, 30])),
        "clips_per_video": draw(st.integers(1, 40)), "train_share": train, "val_share": val,
        "seed": draw(st.integers(0, 9)),
    }  # fmt: skip
    return videos, plan(videos, **arguments), arguments


@given(plans())
def test_every_clip_lies_inside_its_video(made) -> None:
    videos, found, _ = made
    by_path = {v.path: v for v in videos}
    assert [clip.index for clip in found.clips] == list(range(len(found.clips)))
    for clip in found.clips:
        source = by_path[clip.path]
        assert clip.sha256 == source.sha256
        assert 0 <= clip.start_frame <= source.frames - found.frames
        assert 0 <= clip.y <= source.height - found.size
        assert 0 <= clip.x <= source.width - found.size


@given(plans())
def test_no_frame_is_in_two_splits_and_the_gap_is_a_whole_clip(made) -> None:
    _, found, _ = made
    for one in found.clips:
        for other in found.clips:
            if one.path == other.path and one.split != other.split:
                assert found.split_by == "time"
                assert abs(one.start_frame - other.start_frame) >= 2 * found.frames


@given(plans())
def test_clips_of_one_video_overlap_only_as_crops_of_one_slot(made) -> None:
    _, found, _ = made
    assert len({(c.path, c.start_frame, c.y, c.x) for c in found.clips}) == len(found.clips)
    for clip in found.clips:
        assert clip.start_frame % found.frames == 0


@given(plans(), st.randoms())
def test_the_plan_depends_on_its_arguments_alone(made, dice) -> None:
    videos, found, arguments = made
    shuffled = list(videos)
    dice.shuffle(shuffled)
    assert plan(shuffled, **arguments) == found


@given(plans())
def test_every_split_is_filled_and_every_source_is_used_or_named(made) -> None:
    videos, found, arguments = made
    assert found.counts["train"] and found.counts["test"] and found.counts["val"]
    used = {clip.path for clip in found.clips}
    left_out = {path for path, _ in found.left_out}
    assert used.isdisjoint(left_out) and used | left_out == {v.path for v in videos}
    assert found.split_by == ("source" if len(used) >= MIN_SOURCES else "time")
    for path in used:
        own = sum(clip.path == path for clip in found.clips)
        assert 1 <= own <= max(3, int(str(arguments["clips_per_video"])))


@given(st.integers(0, 2000), st.integers(1, 40), shares)
def test_time_ranges_are_whole_slots_in_order_with_a_slot_between(count, frames, both) -> None:
    ranges = time_ranges(count, frames=frames, train_share=both[0], val_share=both[1])
    assert list(ranges) == ["train", "val", "test"]
    assert all(edge % frames == 0 and 0 <= edge <= count for r in ranges.values() for edge in r)
    if count // frames >= 5:
        assert ranges["train"][0] == 0
        assert ranges["val"][0] - ranges["train"][1] == frames
        assert ranges["test"][0] - ranges["val"][1] == frames
        assert ranges["test"][1] == count // frames * frames
        assert all(stop > start for start, stop in ranges.values())
    else:
        assert ranges["train"] == (0, count // frames * frames)
        assert all(ranges[s][0] == ranges[s][1] for s in ("val", "test"))


def test_the_clips_of_a_time_split_lie_in_its_time_ranges() -> None:
    source = video(0, frames=250)
    found = plan([source])
    ranges = time_ranges(250, frames=9, train_share=0.7, val_share=0.12)
    for clip in found.clips:
        start, stop = ranges[clip.split]
        assert start <= clip.start_frame and clip.start_frame + 9 <= stop


def test_split_shares_are_met_as_closely_as_slots_allow() -> None:
    ranges = time_ranges(9 * 102, frames=9, train_share=0.7, val_share=0.12)
    slots = {split: (stop - start) // 9 for split, (start, stop) in ranges.items()}
    assert slots == {"train": 70, "val": 12, "test": 18}
    found = plan([video(i) for i in range(50)])
    sources = {s: len({c.path for c in found.clips if c.split == s}) for s in slots}
    assert sources == {"train": 35, "val": 6, "test": 9}


def test_few_slots_give_several_crops_and_one_position_gives_one() -> None:
    found = plan([video(0, frames=45)], clips_per_video=20)
    assert len(found.clips) == 20 and len({c.start_frame for c in found.clips}) == 3
    exact = plan([video(0, frames=45, width=16, height=16)], clips_per_video=20)
    assert len(exact.clips) == 3


def test_another_seed_gives_other_crops_and_sources() -> None:
    videos = [video(i) for i in range(8)]
    one, other = plan(videos, seed=1), plan(videos, seed=2)
    assert [(c.y, c.x) for c in one.clips] != [(c.y, c.x) for c in other.clips]
    assert {c.path for c in one.clips if c.split == "test"} != {
        c.path for c in other.clips if c.split == "test"
    }


def test_a_short_and_a_small_source_are_left_out_and_named() -> None:
    found = plan([video(0), video(1, frames=8), video(2, width=15), video(3, frames=44)])
    (short, why_short), (small, why_small) = found.left_out
    assert (short, small) == ("01.mp4", "02.mp4")
    assert re.search(r"8 frames.*\b9$", why_short) and re.search("15x48.*16x16", why_small)
    assert {c.split for c in found.clips if c.path == "03.mp4"} == {"train"}
    assert re.search(r"2 sources.*\(9 frames\).*train only: 03\.mp4$", found.split_reason)


def test_a_plan_without_a_test_clip_is_refused_with_the_length_needed() -> None:
    with pytest.raises(DataRefused, match=r"test clip.* 45 frames"):
        plan([video(0, frames=44), video(1, frames=44)])


def test_a_plan_without_a_usable_source_is_refused_with_the_reasons() -> None:
    with pytest.raises(DataRefused, match=r"(?s)9 frames and 16x16.*00\.mp4: 8 frames"):
        plan([video(0, frames=8)])
    with pytest.raises(DataRefused):
        plan([])
