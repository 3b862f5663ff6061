"""The picture of simulated budgets: how far each run went, what it spent, and what was missed."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_vaed.costs.simulate import Replay, mean_shortfall
from turbo_vaed.report.charts import (
    Axis,
    Bar,
    Series,
    bar_chart,
    legend,
    line_chart,
    standalone,
)

_CAUSES = {
    "saves": "checkpoints while training",
    "interruptions": "interruptions without notice",
    "unquoted": "time without a price quote",
    "clock": "a margin for a wrong clock",
    "restarts": "restarts that did not help",
    "last_step": "too little for another step",
}
_GOAL = 95
"""% of the forecast's steps."""


def simulation_svg(replays: Sequence[Replay]) -> str:
    """A standalone SVG: traces from worst to best, by steps and by spending; below, what the steps
    that are missing went into.

    Raises:
        ValueError: no trace could have reached its goal.
    """
    reachable = [r for r in replays if r.was_reachable]
    if not reachable:
        raise ValueError("no trace could have reached its goal; simulate more of them")
    shares = sorted(100 * r.share_of_oracle for r in reachable)
    spent = sorted(100 * r.spent_usd / r.budget_usd for r in replays)
    low = min(shares[len(shares) // 200], _GOAL)  # one outlier would squeeze all others

    def ranked(values: list[float], name: str, tone: str) -> Series:
        last = max(1, len(values) - 1)
        drawn = [(100 * i / last, v) for i, v in enumerate(values) if v >= low]
        return Series(name=name, x=[a for a, _ in drawn], y=[b for _, b in drawn], tone=tone)

    series = [
        Series(name=f"{_GOAL} %", x=[0, 100], y=[_GOAL, _GOAL], tone="required"),
        ranked(shares, "steps, of a perfect forecast's", "phone"),
        ranked(spent, "spending, of the budget", "teacher"),
    ]
    ranks = line_chart(
        title="Budgets on random markets",
        description="Steps and spending of simulated runs, from the lowest to the highest.",
        x=Axis(label="runs, from the lowest", unit="%"),
        y=Axis(label="share", unit="%"),
        series=series,
    )
    shortfall = mean_shortfall(reachable)
    causes = bar_chart(
        title="Missing steps by cause",
        description=f"The mean over {len(reachable):,} runs.",
        bars=[
            Bar(label=_CAUSES[cause], value=share, text=f"{100 * share:.2f} %")
            for cause, share in sorted(shortfall.items(), key=lambda one: -one[1])
        ],
        label_width=212,
    )
    assert ranks is not None and causes is not None, "both have values"
    over = sum(r.over_usd > 0 for r in replays)
    key = legend(0, 0, [(one.tone, one.name) for one in series[1:] + series[:1]])
    return standalone([
        (f"{len(replays):,} runs: {over} overspent, median "
         f"{shares[len(shares) // 2]:.1f} % of the steps", key, ranks),
        (f"On average {100 * sum(shortfall.values()):.1f} % of the steps are missing, by cause",
         "", causes),
    ])  # fmt: skip
