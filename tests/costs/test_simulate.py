"""The policy on random markets, and how the simulator exposes policies that are wrong."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turbo_vaed.costs import decide
from turbo_vaed.costs.oracle import perfect_forecast
from turbo_vaed.costs.simulate import Replay, _Run, mean_shortfall, replay, simulate, summary
from turbo_vaed.costs.simulated_markets import MINUTES, Market, Trace, random_trace


def calm(**changes: Any) -> Trace:
    """A dollar an hour, machines that stay, ten hours' money."""
    plan: dict[str, Any] = {
        "budget_usd": 10.0,
        "most_usd_per_hour": 2.0,
        "planned_usd_per_hour": 1.0,
        "usd_per_hour": [1.0] * MINUTES,
        "is_up": [True] * MINUTES,
        "has_notice": [False] * MINUTES,
        "quoted_until": list(range(MINUTES)),
        "skew_minutes": 0.0,
        "step_seconds": 10.0,
        "checkpoint_seconds": 6.0,
        "restart_seconds": 60.0,
        "finish_seconds": 180.0,
        "goal_steps": 1000,
    }
    return Trace(**(plan | changes))


def without(minutes: range) -> list[bool]:
    """No machines in these."""
    return [minute not in minutes for minute in range(MINUTES)]


def prices(jumps: dict[range, float]) -> list[float]:
    """A dollar, but for some minutes."""
    return [next((p for at, p in jumps.items() if m in at), 1.0) for m in range(MINUTES)]


@st.composite
def adversarial(draw: st.DrawFn) -> Trace:
    """Markets that nobody would draw: whatever the trace may hold, in pieces of any length."""

    def pieces(values: st.SearchStrategy[Any]) -> list[Any]:
        parts = draw(st.lists(st.tuples(values, st.integers(1, 200)), min_size=1, max_size=6))
        row = [value for value, length in parts for _ in range(length)]
        return (row + [parts[-1][0]] * MINUTES)[:MINUTES]

    quotes = pieces(st.sampled_from(["at once", "late", "held", "none"]))
    late = draw(st.integers(1, 60))
    known, quoted = -1, []
    for minute, kind in enumerate(quotes):
        # A quote that is there stays; where it is held, or none comes, nothing is added.
        reached = {"at once": minute, "late": minute - late}.get(kind, -1)
        known = max(known, reached)
        quoted.append(known)
    most = draw(st.floats(0.1, 10))
    price = st.floats(0.01, 1.5).map(lambda share: share * most)
    return calm(
        budget_usd=most * draw(st.floats(0.001, 6)),
        most_usd_per_hour=most,
        planned_usd_per_hour=draw(price),
        usd_per_hour=pieces(price),
        is_up=pieces(st.booleans()),
        has_notice=pieces(st.booleans()),
        quoted_until=quoted,
        skew_minutes=draw(st.one_of(st.floats(-5, 5), st.sampled_from([-5.0, 5.0]))),
        step_seconds=draw(st.floats(1, 100)),
        checkpoint_seconds=draw(st.sampled_from([0.0, 1.0, 15.0, 150.0])),
        restart_seconds=draw(st.floats(0, 300)),
        finish_seconds=draw(st.floats(0, 600)),
    )


QUIET_THEN_DEAR = prices({range(100, MINUTES): 2.0})
EVERY_OTHER_MINUTE = [minute % 2 == 0 for minute in range(MINUTES)]


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@example(calm(usd_per_hour=QUIET_THEN_DEAR, skew_minutes=5.0))
@example(calm(usd_per_hour=QUIET_THEN_DEAR, skew_minutes=-5.0))
@example(calm(usd_per_hour=QUIET_THEN_DEAR, quoted_until=[-1] * MINUTES))
@example(calm(usd_per_hour=[2.0] * MINUTES, planned_usd_per_hour=0.01))
@example(calm(is_up=EVERY_OTHER_MINUTE))
@example(calm(is_up=EVERY_OTHER_MINUTE, restart_seconds=10.0, has_notice=[True] * MINUTES))
@example(calm(is_up=[False] * MINUTES))
@example(calm(budget_usd=1e-9))
@example(calm(budget_usd=0.1, finish_seconds=180.0))  # the finish and nothing else
@given(adversarial())
def test_no_market_makes_a_run_overspend_or_beat_the_forecast(trace: Trace) -> None:
    found = replay(trace)
    finish_usd = trace.finish_seconds * trace.most_usd_per_hour / 3600
    if finish_usd <= trace.budget_usd:
        assert found.over_usd == 0
    else:  # the floor of a run, and no step beyond it
        assert found.spent_usd == finish_usd
    assert found.steps <= found.oracle_steps
    missing = sum(asdict(found.shortfall).values()) * found.oracle_steps
    assert found.oracle_steps - found.steps == pytest.approx(missing, abs=2 + missing * 0.02)


