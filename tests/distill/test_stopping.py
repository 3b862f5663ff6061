"""When a student is good enough: what must stop a run, and what must not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from turbo_vaed.distill.events import VALIDATIONS
from turbo_vaed.distill.job import QualityTarget
from turbo_vaed.distill.stopping import (
    Enough,
    curve,
    enough,
    good_enough,
    lacking,
    trend,
)

LIMIT = Decimal("0.02")
"""USD for 0.1 dB: 5 dB for a dollar."""
TARGET = QualityTarget(
    psnr=30.1,
    rationale="30.10 dB: 29.60 dB that the gate asks for, and a margin of 0.5 dB",
    limits={"ssim": 0.93, "ms_ssim": 0.95, "worst_psnr": 24.5, "detail": 0.6, "flicker": 0.008},
    worst_share=0.05,
)
MET = {f"val_{name}": limit for name, limit in TARGET.limits.items()}
"""The figures of a student that just meets every limit."""
MISSED = {
    "ssim": 0.9299, "ms_ssim": 0.9499, "worst_psnr": 24.49, "detail": 0.5999, "flicker": 0.008001,
}  # fmt: skip
"""What is not enough of each."""
Curve = list[tuple[Decimal, float]]


def decide(
    validations: Curve,
    *,
    best_psnr: float = 0.0,
    best: Mapping[str, Any] = MET,
    target: QualityTarget | None = None,
    limit: Decimal | None = LIMIT,
) -> Enough | None:
    return enough(
        validations,
        best_psnr=best_psnr,
        best=best,
        target=target,
        usd_per_tenth_db=limit,
    )


def priced(pieces: list[tuple[Decimal, float]], limit: Decimal = LIMIT) -> Curve:
    """A curve of pieces (USD, price over the limit)."""
    usd, psnr, found = Decimal(1), 25.0, [(Decimal(1), 25.0)]
    for gap, price in pieces:
        usd, psnr = usd + gap, psnr + 0.1 * float(gap / limit) / price
        found.append((usd, psnr))
    return found


gaps = st.decimals("0.001", "1", places=3)
cheap = st.lists(st.tuples(gaps, st.floats(0.05, 0.9)), min_size=1, max_size=25).map(priced)
dear = st.lists(st.tuples(gaps, st.floats(1.1, 1e3)), min_size=6, max_size=25).map(priced)
any_curve = st.lists(st.tuples(gaps, st.floats(20, 40)), max_size=25).map(
    lambda rows: list(
        zip(itertools.accumulate(gap for gap, _ in rows), [psnr for _, psnr in rows], strict=True)
    )
)


def test_the_target_is_reached_and_not_before() -> None:
    found = decide([], best_psnr=30.1, target=TARGET)
    assert found is not None and found.kind == "target"
    for limit in (TARGET.rationale, *TARGET.limits.values()):
        assert f"required >= {limit}" in found.reason or f"required <= {limit}" in found.reason
    assert decide([], best_psnr=30.0999, target=TARGET) is None
    assert decide([], best_psnr=99.0) is None


@pytest.mark.parametrize("name", MISSED)
def test_each_figure_that_is_required_has_to_be_met(make_job, name: str) -> None:
    """One that is missed, that is not a number, or that an earlier version did not write: there is
    no warning of that, for there is one warning, and it is for a figure that is missed."""
    job = replace(make_job(), quality_target=TARGET)
    history = [{"step": 1, "val_psnr": 30.2, **MET}]
    assert good_enough(job, history, best_psnr=30.2) is not None
    others = {key: known for key, known in MET.items() if key != f"val_{name}"}
    for figure, measured in (
        ({}, None),
        ({f"val_{name}": float("nan")}, "unknown"),
        ({f"val_{name}": MISSED[name]}, f"{MISSED[name]:.4g}"),
    ):
        history = [{"step": 1, "val_psnr": 30.2, **others, **figure}]
        assert good_enough(job, history, best_psnr=30.2) is None
        lacks = lacking(job, history, best_psnr=30.2)
        assert (lacks is None) == (measured is None)
        if lacks is not None and measured is not None:
            assert measured in lacks and f"{TARGET.limits[name]:.4g}" in lacks


def test_a_figure_without_a_limit_stops_nothing() -> None:
    """As flicker of clips of one frame."""
    value = MISSED["flicker"]
    limits = {name: limit for name, limit in TARGET.limits.items() if name != "flicker"}
    target = replace(TARGET, limits=limits)
    assert decide([], best_psnr=30.1, best={**MET, "val_flicker": value}, target=target)
    assert decide([], best_psnr=30.1, best={}, target=replace(TARGET, limits={}))


def test_missing_figures_are_listed_only_once_psnr_suffices(make_job) -> None:
    job = replace(make_job(), quality_target=TARGET)
    assert lacking(job, [{"step": 1, "val_psnr": 30.0}], best_psnr=30.0) is None
    assert lacking(job, [{"step": 1, "val_psnr": 30.2, **MET}], best_psnr=30.2) is None
    assert lacking(make_job(), [{"step": 1, "val_psnr": 30.2}], best_psnr=30.2) is None


def test_a_price_is_reported_with_its_limit() -> None:
    found = decide(priced([(Decimal("0.1"), 1.5)] * 6))
    assert found is not None and found.kind == "marginal cost"
    assert all(figure in found.reason for figure in ("last 5 validations", "$0.03", "$0.02"))
    flat = decide([(Decimal(n), 30.0) for n in range(30)])
    assert flat is not None and flat.kind == "marginal cost"
    assert all(figure in flat.reason for figure in ("last 10 validations", "$0.02"))


@given(cheap)
def test_a_curve_that_gets_better_below_the_limit_is_never_stopped(validations: Curve) -> None:
    assert [decide(validations[:n]) for n in range(len(validations) + 1)] == [None] * (
        len(validations) + 1
    )


@given(dear)
def test_a_curve_that_gets_better_above_the_limit_is_stopped(validations: Curve) -> None:
    found = decide(validations)
    assert found is not None and found.kind == "marginal cost"
    assert decide(validations, limit=None) is None


@given(st.lists(gaps, max_size=30), st.floats(20, 40))
def test_a_flat_curve_is_stopped_after_enough_validations(gaps: list[Decimal], psnr: float) -> None:
    flat = [(usd, psnr) for usd in itertools.accumulate(gaps)]
    assert (decide(flat) is not None) == (len(flat) > VALIDATIONS)


@given(cheap, st.data(), st.floats(-20, 20))
def test_no_single_validation_stops_a_run(validations: Curve, data: Any, off: float) -> None:
    """However lucky or unlucky, and wherever it lies."""
    place = data.draw(st.integers(0, len(validations) - 1))
    usd, psnr = validations[place]
    validations[place] = (usd, psnr + off)
    assert all(decide(validations[:n]) is None for n in range(len(validations) + 1))


@given(any_curve, st.decimals("0.001", "1000", places=3))
def test_another_price_per_hour_scales_the_price_of_quality_and_not_the_end(
    validations: Curve, by: Decimal
) -> None:
    scaled = [(usd * by, psnr) for usd, psnr in validations]
    ours, theirs = trend(validations), trend(scaled)
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert theirs * by == pytest.approx(ours, rel=Decimal("1e-20"))
    for slope in (ours, trend(validations[:-1]) or Decimal(0)):
        assume(abs(slope * LIMIT * 10 - 1) > Decimal("1e-9"))  # not on the limit to the last digit
    kinds = [
        found and found.kind for found in (decide(validations), decide(scaled, limit=LIMIT * by))
    ]
    assert kinds[0] == kinds[1]


def noisy(rng: random.Random, count: int, *, gain: float, noise: float) -> Curve:
    return [(Decimal(n), 25 + gain * n + rng.gauss(0, noise)) for n in range(1, count + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 20, 50])
def test_noise_as_large_as_the_gain_of_an_interval_stops_few_runs(count: int) -> None:
    """Of a true price that is a third of the limit: any of the questions would stop a run."""
    rng = random.Random(5)
    limit = 3 * Decimal("0.1") / Decimal("0.2")
    draws = [noisy(rng, count, gain=0.2, noise=0.2) for _ in range(100)]
    stopped = [any(decide(draw[:n], limit=limit) for n in range(count + 1)) for draw in draws]
    assert sum(stopped) <= 12
    calm = [noisy(rng, count, gain=0.2, noise=0.1) for _ in range(100)]
    assert not any(decide(draw[:n], limit=limit) for draw in calm for n in range(count + 1))


def test_noise_does_not_keep_a_run_from_ending() -> None:
    """Nothing is gained any more: soon the trend says so, whatever the noise."""
    rng = random.Random(6)
    flat = [noisy(rng, 40, gain=0.0, noise=0.1) for _ in range(100)]
    assert sum(any(decide(draw[:n]) for n in range(41)) for draw in flat) == 100


def test_a_long_curve_is_thinned_and_its_last_third_counts() -> None:
    def rising_to(top: int) -> Curve:
        return [(Decimal(n), 25 + min(n, top) * 0.5) for n in range(6000)]

    assert trend(rising_to(2000)) == 0
    assert trend(rising_to(5900)) == pytest.approx(Decimal("0.5"))
    assert trend([*rising_to(3990)[:-1], (Decimal(5999), 99999.0)]) == 0


def test_free_quality_is_never_too_expensive() -> None:
    assert decide([(Decimal(0), 30.0)] * 20) is None


def rows(count: int, every: int = 1, **more: Any) -> list[dict[str, Any]]:
    validated = {"val_psnr": 30.0, "val_ssim": 0.9}
    return [
        {
            "step": n,
            "training_usd": f"{0.001 * n:.3f}",
            **(validated if n % every == 0 else {}),
            **more,
        }
        for n in range(1, count + 1)
    ]


def test_the_first_steps_do_not_count(make_job) -> None:
    def first(**changes: Any) -> int:
        params = make_job(steps=100, **changes).params
        return round(curve(rows(100), params)[0][0] / Decimal("0.001"))

    assert first(warmup_share=0.0) == 11  # a tenth of the steps
    assert first(warmup_share=0.3) == 31  # the rate has come up
    assert first(weight_adversarial=0.1, adversarial_start=50) == 51  # the recipe is whole
    assert first(weight_adversarial=0.0, adversarial_start=50) == 11


def test_the_curve_has_the_dollars_of_its_steps(make_job) -> None:
    params = make_job(steps=20, warmup_share=0.0).params
    history = rows(8, every=4)
    history[7]["val_psnr"] = float("nan")
    assert curve(history, params) == [(Decimal("0.004"), 30.0)]
    del history[3]["training_usd"]  # of an earlier version: free, which stops nothing
    assert curve(history, params) == [(Decimal(0), 30.0)]


@pytest.mark.parametrize(("best", "is_enough"), [(0.94, True), (0.92, False), (None, False)])
def test_the_figures_are_those_of_the_best_student(
    make_job, best: float | None, is_enough: bool
) -> None:
    """Which is the one of the highest PSNR; the start's are in no history."""
    history: list[dict[str, Any]] = [
        {"step": 1, "val_psnr": 29.0, **MET},
        {"step": 2},
        {"step": 3, "val_psnr": 31.0, **MET, "val_ssim": best},
        {"step": 4, "val_psnr": 30.0, **MET},
    ]
    psnr = 31.0
    if best is None:
        psnr, history[2] = 32.0, {"step": 3}
    job = replace(make_job(), quality_target=TARGET)
    assert (good_enough(job, history, best_psnr=psnr) is not None) == is_enough


def test_a_job_stops_by_its_own_limits(make_job) -> None:
    flat = rows(30)
    ask = {"history": flat, "best_psnr": 30.0}
    assert good_enough(make_job(steps=100), **ask) is None
    found = good_enough(make_job(steps=100, stop_usd_per_tenth_db="0.5"), **ask)
    assert found is not None and found.kind == "marginal cost"
