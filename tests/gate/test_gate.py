"""The verdict: each check at its limit, nothing unmeasured passes, and the file cannot lie."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate import made_up
from turbo_vaed.errors import CorruptFile
from turbo_vaed.gate import (
    CHECK_NAMES,
    Verdict,
    judge,
    least_psnr_db,
    read_verdict,
    write_verdict,
)

THRESHOLDS = made_up.use_case()
GOOD = made_up.evidence()
CHECKED_BY = {
    "psnr_db": {"psnr", "psnr_retention"},
    "ssim": {"ssim"},
    "ms_ssim": {"ms_ssim"},
    "worst_psnr_db": {"worst_psnr"},
    "teacher_psnr_db": {"psnr_retention"},
    "parity_psnr_db": {"parity_psnr"},
    "cold_start_seconds": {"cold_start_seconds"},
    "peak_memory_bytes": {"peak_memory_mb"},
    "package_bytes": {"package_mb"},
    "flicker_ratio": {"flicker_ratio"},
    "detail_retention": {"detail_retention"},
    "fps": {"fps"},
    "latency_seconds": {"latency_ratio"},
    "teacher_latency_seconds": {"latency_ratio"},
}
HIGHER_IS_BETTER = {
    "psnr_db", "ssim", "ms_ssim", "worst_psnr_db", "parity_psnr_db", "detail_retention",
    "fps",
}  # fmt: skip
LOWER_IS_BETTER = {
    "flicker_ratio",
    "cold_start_seconds",
    "peak_memory_bytes",
    "package_bytes",
    "latency_seconds",
}


def verdict_of(evidence, thresholds=THRESHOLDS, min_parity_psnr=60.0):
    return judge(
        evidence,
        customer="demo",
        use_case="education",
        thresholds=thresholds,
        min_parity_psnr=min_parity_psnr,
        package_sha256="a" * 64,
        data_sha256="b" * 64,
        git_revision="c" * 40,
        created="2026-11-22T12:00:00+00:00",
    )


def failed_names(verdict):
    return {check.name for check in verdict.not_passed}


def test_good_evidence_passes_every_check():
    verdict = verdict_of(GOOD)
    assert verdict.result == "passes"
    assert tuple(check.name for check in verdict.checks) == CHECK_NAMES
    assert all(check.passed for check in verdict.checks)


def test_a_verdict_states_what_it_is_about():
    about = {
        "customer": "acme", "use_case": "sports", "package_sha256": "a" * 64,
        "data_sha256": "b" * 64, "git_revision": "c" * 40,
        "created": "2026-11-22T12:00:00+00:00", "target": "litert/int8", "device": "a phone",
    }  # fmt: skip
    evidence = replace(GOOD, confidence=0.9)
    verdict = judge(evidence, **about, thresholds=THRESHOLDS, min_parity_psnr=60.0)
    assert {name: getattr(verdict, name) for name in about} == about
    assert verdict.confidence == 0.9


def test_every_check_has_its_unit():
    units = {check.name: check.unit for check in verdict_of(GOOD).checks}
    assert units == {
        "psnr_retention": "share", "psnr": "dB", "ssim": "", "ms_ssim": "", "worst_psnr": "dB",
        "flicker_ratio": "ratio", "detail_retention": "share", "parity_psnr": "dB", "fps": "fps",
        "cold_start_seconds": "s", "peak_memory_mb": "MB", "package_mb": "MB",
        "latency_ratio": "ratio",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"psnr_db": 21.9, "teacher_psnr_db": 22.0}, "psnr"),
        ({"psnr_db": 27.0}, "psnr_retention"),
        ({"ssim": 0.59}, "ssim"),
        ({"ms_ssim": 0.79}, "ms_ssim"),
        ({"worst_psnr_db": 15.9}, "worst_psnr"),
        ({"parity_psnr_db": 59.9}, "parity_psnr"),
        ({"cold_start_seconds": 5.1}, "cold_start_seconds"),
        ({"peak_memory_bytes": 1501e6}, "peak_memory_mb"),
        ({"package_bytes": 40.1e6}, "package_mb"),
        ({"latency_seconds": 0.21}, "latency_ratio"),
    ],
)
def test_one_bad_value_fails_exactly_its_check(change, check):
    verdict = verdict_of(replace(GOOD, **change))
    assert verdict.result == "fails"
    assert failed_names(verdict) == {check}


@pytest.mark.parametrize(
    ("of_precision", "of_use_case", "limit"), [(60, 40, 60), (40, 50, 50), (50, 50, 50)]
)
def test_parity_is_required_by_the_precision_and_by_the_use_case(of_precision, of_use_case, limit):
    strict = made_up.use_case(min_parity=of_use_case)
    verdict = verdict_of(GOOD, strict, min_parity_psnr=of_precision)
    (check,) = (c for c in verdict.checks if c.name == "parity_psnr")
    assert check.limit == limit
    assert (check.rationale == "min_parity is required") is (of_use_case >= of_precision)


def test_margins_are_computed_again_when_a_verdict_is_read():
    verdict = verdict_of(replace(GOOD, psnr_db=23.5, package_bytes=41e6))
    document = verdict.to_json()
    margins = {check["name"]: check["margin"] for check in document["checks"]}
    assert margins["psnr"] == pytest.approx(1.5) and margins["package_mb"] == pytest.approx(-1)
    document["checks"][1]["margin"] = 99.0
    assert Verdict.from_json(document) == verdict


def test_the_limit_itself_passes():
    at_limit = made_up.evidence(
        psnr_db=22.0,
        ssim=0.6,
        ms_ssim=0.8,
        worst_psnr_db=16.0,
        teacher_psnr_db=22.0,
        parity_psnr_db=60.0,
        cold_start_seconds=5.0,
        peak_memory_bytes=1500e6,
        package_bytes=40e6,
        flicker_ratio=3.0,
        detail_retention=0.8,
        latency_seconds=0.25,
        teacher_latency_seconds=0.25,
        fps=24.0,
    )
    assert verdict_of(at_limit).result == "passes"


@pytest.mark.parametrize("field", CHECKED_BY)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_check_that_was_not_measured_is_inconclusive(field, value):
    verdict = verdict_of(replace(GOOD, **{field: value}))
    assert verdict.result == "inconclusive"
    assert failed_names(verdict) == CHECKED_BY[field]
    for check in verdict.not_passed:
        assert (check.measured, check.low, check.high) == (None, None, None)
        assert check.result == "inconclusive"
        assert "not measured" in check.reason


def test_every_check_without_a_value_fails_for_a_broken_package():
    nothing = dict.fromkeys(set(CHECKED_BY) - {"package_bytes", "teacher_psnr_db"}, None)
    verdict = verdict_of(replace(GOOD, **nothing, broken="it crashed (SIGSEGV)"))
    assert verdict.result == "fails"
    assert failed_names(verdict) == set(CHECK_NAMES) - {"package_mb"}
    assert all(c.result == "fails" and "SIGSEGV" in c.reason for c in verdict.not_passed)


@pytest.mark.parametrize(
    ("name", "interval", "result"),
    [
        ("psnr", (22.0, 23.0), "passes"),
        ("psnr", (21.9, 23.0), "inconclusive"),
        ("psnr", (20.0, 21.9), "fails"),
        ("flicker_ratio", (2.0, 3.0), "passes"),
        ("flicker_ratio", (2.0, 3.1), "inconclusive"),
        ("flicker_ratio", (3.1, 4.0), "fails"),
    ],
)
def test_an_interval_across_its_limit_does_not_pass(name, interval, result):
    field = {"psnr": "psnr_db"}.get(name, name)
    evidence = replace(GOOD, **{field: sum(interval) / 2}, intervals={name: interval})
    verdict = verdict_of(replace(evidence, teacher_psnr_db=20.0))
    (check,) = (c for c in verdict.checks if c.name == name)
    assert (check.result, verdict.result) == (result, result)
    assert (check.low, check.high) == interval


def test_an_unreliable_measurement_does_not_pass():
    verdict = verdict_of(replace(GOOD, unknown={"fps": "other processes took 60%"}))
    assert verdict.result == "inconclusive"
    (check,) = verdict.not_passed
    assert (check.name, check.measured) == ("fps", 180.0)
    assert "other processes took 60%" in check.reason


def test_a_failed_check_is_not_hidden_by_an_inconclusive_one():
    verdict = verdict_of(replace(GOOD, ssim=0.1, unknown={"fps": "it was loaded"}))
    assert verdict.result == "fails"


def test_every_limit_has_a_rationale():
    assert all(check.rationale for check in verdict_of(GOOD).checks)
    rationale = {**THRESHOLDS.rationale}
    del rationale["min_ssim"]
    with pytest.raises(ValueError, match="rationale: no reason for min_ssim"):
        made_up.use_case(rationale=rationale)


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("field", ["teacher_psnr_db", "teacher_latency_seconds"])
def test_a_comparison_with_nothing_fails(field, value):
    assert failed_names(verdict_of(replace(GOOD, **{field: value}))) == CHECKED_BY[field]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"psnr_db": 21.0}, "required >= 22 dB, measured 21.00 dB"),
        ({"psnr_db": 21.99996}, "required >= 22 dB, measured 21.99996 dB"),
        (
            {"psnr_db": 22.5, "intervals": {"psnr": (21.9, 23.0)}},
            "required >= 22 dB, measured 22.50 dB (interval 21.90 to 23.00 dB)",
        ),
        ({"psnr_db": None}, "required >= 22 dB, not measured"),
        ({"psnr_db": None, "broken": "it hung"}, "required >= 22 dB, not measured: it hung"),
        (
            {"unknown": {"psnr": "one clip"}},
            "required >= 22 dB, measured 28.00 dB, unreliable: one clip",
        ),
    ],
)
def test_the_reason_of_a_check_has_required_and_measured_value(changed, reason):
    checks = verdict_of(replace(GOOD, teacher_psnr_db=22.0, **changed)).checks
    (check,) = (check for check in checks if check.name == "psnr")
    assert check.reason == f"mean PSNR against the source: {reason}"


def test_the_reason_of_an_upper_limit_says_so():
    (check,) = verdict_of(replace(GOOD, package_bytes=41e6)).not_passed
    assert check.reason == "package size: required <= 40 MB, measured 41.00 MB"


def test_shares_and_ratios_have_no_unit_in_a_reason():
    check = verdict_of(replace(GOOD, psnr_db=23.25, teacher_psnr_db=25.0)).checks[0]
    assert check.reason.endswith("required >= 0.95, measured 0.930")
    (check,) = verdict_of(replace(GOOD, flicker_ratio=4.5)).not_passed
    assert check.reason.endswith("required <= 3, measured 4.50")


@given(st.floats(15, 50), st.floats(0.5, 1.2), st.floats(15, 50), st.sampled_from([0.999, 1.001]))
def test_at_the_least_psnr_both_psnr_checks_begin_to_pass(teacher, retention, least, factor):
    thresholds = replace(THRESHOLDS, min_psnr=least, min_psnr_retention=retention)
    psnr = factor * least_psnr_db(thresholds, teacher)
    verdict = verdict_of(replace(GOOD, psnr_db=psnr, teacher_psnr_db=teacher), thresholds)
    fails = {"psnr", "psnr_retention"} & set(failed_names(verdict))
    assert bool(fails) == (factor < 1)


def test_a_verdict_of_an_earlier_version_is_read_with_its_old_keys():
    verdict = verdict_of(replace(GOOD, psnr_db=None))
    text = json.dumps(verdict.to_json())
    for now, then in (("inconclusive", "cannot tell"), ("rationale", "because")):
        assert f'"{now}"' in text
        text = text.replace(f'"{now}"', f'"{then}"')
    assert Verdict.from_json(json.loads(text)) == verdict
    assert verdict.result == "inconclusive"


def test_needs_approval_comes_from_the_use_case():
    assert not verdict_of(GOOD).needs_approval
    assert verdict_of(GOOD, replace(THRESHOLDS, needs_approval=True)).needs_approval


MEASURED = st.floats(0.001, 2e9, allow_nan=False)


@given(
    evidence=st.builds(made_up.evidence, **{name: MEASURED | st.none() for name in CHECKED_BY}),
    field=st.sampled_from(sorted(HIGHER_IS_BETTER | LOWER_IS_BETTER)),
    factor=st.floats(1, 100),
)
def test_worse_never_passes_more(evidence, field, factor):
    value = getattr(evidence, field)
    if value is None:
        return
    worse = value / factor if field in HIGHER_IS_BETTER else value * factor
    before, after = verdict_of(evidence), verdict_of(replace(evidence, **{field: worse}))
    assert failed_names(before) <= failed_names(after)
    assert not (before.result == "fails" and after.result == "passes")


@given(
    evidence=st.builds(made_up.evidence, **{name: MEASURED for name in CHECKED_BY}),
    field=st.sampled_from(sorted(CHECKED_BY)),
)
def test_losing_a_measurement_never_passes_more(evidence, field):
    assert verdict_of(replace(evidence, **{field: None})).result != "passes"


@given(
    evidence=st.builds(made_up.evidence, **{name: MEASURED for name in CHECKED_BY}),
    better=st.floats(1, 100),
)
def test_better_never_fails_more(evidence, better):
    """The mirror image: a sign turned round in any one rule shows here."""
    changed = {
        name: getattr(evidence, name) * (better if name in HIGHER_IS_BETTER else 1 / better)
        for name in HIGHER_IS_BETTER | LOWER_IS_BETTER
    }
    assert failed_names(verdict_of(replace(evidence, **changed))) <= failed_names(
        verdict_of(evidence)
    )


def test_a_verdict_is_read_back_as_written(tmp_path):
    broken = replace(GOOD, ssim=None, broken="it crashed")
    for found in (GOOD, replace(GOOD, ssim=math.nan), broken):
        verdict = verdict_of(found)
        path = write_verdict(verdict, tmp_path)
        assert path.name == "verdict.json"
        assert read_verdict(path) == verdict
        assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


def test_a_missing_verdict_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_verdict(tmp_path / "verdict.json")


def failing_document():
    return verdict_of(replace(GOOD, ssim=0.1)).to_json()


def without_failed(document):
    document["checks"] = [c for c in document["checks"] if c["result"] == "passes"]
    document["result"] = "passes"


def set_check(document, check="ssim", **values):
    next(c for c in document["checks"] if c["name"] == check).update(values)


@pytest.mark.parametrize(
    "forge",
    [
        lambda d: d.update(result="passes"),
        without_failed,
        lambda d: (set_check(d, result="passes"), d.update(result="passes")),
        lambda d: set_check(d, measured="0.9"),
        lambda d: set_check(d, result="maybe"),
        lambda d: set_check(d, low=0.7, high=0.9),
        lambda d: set_check(d, measured=None, result="passes"),
        lambda d: set_check(d, "psnr", low=21.0, high=29.0),
        lambda d: set_check(d, "flicker_ratio", low=1.0, high=3.5),
        lambda d: d.update(format=1),
        lambda d: d.update(checks=[], result="passes"),
        lambda d: d.update(checks=None),
        lambda d: d.pop("package_sha256"),
        lambda d: d.update(unknown=1),
    ],
)
def test_an_altered_verdict_is_refused(tmp_path, forge):
    document = json.loads(json.dumps(failing_document()))
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps(document))
    read_verdict(path)
    forge(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptFile, match="run the gate stage again"):
        read_verdict(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"customer": "x"}'])
def test_a_broken_verdict_is_refused(tmp_path, content):
    path = tmp_path / "verdict.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"verdict\.json"):
        read_verdict(path)


def test_a_verdict_cut_short_is_refused(tmp_path):
    path = write_verdict(verdict_of(GOOD), tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptFile):
        read_verdict(path)
