"""The return on investment as rows, as a document for programs, and as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from turbo_vaed.costs.money import plain, quantise_usd
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.formatting import amount
from turbo_vaed.report.tornado import range_with_unit, tornado
from turbo_vaed.report.wording import not_begun, return_on_investment
from turbo_vaed.roi.inputs import INPUTS, Input
from turbo_vaed.roi.measured import is_demo_teacher
from turbo_vaed.roi.roi import Result, Roi

_DECIMALS = Decimal("1e-6")
"""Of a computed figure, for programs."""
_HEADLINE = ("monthly_saving_usd", "payback_months", "break_even_minutes_per_month", "value_usd",
             "phone_realtime")  # fmt: skip
_LESS_IS_BETTER = ("payback_months", "break_even_minutes_per_month")


def _money(value: Decimal | None) -> str:
    return amount(value, "USD")


def figures(roi: Roi) -> list[dict[str, Any]]:
    """Every figure with kind and source: results, then what was measured, then what is assumed."""
    rows: list[Result | Input] = [*roi.results]
    for kind in ("measured", "assumed"):
        rows += [one for one in roi.inputs if one.kind == kind]
    return [_figure(row) for row in rows]


def _figure(row: Result | Input) -> dict[str, Any]:
    if isinstance(row, Result):
        label, unit, kind, source = row.label, row.unit, "computed", row.formula
    else:
        quantity = INPUTS[row.name]
        label, unit, kind, source = quantity.label, quantity.unit, row.kind, row.source
    ends = {"low": row.low, "likely": row.likely, "high": row.high}
    return {"name": row.name, "figure": label, **ends, "unit": unit, "kind": kind, "source": source}


def table(roi: Roi) -> list[dict[str, str]]:
    """`figures` as texts."""
    return [
        {
            key: amount(value, row["unit"]) if key in ("low", "likely", "high") else value
            for key, value in row.items()
        }
        for row in figures(roi)
    ]


def sensitivities(roi: Roi) -> list[dict[str, str]]:
    """A row per input: its range, the value at both ends, the swing; the largest first."""
    return [
        {
            "input": INPUTS[row.name].label,
            "range": range_with_unit(roi, row.name),
            "value_at_low": _money(row.at_low_usd),
            "value_at_high": _money(row.at_high_usd),
            "swing": _money(row.swing_usd),
        }
        for row in roi.sensitivities
    ]


def document(roi: Roi, customer: str) -> dict[str, Any]:
    """The whole calculation for programs: numbers as text, null for never."""

    def text(value: object) -> object:
        if not isinstance(value, Decimal):
            return value
        return plain(quantise_usd(value, _DECIMALS))

    return {
        "customer": customer,
        "sentence": return_on_investment(roi),
        "figures": [{key: text(value) for key, value in row.items()} for row in figures(roi)],
        "sensitivities": [
            {
                "name": row.name,
                "value_at_low_usd": text(row.at_low_usd),
                "value_at_high_usd": text(row.at_high_usd),
                "swing_usd": text(row.swing_usd),
            }
            for row in roi.sensitivities
        ],
    }


def _from_worst(row: Mapping[str, str]) -> dict[str, str]:
    """A row of the results with its worse end first, which for a payback is the high one."""
    low, high = row["low"], row["high"]
    worst, best = (high, low) if row["name"] in _LESS_IS_BETTER else (low, high)
    return {**row, "low": worst, "high": best}


def section(context: ReportContext) -> Mapping[str, Any] | None:
    """The page's section; None where nothing is assumed, and for a run that did not begin, which
    has measured nothing."""
    if context.roi is None:
        is_wanted = context.no_roi and not not_begun(context)
        return {"why_not": context.no_roi} if is_wanted else None
    rows = table(context.roi)
    passed = context.verdict is not None and context.verdict["result"] == "passes"
    return {
        "why_not": "",
        "sentence": return_on_investment(context.roi),
        "passed": passed,
        "is_demo": is_demo_teacher(context.latents),
        "headline": [_from_worst(row) for row in rows if row["name"] in _HEADLINE],
        "rest": [row for row in rows if row["name"] not in _HEADLINE],
        "tornado": tornado(context.roi),
    }
