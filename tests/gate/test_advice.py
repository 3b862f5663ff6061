"""What `gate explain` advises to change: a parameter that exists, with figures of the run."""

from dataclasses import replace

import pytest

from tests.gate import made_up
from turbo_vaed.gate import AdviceFacts, advise, judge

FACTS = AdviceFacts(
    steps=500, db_per_doubling=1.0, student="tiny-ltx", test_clips=9,
    targets=("executorch-xnnpack/fp32",), runtimes=("executorch-xnnpack", "litert"),
)  # fmt: skip


def advice(facts=FACTS, target="executorch-xnnpack/fp32", **changed):
    verdict = judge(
        made_up.evidence(**changed), customer="demo", use_case="education",
        thresholds=made_up.use_case(), min_parity_psnr=60.0, package_sha256="a" * 64,
        data_sha256="b" * 64, git_revision="c" * 40, created="2026-11-27T00:00:00+00:00",
        target=target,
    )  # fmt: skip
    found = advise(verdict, facts)
    assert set(found) == {check.name for check in verdict.not_passed}
    return found


def test_there_is_no_advice_where_every_check_passes():
    assert advice() == {}


def test_the_steps_advised_follow_from_the_gain_of_the_second_half():
    found = advice(psnr_db=20.0, teacher_psnr_db=20.0)
    assert "2 dB short" in found["psnr"] and "about 2,000 steps (distill.steps)" in found["psnr"]
    flat = advice(replace(FACTS, db_per_doubling=0.1), psnr_db=20.0, teacher_psnr_db=20.0)
    assert "twice the steps bring only 0.10 dB: a larger student" in flat["psnr"]
    none = advice(replace(FACTS, db_per_doubling=-0.2), psnr_db=20.0, teacher_psnr_db=20.0)
    assert "twice the steps bring only 0.00 dB: a larger student" in none["psnr"]
    unknown = advice(replace(FACTS, db_per_doubling=None), psnr_db=20.0, teacher_psnr_db=20.0)
    assert "more steps (distill.steps)" in unknown["psnr"]


@pytest.mark.parametrize(
    ("changed", "check", "steps"),
    [
        ({"psnr_db": 20.5}, "psnr", "1,400"),
        ({"psnr_db": 19.0}, "psnr", "4,000"),
        ({"worst_psnr_db": 15.0}, "worst_psnr", "1,000"),
    ],
)
def test_up_to_eight_times_the_steps_are_advised(changed, check, steps):
    found = advice(teacher_psnr_db=30.0, **changed)[check]
    assert found.endswith(f"so about {steps} steps (distill.steps) would be enough")
    further = advice(psnr_db=18.0, teacher_psnr_db=30.0)["psnr"]
    assert "twice the steps bring only 1.00 dB: a larger student" in further


def test_only_a_psnr_limit_above_the_teachers_own_is_called_so():
    assert "the teacher's own 20.00 dB" in advice(psnr_db=20.0, teacher_psnr_db=20.0)["psnr"]
    assert "teacher's own" not in advice(psnr_db=11.0, teacher_psnr_db=22.0)["psnr"], "at it"
    assert "teacher's own" not in advice(psnr_db=20.0, teacher_psnr_db=None)["psnr"], "unknown"
    assert "teacher's own" not in advice(ssim=0.1, psnr_db=28.0, teacher_psnr_db=28.0)["ssim"]


def test_a_share_is_short_by_a_bare_number():
    assert advice(detail_retention=0.5)["detail_retention"].startswith("0.3 short: more steps")


