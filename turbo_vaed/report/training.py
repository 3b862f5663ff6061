"""How the student was trained: losses, targets, restarts, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from turbo_vaed.costs.money import format_usd
from turbo_vaed.report import words
from turbo_vaed.report.context import ReportContext

END_NAMES = {
    "finished": "all steps done",
    "good enough": "stopped, good enough",
    "budget": "stopped by the budget",
}
"""How training ended, for people."""
MOST_LISTED = 20
"""Warnings and restarts; of more, the first so many are shown."""


def training(context: ReportContext) -> dict[str, Any] | None:
    """The facts, and what went wrong; None where distillation was not reached."""
    history = context.history
    if history is None:
        return None
    price = history["usd_per_tenth_db"]
    facts = [
        ("Losses and weights", ", ".join(f"{k} {v:g}" for k, v in history["recipe"].items())),
        ("Teacher's targets", f"{history['targets']['mode']}: {history['targets']['reason']}"),
        ("The last 0.1 dB", "brought nothing" if price is None else _usd(price)),
        ("Interruptions", _interruptions(history["restarts"])),
        ("End", ended(history)),
    ]
    return {
        "lead": (
            f"{words.count(history['steps_done'])} of {words.count(history['steps_planned'])} "
            f"steps on {words.counted(history['workers'], 'worker')} in {history['precision']}, "
            f"{history['start']} start; the weights of step {history['best_step']} were kept."
        ),
        "facts": facts,
        "warnings": _listed(
            [f"Step {w['step']}, {w['kind']}: {w['text']}" for w in history["warnings"]]
        ),
        "restarts": _listed([_restart(restart) for restart in history["restarts"]]),
    }


def ended(history: Mapping[str, Any]) -> str:
    """Why training ended where it did, in a sentence."""
    planned = words.count(history["steps_planned"])
    if history["stopped"] == "finished":
        return f"All {planned} planned steps were done."
    how = END_NAMES.get(history["stopped"], history["stopped"])
    reason = (history.get("reason") or "the reason is not known").rstrip(".")
    done = f"after {words.count(history['steps_done'])} of {planned} planned steps"
    return f"{how[:1].upper()}{how[1:]}, {done}: {reason}."


def _interruptions(restarts: Sequence[Mapping[str, Any]]) -> str:
    if not restarts:
        return "none"
    usd = sum((Decimal(restart["usd"]) for restart in restarts), Decimal(0))
    return (
        f"{len(restarts)}: {words.count(sum(restart['lost_steps'] for restart in restarts))} steps "
        f"computed again, {words.seconds(sum(restart['seconds'] for restart in restarts))} and "
        f"{format_usd(usd)} wasted"
    )


def _restart(restart: Mapping[str, Any]) -> str:
    return (
        f"Step {restart['step']}, {restart['reason']}: {restart['lost_steps']} steps computed "
        f"again, {words.seconds(restart['seconds'])} and {_usd(restart['usd'])} wasted"
    )


def _listed(texts: Sequence[str]) -> list[str]:
    left_out = len(texts) - MOST_LISTED
    return [*texts[:MOST_LISTED], *([f"{left_out} more are in history.json"] * (left_out > 0))]


def _usd(text: str) -> str:
    return format_usd(Decimal(text))
