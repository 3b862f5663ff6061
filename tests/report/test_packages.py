"""The picture of the packages: its line, its signs, and what a screen reader reads."""

import re

import pytest

from turbo_vaed.report import packages


def package(name, psnr, seconds, result="passes"):
    return {
        "name": name, "result": result, "not_passed": [] if result == "passes" else ["ssim"],
        "psnr_db": psnr, "parity_psnr_db": 80.0, "median_latency_seconds": seconds,
        "latency_interval_seconds": None if seconds is None else [seconds, seconds],
        "size_bytes": 2_000_000, "package_sha256": "a",
    }  # fmt: skip


FP32, INT8 = package("x/fp32", 30.0, 0.05), package("x/int8", 29.5, 0.02)
WORSE = package("x/slow", 29.0, 0.06, "fails")


def choice(*candidates, **more):
    found = {"chosen": candidates[0]["name"], "reason": "it is", "choose": "fastest"}
    return {**found, "candidates": list(candidates), "not_measured": {}, **more}


def test_the_pareto_front():
    assert [one["name"] for one in packages.front([FP32, WORSE, INT8])] == ["x/int8", "x/fp32"]
    same = package("x/same", 29.5, 0.03)
    assert [one["name"] for one in packages.front([same, INT8])] == ["x/int8"]


def test_results_differ_by_more_than_colour():
    unsure = package("x/unsure", 29.8, 0.03, "inconclusive")
    svg = str(packages.picture(choice(INT8, unsure, WORSE)))
    assert (svg.count('<circle class="sign good'), svg.count("l8 8l-8 8l-8 -8z")) == (1, 1)
    assert svg.count("m0 -12l-12 12") == 1
    assert svg.count('class="ring"') == 1 and "x/int8, 2.0 MB, ships" in svg


def test_a_package_that_does_not_pass_does_not_ship():
    svg = str(packages.picture(choice(WORSE, package("x/bad", 20.0, 0.01, "fails"))))
    assert 'class="ring"' in svg and "ships" not in svg


def test_a_package_that_did_not_run_has_a_row_and_no_mark():
    crashed = package("x/fp16", None, None, "fails")
    found = packages.section(choice(INT8, FP32, crashed))
    assert str(found["picture"]).count("x/fp16") == 0
    assert not re.search(r"\d", found["rows"][2]["latency"])
    assert found["rows"][2]["not_passed"] == "Mean SSIM"
    assert found["rows"][0]["is_chosen"]


@pytest.mark.parametrize("candidates", [[INT8], [INT8, package("x/fp16", None, None, "fails")]])
def test_a_single_package_has_no_picture(candidates):
    assert packages.picture(choice(*candidates)) is None


def test_a_name_is_escaped():
    svg = str(packages.picture(choice(package("<b>", 30.0, 0.05), INT8)))
    assert "<b>" not in svg and "&lt;b&gt;" in svg


def test_a_run_without_a_choice_has_no_section():
    assert packages.section(None) is None
