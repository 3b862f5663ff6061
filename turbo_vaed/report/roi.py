"""The return on investment for people: the sentence, the rows, the page's section."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from turbo_vaed.costs.money import plain, quantise_usd
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.tornado import spread_of, tornado
from turbo_vaed.report.words import NEVER, amount, not_begun
from turbo_vaed.roi.inputs import INPUTS, Input
from turbo_vaed.roi.measured import is_demo_teacher
from turbo_vaed.roi.roi import Result, Roi

_KEPT = Decimal("1e-6")
"""Decimals of a computed figure that programs get."""
_HEADLINE = ("monthly_saving_usd", "payback_months", "break_even_minutes_per_month", "value_usd",
             "phone_realtime")  # fmt: skip
_LESS_IS_BETTER = ("payback_months", "break_even_minutes_per_month")
"""Of those; of the others more is."""


def sentence(roi: Roi) -> str:
    """What it saves per month, when it pays back, and what it hinges on most."""
    likely, saving = roi.likely, roi.result("monthly_saving_usd")
    horizon = f"{amount(likely.horizon_months)} months"
    spread = f"({_money(saving.low)} to {_money(saving.high)})"
    if likely.payback_months is None:
        start = (
            "Saves nothing and never pays back: a minute spares "
            f"{_money(likely.gpu_usd_per_minute)} of GPU and adds "
            f"{_money(likely.egress_usd_per_minute)} of egress, "
            f"{_money(-likely.monthly_saving_usd)} more a month than today {spread[:-1]} saved)"
        )
    elif likely.value_usd < 0:
        start = (
            f"Saves {_money(likely.monthly_saving_usd)} a month {spread} and pays back in "
            f"{months(likely.payback_months)}, after the horizon of {horizon}"
        )
    else:
        start = (
            f"Saves {_money(likely.monthly_saving_usd)} a month {spread}, pays back in "
            f"{months(likely.payback_months)} and is worth {_money(likely.value_usd)} after "
            f"{horizon}"
        )
    most = roi.sensitivities[0]
    if most.swing_usd == 0:
        return f"{start}; no input has a range that moves it.{_too_slow(roi)}"
    hinge = f"it hinges most on “{INPUTS[most.name].label}”, {spread_of(roi, most.name)}"
    return f"{start}; {hinge}.{_too_slow(roi)}"


def _too_slow(roi: Roi) -> str:
    """A second sentence where a phone cannot show the video while it decodes it."""
    speed = roi.likely.phone_realtime
    if speed >= 1:
        return ""
    is_measured = roi.input("phone_speedup").kind == "measured"
    phone = "the phone that was measured" if is_measured else "a phone as assumed"
    return (
        f" But {phone} decodes at {amount(speed)} of real time: that is for video "
        "that is decoded ahead, or needs a smaller frame or student."
    )


def months(value: Decimal | None) -> str:
    """A number of months for people."""
    return NEVER if value is None else f"{amount(value)} months"


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
            "range": spread_of(roi, row.name),
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
        return plain(quantise_usd(value, _KEPT))

    return {
        "customer": customer,
        "sentence": sentence(roi),
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
    """A row of the results with its bad end first: a payback's is its high one."""
    low, high = row["low"], row["high"]
    worst, best = (high, low) if row["name"] in _LESS_IS_BETTER else (low, high)
    return {**row, "low": worst, "high": best}


def section(context: ReportContext) -> Mapping[str, Any] | None:
    """What the page shows; None where nobody asked for it."""
    if context.roi is None:
        # One that was not begun has measured nothing; the last run's own page has its return.
        is_told = context.no_roi and not not_begun(context)
        return {"why_not": context.no_roi} if is_told else None
    rows = table(context.roi)
    passed = context.verdict is not None and context.verdict["result"] == "passes"
    return {
        "why_not": "",
        "sentence": sentence(context.roi),
        "passed": passed,
        "is_demo": is_demo_teacher(context.latents),
        "headline": [_from_worst(row) for row in rows if row["name"] in _HEADLINE],
        "rest": [row for row in rows if row["name"] not in _HEADLINE],
        "tornado": tornado(context.roi),
    }
