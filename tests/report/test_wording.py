"""What a run's headline, badge and tiles depend on; how they read stands in tests/golden/report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from turbo_vaed import gate
from turbo_vaed.config.stages import IDLE_STAGE, STAGES
from turbo_vaed.report import tables, wording
from turbo_vaed.report.context import Failure, ReportContext
from turbo_vaed.report.page import render
from turbo_vaed.roi.measured import DEMO_TEACHERS

Gather = Callable[..., ReportContext]


@pytest.fixture
def context(work: Path, gather: Gather) -> ReportContext:
    """Of a run that passed."""
    return gather(work)


def judged(context: ReportContext, checks: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The same with another verdict; `checks` are fields of named checks."""
    assert context.verdict is not None
    found = [{**c, **(checks or {}).get(c["name"], {})} for c in context.verdict["checks"]]
    return dataclasses.replace(context, verdict={**context.verdict, "checks": found, **changes})


def figures(text: str) -> list[str]:
    """The numbers of a sentence, in order."""
    return re.findall(r"\d[\d.,]*\d|\d", text)


def test_every_check_of_the_gate_has_a_name_for_people() -> None:
    assert set(wording.CHECK_LABELS) == set(gate.CHECK_NAMES)


@pytest.mark.parametrize(
    ("result", "checks", "counts"),
    [
        ("fails", {"ssim": {"result": "fails"}}, ["1", "13"]),
        ("inconclusive", {"ssim": {"result": "inconclusive"}}, ["1", "13"]),
        ("fails", {"ssim": {"result": "fails"}, "psnr": {"result": "fails"},
                   "fps": {"result": "inconclusive"}}, ["2", "13", "1"]),
    ],
)  # fmt: skip
def test_the_headline_counts_the_checks_that_did_not_pass(
    context: ReportContext, result: str, checks: dict[str, Any], counts: list[str]
) -> None:
    found = judged(context, checks, result=result)
    assert figures(wording.headline(found).partition(":")[0]) == counts
    assert wording.badge(found)[1] == {"fails": "bad", "inconclusive": "warn"}[result]
    results = [row["result"] for row in tables.checks(found)]
    assert results == sorted(results, key=["fails", "inconclusive", "passes"].index)


def test_only_a_pass_without_approval_and_with_a_customers_teacher_is_ready(
    context: ReportContext,
) -> None:
    assert context.latents is not None
    ready = "ready to ship"
    assert wording.headline(context).lower().startswith(ready)
    assert wording.badge(context)[1] == "good"
    approval = judged(context, needs_approval=True)
    assert wording.badge(approval)[1] == "warn"
    latents = {**context.latents, "teacher_sha256": DEMO_TEACHERS[0]}
    demo = dataclasses.replace(context, latents=latents)
    for other in (approval, demo, judged(context, result="fails")):
        assert not wording.headline(other).lower().startswith(ready)


def test_the_headline_has_the_run_and_the_runs_before_it(context: ReportContext) -> None:
    found = dataclasses.replace(context, customer_usd=Decimal("0.02"))
    assert figures(wording.headline(found))[-3:] == ["0.0133", "95.00", "0.02"]
    alone = dataclasses.replace(found, customer_usd=found.costs.usd)
    assert figures(wording.headline(alone))[-2:] == ["0.0133", "95.00"]


def test_a_busy_machine_is_named_at_the_top_of_an_inconclusive_report(
    context: ReportContext,
) -> None:
    assert context.verdict is not None and context.choice is not None
    checks = [c | {"result": "inconclusive"} if c["name"] == "fps" else c
              for c in context.verdict["checks"]]  # fmt: skip
    verdict = {**context.verdict, "result": "inconclusive", "checks": checks}
    chosen, *others = context.choice["candidates"]
    choice = {**context.choice, "chosen": chosen["name"],
              "candidates": [chosen | {"unreliable_reason": "busy"}, *others]}  # fmt: skip
    found = dataclasses.replace(context, verdict=verdict, choice=choice)
    assert "(busy)" in wording.repeat(found)
    assert wording.repeat(dataclasses.replace(found, verdict=context.verdict)) == ""


def test_a_run_that_somebody_stopped_has_not_failed(work: Path, gather: Gather) -> None:
    found = gather(work, failure=Failure(stage="distill", error="Ctrl-C", by_person=True))
    assert wording.badge(found) == ("Stopped at distill", "warn")
    assert "was stopped at distill" in wording.headline(found)


@pytest.mark.parametrize(("by_budget", "tone"), [(True, "warn"), (False, "bad")])
@pytest.mark.parametrize("stage", ["distill", "register"])
def test_a_run_that_ended_early_names_its_stage_and_is_not_a_success(
    work: Path, gather: Gather, stage: str, by_budget: bool, tone: str
) -> None:
    found = gather(work, failure=Failure(stage=stage, error="no price", by_budget=by_budget))
    text, its_tone = wording.badge(found)
    assert stage in text and its_tone == tone
    assert stage in wording.headline(found)
    assert figures(wording.headline(found))[:2] == ["0.0133", "95.00"]


