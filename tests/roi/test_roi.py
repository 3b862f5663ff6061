"""The return on investment: by hand, by brute force, and what must hold whatever the inputs."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.roi.made_up import HAND, exact
from turbo_vaed.errors import UserError
from turbo_vaed.roi.inputs import INPUTS, Input
from turbo_vaed.roi.roi import Case, Roi, calculate

CENT = Decimal("0.005")


def likely(**changes: str) -> Case:
    return calculate(exact(**changes)).likely


def decimals(low: str, high: str) -> st.SearchStrategy[Decimal]:
    return st.decimals(low, high, places=3, allow_nan=False, allow_infinity=False)


def sizes(name: str) -> st.SearchStrategy[Decimal]:
    """Sizes of an input that may occur."""
    most = min(Decimal(HAND[name]) * 20, INPUTS[name].most or Decimal("Infinity"))
    return decimals("0.001" if INPUTS[name].is_positive else "0", str(most))


cases = st.builds(Case, **{name: sizes(name) for name in HAND})


@st.composite
def inputs(draw: st.DrawFn) -> list[Input]:
    """Any ranges of them."""
    found = []
    for name in HAND:
        low, middle, high = sorted(draw(sizes(name)) for _ in range(3))
        found.append(Input(name=name, low=low, likely=middle, high=high, source="drawn"))
    return found


def test_every_formula_by_hand() -> None:
    case = likely()
    assert case.scale == 4
    assert case.gpu_seconds_per_minute == 40  # 6000 x 4 / 600
    assert case.gpu_usd_per_minute == Decimal("0.04")  # 40 s at 0.1 cents a second
    assert case.latent_mb_per_minute == 40  # 5 M x 4 x 2 bytes
    assert case.egress_usd_per_minute == Decimal("0.001")  # 10 MB more at 0.1 a GB
    assert case.saving_usd_per_minute == Decimal("0.039")
    assert case.downloads_usd_per_month == 2  # 400 downloads of 0.05 GB
    assert case.monthly_saving_usd == 388  # 10,000 minutes x 0.039 - 2
    assert case.once_usd == 10_095
    assert case.value_usd == 3_873  # 36 x 388 - 10,095
    assert case.payback_months is not None
    assert round(case.payback_months, 6) == Decimal("26.018041")
    even = case.break_even_minutes_per_month
    assert even is not None
    assert round(even, 4) == Decimal("14482.9060")  # (10,095 / 36 + 2) / (0.5 x 0.039)
    assert case.phone_realtime == 20  # 60 s of video in 30 x 4 / 40 s


def test_inputs_and_the_fields_of_a_case_are_the_same() -> None:
    assert tuple(INPUTS) == tuple(field.name for field in fields(Case)) == tuple(HAND)


@settings(max_examples=25)
@given(inputs())
def test_ranges_contain_the_likely_value_and_every_mixture(found: list[Input]) -> None:
    roi = calculate(found)
    mixtures = [
        Case(**{one.name: (one.low, one.likely, one.high)[(i * j) % 7 % 3]
                for j, one in enumerate(found, 1)})
        for i in range(12)
    ]  # fmt: skip
    never = Decimal("Infinity")
    for result in roi.results:
        low, high = (never if end is None else end for end in (result.low, result.high))
        for case in (roi.likely, *mixtures):
            value = getattr(case, result.name)
            value = never if value is None else value
            slack = Decimal("1e-9") * (1 + (abs(value) if value.is_finite() else 0))
            assert low - slack <= value <= high + slack, result.name


def test_the_ends_are_those_of_all_combinations() -> None:
    spread = ("minutes_per_month", "frame_megapixels", "gpu_usd_per_hour", "egress_usd_per_gb",
              "latent_bytes_per_value", "devices", "integration_usd", "horizon_months",
              "gpu_speedup", "video_mb_per_minute")  # fmt: skip
    found = [
        replace(one, low=one.low / 5, high=one.high * 3) if one.name in spread else one
        for one in exact()
    ]
    roi = calculate(found)
    corners = [
        Case(**{one.name: value for one, value in zip(found, chosen, strict=True)})
        for chosen in itertools.product(*({one.low, one.high} for one in found))
    ]
    assert len(corners) == 2 ** len(spread)
    for result in roi.results:
        values = [getattr(case, result.name) for case in corners]
        known = [value for value in values if value is not None]
        assert result.low is not None
        assert round(result.low, 9) == round(min(known), 9), result.name
        assert (result.high is None) == (None in values), result.name
        if result.high is not None:
            assert round(result.high, 9) == round(max(known), 9), result.name


@given(cases, decimals("0", "100000"))
def test_more_minutes_never_lower_the_saving_where_a_minute_saves(
    case: Case, more: Decimal
) -> None:
    grown = replace(case, minutes_per_month=case.minutes_per_month + more)
    difference = grown.monthly_saving_usd - case.monthly_saving_usd
    if case.saving_usd_per_minute >= 0:
        assert difference >= -CENT
    else:  # and where it does not, they never raise it
        assert difference <= CENT


@given(cases, st.sampled_from(["gpu_usd_per_hour", "teacher_seconds_per_minute"]),
       decimals("0", "100"))  # fmt: skip
def test_a_dearer_cloud_never_lowers_the_saving(case: Case, name: str, more: Decimal) -> None:
    dearer = replace(case, **{name: getattr(case, name) + more})
    assert dearer.monthly_saving_usd >= case.monthly_saving_usd - CENT
    if case.payback_months is not None:
        assert dearer.payback_months is not None
        assert dearer.payback_months <= case.payback_months * (1 + Decimal("1e-20"))


@given(cases, st.sampled_from(["poc_usd", "integration_usd"]), decimals("0", "100000"))
def test_a_dearer_poc_never_shortens_payback(case: Case, name: str, more: Decimal) -> None:
    dearer = replace(case, **{name: getattr(case, name) + more})
    assert dearer.monthly_saving_usd == case.monthly_saving_usd
    assert dearer.value_usd <= case.value_usd
    assert (dearer.payback_months is None) == (case.payback_months is None)
    if dearer.payback_months is not None and case.payback_months is not None:
        assert dearer.payback_months >= case.payback_months


@given(cases)
def test_break_even_is_where_the_value_is_zero(case: Case) -> None:
    even = case.break_even_minutes_per_month
    assume(even is not None)
    assert even is not None
    assert abs(replace(case, minutes_per_month=even).value_usd) < CENT


@given(cases)
def test_payback_is_none_exactly_where_nothing_is_saved(case: Case) -> None:
    assert (case.payback_months is None) == (case.monthly_saving_usd <= 0)
    if case.payback_months is not None:  # after so many months the value is nothing
        assert abs(replace(case, horizon_months=case.payback_months).value_usd) < CENT


def test_without_a_saving_per_minute_there_is_no_break_even() -> None:
    assert likely(gpu_usd_per_hour="0").break_even_minutes_per_month is None
    assert likely(device_share="0").break_even_minutes_per_month is None
    assert likely(device_share="0").payback_months is None


def tornado() -> Roi:
    return calculate(
        [
            replace(one, low=one.low / 2, high=one.high * 2)
            if one.name in ("minutes_per_month", "gpu_speedup", "poc_usd")
            else one
            for one in exact()
        ]
    )


def test_sensitivities_move_one_input_and_are_sorted_by_their_swing() -> None:
    rows = tornado().sensitivities
    assert {row.name for row in rows} == set(INPUTS)
    assert [row.name for row in rows[:3]] == ["gpu_speedup", "minutes_per_month", "poc_usd"]
    assert [row.swing_usd for row in rows] == sorted((r.swing_usd for r in rows), reverse=True)
    minutes = rows[1]
    assert minutes.at_low_usd == likely(minutes_per_month="10000").value_usd
    assert minutes.at_high_usd == likely(minutes_per_month="40000").value_usd
    assert all(row.swing_usd == 0 for row in rows[3:])


def test_missing_inputs_are_refused_and_never_zero() -> None:
    found = [one for one in exact() if one.name not in ("poc_usd", "devices")]
    with pytest.raises(UserError, match=r"not measured: poc_usd; not assumed: devices.*not 0"):
        calculate(found)
    with pytest.raises(UserError, match=r"devices .*twice"):
        calculate([*exact(), Input.exact("devices", Decimal(1), "again")])


@pytest.mark.parametrize(
    ("name", "ends", "message"),
    [
        ("colour", (1, 1, 1), "'colour'"),
        ("devices", (2, 1, 3), r"devices .*\b2.*\b1.*\b3"),
        ("devices", (1, 4, 3), r"devices .*\b1.*\b4.*\b3"),
        ("devices", (-1, 1, 3), r"devices\.low .*-1"),
        ("devices", (1, 1, "NaN"), "devices.high"),
        ("devices", (1, 1, "Infinity"), "devices.high"),
        ("gpu_speedup", (0, 1, 2), "gpu_speedup.low is 0"),
        ("phone_speedup", (0, 1, 2), "phone_speedup.low is 0"),
        ("student_seconds_per_minute", (0, 1, 2), "minute.low is 0"),
        ("horizon_months", (0, 1, 2), "horizon_months.low is 0"),
        ("clip_megapixels", (0, 1, 2), "clip_megapixels.low is 0"),
        ("device_share", (0, "0.5", "1.1"), "at most 1"),
    ],
)
def test_impossible_inputs_are_refused(name: str, ends: tuple[object, ...], message: str) -> None:
    low, middle, high = (Decimal(str(end)) for end in ends)
    with pytest.raises(UserError, match=message):
        Input(name=name, low=low, likely=middle, high=high, source="x")


def test_an_input_has_the_kind_of_its_quantity_unless_it_was_measured() -> None:
    assert {one.name: one.kind for one in exact()} == {n: q.kind for n, q in INPUTS.items()}
    one = Input.exact("gpu_speedup", Decimal(1), "a GPU", is_measured=True)
    assert (INPUTS[one.name].kind, one.kind) == ("assumed", "measured")


def test_a_float_and_a_figure_without_source_are_refused() -> None:
    with pytest.raises(UserError, match="finite Decimal"):
        Input(name="devices", low=1.0, likely=1.0, high=1.0, source="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no source"):
        Input.exact("devices", Decimal(1), "")