@pytest.mark.parametrize(
    ("precision", "parameters"),
    [
        ("fp32", set()),
        ("fp16", {"export.targets"}),
        ("int8", {"export.targets", "export.min_parity_db.int8"}),
    ],
)
def test_a_conversion_too_far_from_pytorch_is_advised_by_its_precision(precision, parameters):
    found = advice(target=f"executorch-xnnpack/{precision}", parity_psnr_db=30.0)["parity_psnr"]
    named = {"export.targets", "export.min_parity_db.int8"}
    assert {name for name in named if name in found} == parameters
    assert ("the exporter is wrong" in found) == (precision == "fp32")


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"intervals": {"cold_start_seconds": (0.1, 6.0)}}, "cold_start_seconds"),
        ({"intervals": {"fps": (20.0, 200.0)}}, "fps"),
    ],
)
def test_times_are_measured_again_unless_another_check_needs_more(changed, check):
    assert "turbo-vaed poc demo measures again" in advice(**changed)[check]
    both = advice(psnr_db=20.0, teacher_psnr_db=20.0, **changed)[check]
    assert "turbo-vaed poc" not in both, "poc would not: another student is needed"


def test_quality_of_a_single_clip_needs_more_clips():
    assert "clip.clips_per_video" in advice(unknown={"ssim": "one clip"})["ssim"]


def test_a_value_at_its_limit_is_advised_more_clips():
    at_limit = {"psnr_db": 22.0, "teacher_psnr_db": 22.0, "intervals": {"psnr": (21.0, 23.0)}}
    assert "more test clips than 9 (clip" in advice(**at_limit)["psnr"]
    unknown = replace(FACTS, test_clips=None)
    assert "more test clips (clip" in advice(unknown, **at_limit)["psnr"]


def test_a_slow_package_is_advised_to_try_another_precision():
    found = advice(latency_seconds=0.5, teacher_latency_seconds=0.2)
    assert found["latency_ratio"].startswith("2.5 times too slow: add executorch-xnnpack/int8")
    tried = replace(FACTS, targets=("executorch-xnnpack/fp32", "executorch-xnnpack/int8"))
    elsewhere = replace(FACTS, runtimes=("coreml",))
    for facts in (tried, elsewhere):
        message = advice(facts, latency_seconds=0.5)["fps"]
        assert "a smaller student than tiny-ltx (distill.student: auto" in message
        assert "int8" not in message
    derived = replace(tried, student="auto")
    assert "a lower distill.student_fraction" in advice(derived, latency_seconds=0.5)["fps"]


def test_an_inconclusive_check_is_advised_more_clips_or_a_quiet_machine():
    clips = advice(intervals={"psnr": (21.0, 29.0)})
    assert "more test clips than 9" in clips["psnr"]
    below = advice(psnr_db=21.5, teacher_psnr_db=21.8, intervals={"psnr": (20.0, 23.0)})["psnr"]
    assert "test clips" not in below, "they would make a miss of it"
    assert "0.5 dB short" in below and "above the teacher's own 21.80 dB: lower" in below
    assert "above the teacher" not in advice(psnr_db=20.0, teacher_psnr_db=30.0)["psnr"]
    assert "turbo-vaed poc demo measures again" in advice(unknown={"fps": "it was busy"})["fps"]
    assert "not measured" in advice(peak_memory_bytes=None)["peak_memory_mb"]


@pytest.mark.parametrize(
    ("changed", "check", "message"),
    [
        ({"package_bytes": 80e6}, "package_mb", "2.0 times too large: int8"),
        ({"peak_memory_bytes": 2e9}, "peak_memory_mb", "decoded in windows"),
        ({"cold_start_seconds": 9.0}, "cold_start_seconds", "smaller package"),
        ({"parity_psnr_db": 30.0}, "parity_psnr", "the exporter is wrong"),
        ({"flicker_ratio": 9.0}, "flicker_ratio", "distill.perceptual"),
        ({"ssim": 0.1}, "ssim", "a larger student than tiny-ltx"),
    ],
)
def test_each_check_has_its_own_advice(changed, check, message):
    assert message in advice(**changed)[check]


def test_a_package_that_crashed_is_advised_to_be_examined_first():
    found = advice(broken="it crashed", ssim=None)
    assert "look at the reason" in found["ssim"]
