"""What the stage `distill` does where the budget does not hold the teacher's targets."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from turbo_vaed.costs import Budget, Spending
from turbo_vaed.distill import targets
from turbo_vaed.distill.target_costs import TargetPlan
from turbo_vaed.models import PRESETS
from turbo_vaed.settings import Settings
from turbo_vaed.stages import distill


def test_a_cache_that_takes_longer_than_it_was_measured_is_given_up_in_time(
    judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second costs a dollar: nine are left, and after two clips ten more are wanted."""
    workspace, asked = judged.workspace, []
    spending = Spending(
        budget=Budget(run_usd=Decimal(10), warn_share=Decimal(1), reserve_usd=Decimal(1)),
        usd_per_hour=Decimal(3600),
        spent_usd=lambda: Decimal(0),
    )

    def plan(wanted: Any, params: Any, *, affordable_seconds: Callable[[], float], **_: Any) -> Any:
        assert affordable_seconds() == 9
        return TargetPlan(
            blocks=(), reconstruction=True, mode="cache", reason="cheaper", figures={"a": 1.0}
        )

    def write(wanted: Any, *, afford: Callable[[float], None], **_: Any) -> None:
        for seconds in (0.0, 8.0, 10.0, 3.0):
            asked.append(seconds)
            afford(seconds)

    monkeypatch.setattr(targets, "plan_targets", plan)
    monkeypatch.setattr(targets, "write_targets", write)
    settings = Settings.from_environment(workspace.root)
    made = distill._targets(workspace, PRESETS["tiny-ltx"], settings, spending, lambda *_: None)
    assert asked == [0.0, 8.0, 10.0]
    assert made.mode == "recompute" and "needs 10 s more, $10.00" in made.reason
    assert made.figures == {"a": 1.0}, "what was measured stays known"
