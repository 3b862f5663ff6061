"""The policy on random markets, and what the simulator says of policies that are wrong."""

from dataclasses import replace
from typing import Any

import pytest

from turbo_vaed.costs import decide
from turbo_vaed.costs.markets import MINUTES, Trace, random_trace
from turbo_vaed.costs.simulate import replay, simulate, summary


def calm(**changes: Any) -> Trace:
    """A dollar an hour, machines that stay, ten hours' money."""
    plan: dict[str, Any] = {
        "budget_usd": 10.0,
        "most_usd_per_hour": 2.0,
        "usd_per_hour": [1.0] * MINUTES,
        "is_up": [True] * MINUTES,
        "has_notice": [False] * MINUTES,
        "quoted_until": list(range(MINUTES)),
        "skew_minutes": 0,
        "step_seconds": 10.0,
        "ask_seconds": 60.0,
        "checkpoint_every_seconds": 600.0,
        "checkpoint_seconds": 6.0,
        "restart_seconds": 60.0,
        "finish_seconds": 180.0,
        "goal_steps": 1000,
    }
    return Trace(**(plan | changes))


def test_on_a_calm_market_the_forecast_makes_what_arithmetic_says() -> None:
    found = replay(calm())
    # 10 USD less 3 min at 2 USD/h are 9.9 hours; a minute of start, and one checkpoint.
    assert found.oracle_steps == (9.9 * 3600 - 60 - 6) // 10
    assert found.lost_steps == found.interruptions == 0
    # A checkpoint after ten minutes, and the last minutes at the highest price that may be.
    assert 0.96 < found.share_of_oracle < 0.99
    assert 9.8 < found.spent_usd <= 10


def test_an_interruption_costs_the_way_back_to_the_checkpoint() -> None:
    up = [True] * MINUTES
    up[95] = False
    told, untold = [True] * MINUTES, [False] * MINUTES
    without = replay(calm(is_up=up, has_notice=untold))
    # Down at 5700 s. A minute of start, ten minutes and six seconds a checkpoint: the ninth is
    # there at 5514 s, and the rest is lost.
    assert without.interruptions == 1
    assert without.lost_steps == pytest.approx(18, abs=1)
    assert replay(calm(is_up=up, has_notice=told)).lost_steps == 0


def test_what_no_quote_tells_counts_at_the_highest_price() -> None:
    found = replay(calm(quoted_until=[-1] * MINUTES))
    assert found.spent_usd == pytest.approx(5, abs=0.2)  # it believes to have spent twice that


def test_the_policy_keeps_every_budget_and_most_of_the_steps() -> None:
    found = summary(simulate(300, seed=5, processes=1))
    assert (found["traces"], found["overspent"], found["worst_overspend_usd"]) == (300, 0, 0.0)
    assert found["goal_reachable"] > 200
    assert found["median_steps_of_oracle"] >= 0.95
    assert found["interruptions"] > 300


def test_a_policy_without_a_reserve_overspends() -> None:
    def unreserved(budget: Any, **facts: Any) -> Any:
        """The reserve is not kept."""
        return decide(replace(budget, reserve_usd=budget.reserve_usd * 0), **facts)

    found = summary([replay(random_trace(5, i), unreserved) for i in range(100)])
    assert found["overspent"] >= 5
    assert found["worst_overspend_usd"] > 0.01


def test_nobody_beats_the_forecast() -> None:
    for found in simulate(200, seed=6, processes=1):
        assert found.steps <= found.oracle_steps


def test_a_seed_is_the_same_traces_on_any_number_of_processes() -> None:
    assert simulate(201, seed=3, processes=2) == simulate(201, seed=3, processes=1)
    assert random_trace(3, 7) != random_trace(4, 7)