def refused(context: ReportContext, **options: Any) -> ReportContext:
    """A run that ended before its first stage."""
    failure = Failure(stage="distill", error="no budget is left", is_begun=False, **options)
    return dataclasses.replace(context, failure=failure)


@pytest.mark.parametrize("by_budget", [True, False])
def test_a_run_that_did_not_start_has_no_budget_no_estimate_and_no_return(
    context: ReportContext, by_budget: bool
) -> None:
    costs = dataclasses.replace(context.costs, stages=(), usd=Decimal(0), wasted_usd=Decimal(0))
    found = dataclasses.replace(
        refused(context, by_budget=by_budget), costs=costs, no_roi="nothing was measured",
        estimate={"low_usd": "1", "likely_usd": "2", "high_usd": "3", "basis": "an older run's"},
    )  # fmt: skip
    assert wording.badge(found) == ("Not started", "warn" if by_budget else "bad")
    page = render(found)
    assert "<pre>no budget is left</pre>" in page
    for absent in ("$95.00", 'id="estimate"', 'id="roi"', "at distill", 'class="meter"'):
        assert absent not in page, absent


def test_a_run_that_did_not_resume_has_its_earlier_cost(context: ReportContext) -> None:
    found = refused(context, by_budget=True)
    assert wording.badge(found)[0] == "Not continued"
    assert figures(wording.headline(found)) == ["0.0133"]
    disk = [dataclasses.replace(row, node_seconds=Decimal(0)) for row in found.costs.stages]
    costs = dataclasses.replace(found.costs, stages=tuple(disk))  # of a fresh run, which holds it
    assert wording.badge(dataclasses.replace(found, costs=costs))[0] == "Not started"


def test_the_headline_has_the_figures_that_the_gate_judged(context: ReportContext) -> None:
    found = judged(context, {"psnr_retention": {"measured": 0.9512}})
    assert figures(wording.headline(found))[1] == "95.1"


def test_retention_is_the_packages_where_it_was_measured(context: ReportContext) -> None:
    """Quantised it is another one than the student's."""
    measured = {"psnr": {"measured": 30.53}, "psnr_retention": {"measured": 0.995}}
    found = judged(context, measured, target="executorch-xnnpack/int8")
    assert found.evaluation is not None
    found.evaluation["teacher"]["psnr"]["mean"] = 30.68
    found.evaluation["student"]["psnr"]["mean"] = 30.78
    found.evaluation["retention"]["psnr"] = 1.003
    assert "int8" in wording.headline(found) and "99.5" in figures(wording.headline(found))
    tile = tables.tiles(found)[0]
    assert (tile.value, figures(tile.caption), tile.tone) == ("99.5 %", ["30.53", "30.68"], "good")
    crashed = {check["name"]: {"measured": None, "result": "fails"}
               for check in found.verdict["checks"]}  # fmt: skip
    failure = Failure(stage="gate", error="it broke")
    for other in (dataclasses.replace(found, verdict=None), judged(found, crashed)):
        other = dataclasses.replace(other, failure=failure)
        tile = tables.tiles(other)[0]
        assert (tile.value, tile.tone) == ("100.3 %", "")
        assert figures(tile.caption) == ["30.78", "30.68"]
        assert "100.3" in figures(wording.headline(other))


def test_a_run_beyond_its_budget_has_the_excess(context: ReportContext) -> None:
    costs = dataclasses.replace(
        context.costs, budget_usd=Decimal("0.01"), budget_share=Decimal("1.3311"),
        over_usd=context.costs.usd - Decimal("0.01"),
    )  # fmt: skip
    over = dataclasses.replace(context, costs=costs)
    assert tables.cost(over)["left"] == "$0.00331"
    assert tables.cost(over)["left_name"] != tables.cost(context)["left_name"]
    assert tables.tiles(over)[-1].tone == "bad"
    budget = tables.budget(over)
    assert budget is not None and budget["tone"] == "warn"


def test_stages_without_a_charge_are_named(context: ReportContext) -> None:
    costs = dataclasses.replace(context.costs, stages=context.costs.stages[3:4])
    cost = tables.cost(dataclasses.replace(context, costs=costs))
    assert cost["reused"] == [name for name in STAGES if name != "distill"]
    nothing = dataclasses.replace(
        costs, stages=(), usd=Decimal(0), wasted_usd=Decimal(0), budget_share=Decimal(0)
    )
    page = render(dataclasses.replace(context, costs=nothing))
    assert page.count('<tr class="reused">') == len(STAGES)
    assert "$0.00 of the $95.00 budget" in page


def test_idle_nodes_are_called_idle(context: ReportContext) -> None:
    row = dataclasses.replace(context.costs.stages[0], stage=IDLE_STAGE)
    costs = dataclasses.replace(context.costs, stages=(row,))
    (found,) = tables.cost(dataclasses.replace(context, costs=costs))["rows"]
    assert found["stage"] == "idle"
