"""The picture of a simulated budget: how much of it was spent, and how far that went."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_vaed.costs.simulate import Replay
from turbo_vaed.report.charts import Axis, Series, chart

STYLE = """
svg { font-family: system-ui, sans-serif; background: #fff; }
text { fill: #59636e; font-size: 12.5px; } text.title { fill: #1f2328; font-size: 13px; }
.grid { stroke: #d8dee4; } .axis, .tick { stroke: #59636e; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.phone { stroke: #0969da; } .other { stroke: #bc4c00; }
.key.phone { fill: #0969da; stroke: none; } .key.other { fill: #bc4c00; stroke: none; }
"""
"""Of a standalone SVG; a page has its own."""


def simulation_svg(replays: Sequence[Replay]) -> str:
    """A standalone SVG: traces from worst to best, by steps and by spending.

    Raises:
        ValueError: no trace could have reached its goal.
    """
    shares = sorted(100 * r.share_of_oracle for r in replays if r.was_reachable)
    spent = sorted(100 * r.spent_usd / r.budget_usd for r in replays)
    if not shares:
        raise ValueError("no trace could have reached its goal; simulate more of them")
    low = shares[len(shares) // 100]  # one outlier would squeeze all others

    def ranked(values: list[float], name: str, tone: str) -> Series:
        last = max(1, len(values) - 1)
        kept = [(100 * i / last, v) for i, v in enumerate(values) if v >= low]
        return Series(name=name, x=[a for a, _ in kept], y=[b for _, b in kept], tone=tone)

    drawing = chart(
        title="Budgets on random markets",
        description="Steps and spending of simulated runs, from the lowest to the highest.",
        x=Axis(label="traces, from the lowest", unit="%"),
        y=Axis(label="share", unit="%"),
        series=[
            ranked(shares, "steps of a perfect forecast's", "phone"),
            ranked(spent, "spent of the budget", "other"),
        ],
    )
    over = sum(r.over_usd > 0 for r in replays)
    inner = drawing[drawing.index(">") + 1 : drawing.rindex("</svg>")]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -58 480 362" width="720" height="543">'
        f"<style>{STYLE}</style>"
        f'<text class="title" x="66" y="-38">{len(replays):,} runs: {over} overspent, median '
        f"{shares[len(shares) // 2]:.1f} % of the steps</text>"
        '<rect class="key phone" x="66" y="-20" width="16" height="4"/>'
        '<text x="88" y="-13">steps, of a perfect forecast\'s</text>'
        '<rect class="key other" x="280" y="-20" width="16" height="4"/>'
        '<text x="302" y="-13">spent, of the budget</text>'
        f"{inner}</svg>\n"
    )
