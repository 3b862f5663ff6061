"""The choice among packages: what passes, then what the profile prefers, with a reason."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate import made_up
from turbo_vaed.gate import TIMED, Candidate, Choice, choose, judge


def candidate(name, *, psnr=28.0, latency=0.05, size=4_000_000, **changed):
    verdict = judge(
        made_up.evidence(psnr_db=psnr, latency_seconds=latency, **changed),
        customer="demo", use_case="education", thresholds=made_up.use_case(),
        min_parity_psnr=60.0, package_sha256="a" * 64, data_sha256="b" * 64,
        git_revision="c" * 40, created="2026-11-27T00:00:00+00:00",
    )  # fmt: skip
    return Candidate(
        name=name, verdict=verdict, psnr_db=psnr, latency_seconds=latency, size_bytes=size
    )


FAST = candidate("int8", psnr=27.5, latency=0.02)
GOOD = candidate("fp32", psnr=28.2, latency=0.05)
BAD = candidate("fp8", psnr=20.0, latency=0.01)


def test_the_profile_chooses_between_fastest_and_best():
    assert choose([GOOD, FAST, BAD], "fastest").name == "int8"
    assert choose([GOOD, FAST, BAD], "best").name == "fp32"
    assert choose([GOOD, FAST, BAD], "best").reason == (
        "fp32 has the best PSNR of the 2 packages that pass, of 3 that were measured"
    )


def test_the_reason_says_among_how_many_packages_it_was_chosen():
    assert choose([GOOD], "fastest") == Choice(
        name="fp32", reason="it is the only package, and it passes"
    )
    assert choose([GOOD, BAD], "fastest") == Choice(
        name="fp32", reason="fp32 is the only one of 2 packages that passes"
    )
    assert choose([GOOD, FAST], "fastest") == Choice(
        name="int8",
        reason="int8 is the fastest of the 2 packages that pass, of 2 that were measured",
    )


def test_of_packages_as_close_the_profile_chooses():
    fast, good = candidate("int8", psnr=20.0, latency=0.01), candidate("fp32", psnr=21.0)
    assert choose([good, fast], "fastest").name == "int8"
    assert choose([fast, good], "best").name == "fp32"


def test_where_no_package_passes_the_closest_is_chosen():
    unsure = candidate("fp16", psnr=27.0, unknown={"fps": "the machine was busy"})
    found = choose([BAD, unsure], "fastest")
    assert found.name == "fp16"
    assert found.reason == "none of 2 packages passes; fp16 is the closest"


def test_a_package_to_measure_again_is_closer_than_one_of_uncertain_quality():
    """However many checks of times a busy machine leaves open."""
    busy = dict.fromkeys(TIMED, "the machine was busy")
    times = candidate("fp32", latency=0.05, unknown=busy)
    doubt = candidate("int8", latency=0.02, unknown={"flicker_ratio": "too few clips"})
    assert len(times.verdict.not_passed) > len(doubt.verdict.not_passed)
    assert choose([doubt, times], "fastest").name == "fp32"


def test_equal_packages_are_ordered_by_size_and_then_by_name():
    small = candidate("z", size=1)
    assert choose([candidate("a"), small], "fastest").name == "z"
    assert choose([candidate("b"), candidate("a")], "fastest").name == "a"


def test_no_package_is_no_choice():
    with pytest.raises(ValueError, match="found none"):
        choose([], "fastest")


CANDIDATES = st.lists(
    st.builds(
        lambda name, psnr, latency: candidate(str(name), psnr=psnr, latency=latency),
        st.integers(0, 99),
        st.floats(18, 40),
        st.floats(0.001, 0.6),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda one: one.name,
)


@given(CANDIDATES, st.sampled_from(["fastest", "best"]))
def test_no_passing_package_is_both_faster_and_better_than_the_chosen_one(candidates, how):
    name = choose(candidates, how).name
    chosen = next(one for one in candidates if one.name == name)
    passing = [one for one in candidates if one.verdict.result == "passes"]
    assert chosen in passing or not passing
    for other in passing:
        assert not (
            other.psnr_db > chosen.psnr_db and other.latency_seconds < chosen.latency_seconds
        )


@given(CANDIDATES, st.randoms())
def test_the_order_of_the_packages_does_not_matter(candidates, random):
    shuffled = random.sample(candidates, len(candidates))
    assert choose(candidates, "fastest") == choose(shuffled, "fastest")


def test_a_package_that_crashed_is_never_chosen_before_one_that_ran():
    gone = replace(
        candidate("gone", broken="it crashed", ssim=None), psnr_db=None, latency_seconds=None
    )
    assert choose([gone, BAD], "fastest").name == "fp8"
    assert choose([gone, GOOD], "fastest").name == "fp32"


def test_a_package_without_a_latency_is_the_slowest():
    """It ran for the clips and crashed at the device's shape."""
    half = replace(FAST, name="half", latency_seconds=None)
    for candidates in ([half, GOOD], [GOOD, half]):
        assert choose(candidates, "fastest").name == "fp32"
