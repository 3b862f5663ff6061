"""The picture of a simulated budget: how far it went, how much was spent, and what was missed."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_vaed.costs.simulate import Replay, mean_shortfall
from turbo_vaed.report.charts import Axis, Series, chart

STYLE = """
svg { font-family: system-ui, sans-serif; background: #fff; }
text { fill: #59636e; font-size: 12.5px; }
text.title { fill: #1f2328; font-size: 13px; } text.head { font-weight: 600; font-size: 15px; }
.grid { stroke: #d8dee4; } .axis, .tick { stroke: #59636e; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.goal { stroke: #1f2328; stroke-width: 1.2; stroke-dasharray: 5 4; }
.phone { stroke: #0969da; } .other { stroke: #bc4c00; }
.key.phone, .bar { fill: #0969da; stroke: none; } .key.other { fill: #bc4c00; stroke: none; }
"""
"""Of a standalone SVG; a page has its own."""
_CAUSES = {
    "saves": "saves while it trains",
    "interruptions": "interruptions without notice",
    "unquoted": "time that is not quoted yet",
    "clock": "the clock may be wrong",
    "restarts": "restarts that were of no use",
    "last_step": "too little for a further step",
}
_GOAL = 95
"""% of the forecast's steps."""
_BAR_LEFT, _BAR_WIDTH = 238, 170


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
    over = sum(r.over_usd > 0 for r in replays)
    median = shares[len(shares) // 2]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -70 500 568" width="750" height="852" '
        f'role="img" aria-label="{len(replays)} simulated runs">'
        f"<style>{STYLE}</style>"
        f'<text class="title head" x="20" y="-44">{len(replays):,} runs: {over} overspent, median '
        f"{median:.1f} % of the steps</text>"
        '<rect class="key phone" x="20" y="-22" width="16" height="4"/>'
        '<text x="42" y="-15">steps, of a perfect forecast\'s</text>'
        '<rect class="key other" x="236" y="-22" width="16" height="4"/>'
        '<text x="258" y="-15">spent, of the budget</text>'
        '<line class="goal" x1="400" x2="424" y1="-20" y2="-20"/>'
        f'<text x="430" y="-15">{_GOAL} %</text>'
        f"{_ranks(replays, shares)}{_bars(mean_shortfall(reachable), len(reachable))}</svg>\n"
    )


def _ranks(replays: Sequence[Replay], shares: list[float]) -> str:
    spent = sorted(100 * r.spent_usd / r.budget_usd for r in replays)
    low = min(shares[len(shares) // 200], _GOAL)  # one outlier would squeeze all others

    def ranked(values: list[float], name: str, tone: str) -> Series:
        last = max(1, len(values) - 1)
        kept = [(100 * i / last, v) for i, v in enumerate(values) if v >= low]
        return Series(name=name, x=[a for a, _ in kept], y=[b for _, b in kept], tone=tone)

    drawing = chart(
        title="Budgets on random markets",
        description="Steps and spending of simulated runs, from the lowest to the highest.",
        x=Axis(label="runs, from the lowest", unit="%"),
        y=Axis(label="share", unit="%"),
        series=[
            Series(name="goal", x=[0, 100], y=[_GOAL, _GOAL], tone="goal"),
            ranked(shares, "steps of a perfect forecast's", "phone"),
            ranked(spent, "spent of the budget", "other"),
        ],
    )
    return drawing[drawing.index(">") + 1 : drawing.rindex("</svg>")]


def _bars(shortfall: dict[str, float], runs: int) -> str:
    """The mean shares of the forecast's steps that each cause took, the largest first."""
    parts = [
        '<text class="title head" x="20" y="338">'
        f"On average {100 * sum(shortfall.values()):.1f} % of the steps are missing</text>"
        f'<text x="20" y="356">by cause, of {runs:,} runs whose goal could be reached</text>'
    ]
    most = max(*shortfall.values(), 1e-9)
    ordered = sorted(shortfall.items(), key=lambda cause: -cause[1])
    for row, (cause, share) in enumerate(ordered):
        y, width = 372 + 20 * row, max(0.0, share) / most * _BAR_WIDTH
        parts.append(
            f'<text x="{_BAR_LEFT - 10}" y="{y + 11}" text-anchor="end">{_CAUSES[cause]}</text>'
            f'<rect class="bar" x="{_BAR_LEFT}" y="{y}" width="{width:.1f}" height="13" rx="2"/>'
            f'<text x="{_BAR_LEFT + width + 8:.1f}" y="{y + 11}">{100 * share:.2f} %</text>'
        )
    return "".join(parts)
