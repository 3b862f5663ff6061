"""The text of run pages as it should be, in tests/golden/report: wording is tested there alone.

`make golden` writes the files again. A whole page stands there for a run that passed and for one
that did not; of other outcomes what stands above the sections.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests import configs
from tests.report.work_folder import gather, make_work
from turbo_vaed.config import load
from turbo_vaed.report.context import Failure, Registration, ReportContext
from turbo_vaed.report.page import render
from turbo_vaed.roi.inputs import Input
from turbo_vaed.roi.measured import DEMO_TEACHERS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "report"
_BLOCKS = ("p", "h1", "h2", "h3", "li", "tr", "div", "dd", "pre", "figcaption", "header", "span",
           "a", "b", "section")  # fmt: skip


class _Text(HTMLParser):
    """What a reader sees, a line per block."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.parts, self.hidden = [""], [], 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        label = dict(attrs).get("aria-label")
        if tag == "svg" and label:
            self.lines.append(f"[chart: {label}]")
        self.hidden += tag in ("style", "script", "svg", "title", "button")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script", "svg", "title", "button")
        if tag in ("td", "th"):
            self.parts.append(" | ")
        if tag == "dt":
            self.parts.append(": ")
        if tag in _BLOCKS:
            self.lines.append(" ".join("".join(self.parts).split()).strip(" |"))
            self.parts = []

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def page_text(page: str) -> str:
    """The text of a page; charts by their labels."""
    found = _Text()
    found.feed(page)
    return "\n".join(line for line in found.lines if line) + "\n"


def head(page: str) -> str:
    """A page up to its tiles."""
    return page_text(page.partition('<div class="tiles">')[0])


def outcomes(scratch: Path) -> Iterator[tuple[str, ReportContext]]:
    """A run that passed, and every other way in which a run ends, by name."""
    known: dict[str, Any] = {
        "assumptions": load.load(configs.FOLDER, "demo").roi,
        "cost_of_poc": Input.exact("poc_usd", Decimal(1), "ledger"),
        "registration": Registration(name="turbo-vaed-demo", version=3, alias="champion"),
    }
    work = make_work(
        scratch / "demo",
        warnings=[{"step": 120, "kind": "flicker", "text": "the error changes by 3.1 of 255"}],
        restarts=[{"step": 47, "lost_steps": 7, "seconds": 72.3, "usd": "0.0016",
                   "reason": "worker lost"}],
    )  # fmt: skip
    passed = gather(work, **known)
    assert passed.verdict is not None and passed.latents is not None
    # The gate's own wording is not tested here.
    for check in passed.verdict["checks"]:
        check |= {"reason": "the reason of the gate", "rationale": "the rationale of the policy"}
    estimate = {"low_usd": "0.008", "likely_usd": "0.012", "high_usd": "0.03",
                "basis": "from the pace of an earlier run"}  # fmt: skip
    yield "passed", replace(passed, estimate=estimate)
    for name, results in (("fails", {"ssim": "fails", "fps": "inconclusive"}),
                          ("inconclusive", {"fps": "inconclusive"})):  # fmt: skip
        checks = [{**c, "result": results.get(c["name"], c["result"])}
                  for c in passed.verdict["checks"]]  # fmt: skip
        candidate = replace(known["registration"], alias="candidate", reasons=["it did not pass"])
        yield name, replace(
            passed, registration=candidate, verdict={**passed.verdict, "result": name,
                                                     "checks": checks},
        )  # fmt: skip
    yield "needs approval", replace(passed, verdict={**passed.verdict, "needs_approval": True})
    demo = {**passed.latents, "teacher_sha256": DEMO_TEACHERS[0]}
    yield "passed, with the demo's teacher", replace(passed, latents=demo)
    yield "no verdict", replace(passed, verdict=None)
    error = Failure(stage="evaluate", error="the student puts out NaN")
    yield "failed", gather(work, failure=error)
    yield "failed after the gate", gather(work, failure=replace(error, stage="register"))
    stopped = Failure(stage="distill", error="too little is left", by_budget=True)
    yield "stopped by the budget", gather(work, failure=stopped)
    refused = gather(work, failure=replace(stopped, is_begun=False))
    yield "not continued", refused
    nothing = replace(refused.costs, stages=(), usd=Decimal(0), wasted_usd=Decimal(0))
    yield "not started", replace(refused, costs=nothing)
    broken = gather(work, failure=replace(error, is_begun=False))
    yield "not started, for an error", replace(broken, costs=nothing)
    yield "stopped early", gather(make_work(scratch / "early", stopped="budget"))


def documents(scratch: Path) -> dict[str, str]:
    """File name -> text."""
    found, heads = {}, []
    for name, context in outcomes(scratch):
        if name in ("passed", "fails"):
            found[f"{name}.txt"] = page_text(render(context))
        else:  # its clips take long and stand below its head
            heads.append(f"== {name}\n{head(render(replace(context, shots=(), worst=None)))}")
    return {**found, "heads.txt": "\n".join(heads)}


def main() -> None:
    """Write the golden files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in documents(Path(scratch)).items():
            (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