ON_THE_MINUTE = calm(is_up=without(range(5, 6)), step_seconds=60.0)
"""Machines that are taken in the very moment in which a step is done."""


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@example(ON_THE_MINUTE)
@given(adversarial().map(lambda trace: replace(trace, step_seconds=10 + trace.step_seconds)))
def test_deciding_on_many_steps_at_once_equals_deciding_before_each(trace: Trace) -> None:
    many, one = _Run(trace, decide), OneByOne(trace, decide)
    many.train()
    one.train()
    assert (many.kept, many.lost_steps, many.interruptions) == (
        one.kept,
        one.lost_steps,
        one.interruptions,
    )


class OneByOne(_Run):
    """Takes a single step of those that are allowed, and asks again, with all quotes settled."""

    def _is_allowed_ahead(self, seconds: float) -> bool:
        self.spending.settle(self.quoted_until)
        return self._is_allowed(seconds)

    def _next_steps(self) -> tuple[int, bool]:
        steps, _ = super()._next_steps()
        return (1, self.unsaved + 1 >= self.save_every) if steps else (0, True)


def test_on_a_calm_market_the_forecast_equals_arithmetic() -> None:
    found = replay(calm())
    # 10 USD less 3 min at 2 USD/h are 9.9 hours; a minute of start, and one checkpoint.
    assert found.oracle_steps == (9.9 * 3600 - 60 - 6) // 10
    assert found.lost_steps == found.interruptions == 0
    # A checkpoint every seven minutes at first, and five minutes that are not quoted, at 1.25.
    assert 0.98 < found.share_of_oracle < 0.995
    assert 9.95 < found.spent_usd <= 10


def test_the_forecast_leaves_out_time_that_trains_nothing() -> None:
    up = without(range(1, MINUTES, 2))
    trace = calm(is_up=up)
    assert perfect_forecast(trace, Market(trace)).train_seconds == 0  # 60 s, and 66 to no avail
    short = calm(is_up=up, restart_seconds=30.0)
    assert perfect_forecast(short, Market(short)).train_seconds == pytest.approx(24 * 9.9 * 60)


def test_an_interruption_without_notice_loses_the_steps_since_the_checkpoint() -> None:
    up = without(range(95, 96))
    noticed = replay(calm(is_up=up, has_notice=[True] * MINUTES))
    sudden = replay(calm(is_up=up))
    assert sudden.interruptions == noticed.interruptions == 1
    assert noticed.lost_steps <= 1  # the one that the save took the time of
    assert sudden.lost_steps > 0
    assert sudden.shortfall.interruptions == pytest.approx(
        sudden.lost_steps / sudden.oracle_steps, abs=1 / sudden.oracle_steps
    )
    assert sudden.steps < noticed.steps


def test_a_notice_too_short_to_write_a_checkpoint_saves_nothing() -> None:
    up = without(range(95, 96))
    slow = {"is_up": up, "checkpoint_seconds": 121.0}
    found = [replay(calm(**slow, has_notice=[notice] * MINUTES)) for notice in (True, False)]
    assert found[0].lost_steps == found[1].lost_steps > 0


def test_time_without_a_quote_counts_at_the_bid() -> None:
    found = replay(calm(quoted_until=[-1] * MINUTES))
    # It assumes to have spent a quarter more, and reserves as much.
    assert found.spent_usd == pytest.approx(0.1 + 9.9 / 1.25, abs=0.1)
    assert found.shortfall.unquoted == pytest.approx(0.2, abs=0.01)


