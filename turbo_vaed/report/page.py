"""The context of a run -> one HTML page that holds everything inside itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turbo_vaed.report import (
    formatting,
    lineage,
    media,
    packages,
    pictures,
    roi,
    tables,
    wording,
)
from turbo_vaed.report.context import ReportContext, Shot
from turbo_vaed.report.curves import curves
from turbo_vaed.report.templating import environment, source
from turbo_vaed.runtime.files import write_text


def write_report(context: ReportContext, path: Path) -> Path:
    """Write the page to `path`, in full or not at all, and return it.

    Videos, pictures, styles and script are inside; a content security policy in the page keeps
    it from loading, or running, anything else. Every text is escaped.

    Raises:
        Fault: a clip could not be encoded.
    """
    return write_text(path, render(context))


def render(context: ReportContext) -> str:
    """The page as text."""
    from markupsafe import Markup

    found = environment()
    style = "\n".join(source(found, name) for name in ("style.css", "charts.css"))
    script = source(found, "script.js")
    digest = hashlib.sha256(script.encode()).digest()
    return found.get_template("report.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        script_sha256=Markup(base64.b64encode(digest).decode()),
        **_view(context),
    )


def _view(context: ReportContext) -> dict[str, Any]:
    text, tone = wording.badge(context)
    return {
        "customer": context.customer,
        "use_case": context.use_case,
        "run_id": context.run_id,
        "started": f"{context.started:%d %B %Y, %H:%M}",
        "finished": f"{context.finished:%H:%M %Z}".strip(),
        "badge": {"text": text, "tone": tone},
        "headline": wording.headline(context),
        "repeat": wording.repeat(context),
        "failure": context.failure,
        "not_begun": wording.not_begun(context),
        "registration": context.registration,
        "stopped_early": _stopped_early(context),
        "problems": context.problems,
        "budget": tables.budget(context),
        "tiles": tables.tiles(context),
        "shots": pictures.shots(context.shots),
        "panel_names": pictures.panel_names(context.shots),
        "shots_are_scored": context.evaluation is not None,
        "slowed": _slowed(context.shots),
        "error_map": None if context.worst is None else pictures.error_map(context.worst),
        "packages": packages.section(context.choice, context.measurement),
        "checks": tables.checks(context),
        "confidence": formatting.percent((context.verdict or {}).get("confidence"), 0),
        "needs_approval": bool((context.verdict or {}).get("needs_approval")),
        "quality": tables.quality(context),
        "device": wording.device_facts(context),
        "measurement_conditions": wording.measurement_conditions(context),
        "charts": curves(context),
        "training": tables.training(context),
        "cost": tables.cost(context),
        "roi": roi.section(context),
        "data": lineage.data(context),
        "lineage": lineage.rows(context),
    }


def _stopped_early(context: ReportContext) -> dict[str, Any] | None:
    if not context.stopped_early or context.history is None:
        return None
    history = context.history
    return {
        "done": formatting.count(history["steps_done"]),
        "planned": formatting.count(history["steps_planned"]),
    }


def _slowed(shots: Sequence[Shot]) -> int:
    short = [shot for shot in shots if media.is_slowed(shot.source)]
    return media.SLOW_FPS if short else 0