def test_a_bid_after_a_jump_is_not_that_of_the_jump() -> None:
    """Quotes are late, so the newest still shows the jump when machines come back."""
    dear = {range(90, 110): 20.0}
    run = _Run(calm(usd_per_hour=prices(dear), quoted_until=late(5)), decide)
    run.train()
    assert run.bid == 1.25
    assert run.restart_seconds == 120  # at once, and not when the end is near


def test_a_high_bid_is_lowered_before_the_end() -> None:
    dear = {range(60): 1.9}
    found = _Run(calm(usd_per_hour=prices(dear), quoted_until=late(15)), decide)
    found.train()
    assert found.bid == 1.25
    assert found.restart_seconds == 120


def late(minutes: int) -> list[int]:
    return [minute - minutes for minute in range(MINUTES)]


JUMPS = {"usd_per_hour": prices({range(200, 230): 3.0})}
LOST = {"is_up": without(range(95, 96))}
COSTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("unquoted", {"quoted_until": late(1)}, {"quoted_until": late(30)}),
    ("clock", {}, JUMPS),
    ("saves", {"checkpoint_seconds": 1.0}, {"checkpoint_seconds": 15.0}),
    ("interruptions", LOST | {"has_notice": [True] * MINUTES}, LOST),
    ("restarts", {}, {"is_up": without(range(1, 31, 2))}),
]


@pytest.mark.parametrize(("cause", "less", "more"), COSTS, ids=[cause for cause, *_ in COSTS])
def test_each_cause_has_its_share_of_the_shortfall(cause: str, less: Any, more: Any) -> None:
    low, high = replay(calm(**less)), replay(calm(**more))
    assert getattr(high.shortfall, cause) > getattr(low.shortfall, cause) + 1e-4
    assert high.share_of_oracle < low.share_of_oracle


def test_a_long_step_leaves_a_larger_unused_rest() -> None:
    short, long = replay(calm(step_seconds=1.0)), replay(calm(step_seconds=1000.0))
    assert short.shortfall.last_step < 0.001 < long.shortfall.last_step


@pytest.mark.parametrize("dearer", [{"finish_seconds": 900.0}, {"restart_seconds": 240.0}])
def test_dearer_later_stages_leave_fewer_steps_to_policy_and_forecast(
    dearer: dict[str, float],
) -> None:
    low, high = replay(calm()), replay(calm(**dearer))
    assert high.steps < low.steps
    assert high.oracle_steps < low.oracle_steps


@pytest.mark.slow
def test_the_policy_never_overspends_and_takes_most_of_the_possible_steps() -> None:
    replays = simulate(200, seed=5, processes=1)
    found = summary(replays)
    assert (found["traces"], found["overspent"], found["worst_overspend_usd"]) == (200, 0, 0.0)
    assert found["goal_reachable"] > 150
    assert found["median_steps_of_oracle"] >= 0.975
    assert found["traces_below_95_percent"] < 0.05 * found["goal_reachable"]
    assert found["interruptions"] > 300
    for one in replays:
        assert one.steps <= one.oracle_steps
        missing = 1 - one.share_of_oracle
        rounding = 1 / one.oracle_steps
        assert sum(asdict(one.shortfall).values()) == pytest.approx(missing, abs=rounding)
    reachable = [one for one in replays if one.was_reachable]
    assert found["shortfall_saves"] == mean_shortfall(reachable)["saves"] > 0


def overspent(policy: Any) -> list[Replay]:
    replays = [replay(random_trace(5, index), policy) for index in range(40)]
    return [one for one in replays if one.over_usd > 0]


def test_a_policy_without_a_reserve_overspends() -> None:
    def unreserved(budget: Any, **facts: Any) -> Any:
        return decide(replace(budget, reserve_usd=budget.reserve_usd * 0), **facts)

    assert len(overspent(unreserved)) > 20


def test_a_policy_that_forgets_the_step_under_way_overspends() -> None:
    def forgetful(budget: Any, **facts: Any) -> Any:
        return decide(budget, **(facts | {"next_step_seconds": 0.0}))

    assert len(overspent(forgetful)) > 20


@pytest.mark.slow
def test_a_seed_is_the_same_traces_on_any_number_of_processes() -> None:
    assert simulate(101, seed=3, processes=2) == simulate(101, seed=3, processes=1)
    assert random_trace(3, 7) == random_trace(3, 7)
    assert random_trace(3, 7) != random_trace(4, 7)
