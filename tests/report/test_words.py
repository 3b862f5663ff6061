"""Sentences and figures for people."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed import gate
from turbo_vaed.report import tables, words
from turbo_vaed.report.context import Failure, ReportContext
from turbo_vaed.report.page import render

Gather = Callable[..., ReportContext]


def judged(work: Path, target: Path, /, **changes: object) -> Path:
    shutil.copytree(work, target)
    path = target / "gate" / "verdict.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_every_check_of_the_gate_has_a_name_for_people() -> None:
    assert set(words.CHECK_LABELS) == set(gate.CHECK_NAMES)


def test_a_run_that_fails_says_how_many_checks_fail(
    work: Path, tmp_path: Path, gather: Gather
) -> None:
    checks = json.loads((work / "gate" / "verdict.json").read_text())["checks"]
    checks[3]["result"] = "fails"
    found = gather(judged(work, tmp_path / "a", result="fails", checks=checks))
    said = words.headline(found)
    assert said.startswith(
        "Not ready to ship, 1 of 13 checks fails: the student as packaged in fp32 keeps 9"
    )
    assert words.badge(found) == ("Fails the gate", "bad")
    assert _checks(found).index("✗ fails") < _checks(found).index("✓ passes")


def _checks(found: ReportContext) -> str:
    return render(found).split('id="checks"')[1]


def test_a_use_case_that_needs_approval_is_never_ready_by_itself(
    work: Path, tmp_path: Path, gather: Gather
) -> None:
    found = gather(judged(work, tmp_path / "a", needs_approval=True))
    assert words.headline(found).startswith("Ready for a person's approval: ")
    assert words.badge(found) == ("Passes, needs approval", "warn")


def test_a_run_that_found_most_of_it_done_names_what_the_rest_had_cost(
    work: Path, gather: Gather
) -> None:
    found = dataclasses.replace(gather(work), customer_usd=Decimal("0.02"))
    said = "for $0.0133 of the $95.00 budget, $0.02 with the runs before it."
    assert words.headline(found).endswith(said)
    alone = dataclasses.replace(found, customer_usd=found.costs.usd)
    assert words.headline(alone).endswith("for $0.0133 of the $95.00 budget.")


def test_a_run_that_the_budget_stopped(work: Path, gather: Gather) -> None:
    failure = Failure(stage="distill", error="price unknown", by_budget=True)
    found = gather(work, failure=failure)
    assert words.badge(found) == ("Stopped by budget at distill", "warn")
    assert words.headline(found) == (
        "The budget stopped the run at distill, with $0.0133 of the $95.00 budget spent."
    )


def refused(gather: Gather, work: Path, stage: str, **options: Any) -> ReportContext:
    """A run that ended before its first stage."""
    error = "no budget is left: budget.customer_month_usd of $1.00 in 2026-11; wait"
    failure = Failure(stage=stage, error=error, is_begun=False, **options)
    return gather(work, failure=failure)


def test_a_run_that_a_limit_did_not_let_start_is_no_run_that_stopped(
    work: Path, gather: Gather
) -> None:
    found = refused(gather, work, "validate", by_budget=True)
    nothing = dataclasses.replace(found.costs, stages=(), usd=Decimal(0), wasted_usd=Decimal(0))
    found = dataclasses.replace(
        found, costs=nothing, no_roi="nothing was measured",
        estimate={"low_usd": "1", "likely_usd": "2", "high_usd": "3", "basis": "an older run's"},
    )  # fmt: skip
    assert words.badge(found) == ("Not started", "warn")
    assert words.headline(found) == (
        "The run was not started: the limits on what may be spent do not allow it; "
        "nothing was spent."
    )
    page = render(found)
    assert "Why it was not started" in page and "No stage was run. The reason:" in page
    assert found.failure is not None and f"<pre>{found.failure.error}</pre>" in page
    for said in ("$95.00", "Left", "at validate", "it came to", 'id="roi"', "stopped"):
        assert said not in page, said
    other = dataclasses.replace(refused(gather, work, "validate"), costs=nothing)
    assert words.badge(other) == ("Not started", "bad")
    assert "something was wrong before its first stage" in words.headline(other)


def test_a_run_that_a_limit_did_not_let_go_on_says_what_it_had_cost(
    work: Path, gather: Gather
) -> None:
    found = refused(gather, work, "distill", by_budget=True)
    assert words.badge(found) == ("Not continued", "warn")
    assert words.headline(found).startswith("The run was not continued: the limits on what may")
    assert words.headline(found).endswith("; $0.0133 was charged to it before.")
    assert "No stage was run this time." in render(found)
    disk = [dataclasses.replace(row, node_seconds=Decimal(0)) for row in found.costs.stages]
    costs = dataclasses.replace(found.costs, stages=tuple(disk))  # of a fresh run, which holds it
    assert words.badge(dataclasses.replace(found, costs=costs)) == ("Not started", "warn")


def test_a_failure_after_the_gate_is_no_success(work: Path, gather: Gather) -> None:
    found = gather(work, failure=Failure(stage="register", error="MLflow did not answer"))
    assert words.badge(found) == ("Failed at register", "bad")
    assert words.headline(found).startswith("The run failed at register, after $0.0133")


def test_what_the_gate_judged_is_what_the_sentence_says(work: Path, gather: Gather) -> None:
    found = gather(work)
    assert found.verdict is not None
    checks = [dict(found.verdict["checks"][0], measured=0.9512), *found.verdict["checks"][1:]]
    changed = dataclasses.replace(found, verdict={**found.verdict, "checks": checks})
    assert "keeps 95.1 % of the teacher's PSNR at 23 %" in words.headline(changed)


def test_the_share_that_is_kept_stands_beside_the_figures_that_it_is_of(
    work: Path, tmp_path: Path, gather: Gather
) -> None:
    """The package's where it was measured: quantised it is another one than the student's."""
    checks = json.loads((work / "gate" / "verdict.json").read_text())["checks"]
    by_name = {check["name"]: check for check in checks}
    by_name["psnr"]["measured"], by_name["psnr_retention"]["measured"] = 30.53, 0.995
    changes: dict[str, Any] = {"checks": checks, "target": "executorch-xnnpack/int8"}
    found = gather(judged(work, tmp_path / "a", **changes))
    assert found.evaluation is not None
    found.evaluation["teacher"]["psnr"]["mean"] = 30.68
    found.evaluation["student"]["psnr"]["mean"] = 30.78
    found.evaluation["retention"]["psnr"] = 1.003
    said = "Ready to ship: the student as packaged in int8 keeps 99.5 % of the teacher's PSNR"
    assert words.headline(found).startswith(said)
    tile = tables.tiles(found)[0]
    assert (tile.value, tile.about, tile.tone) == (
        "99.5 %", "package 30.53 dB, teacher 30.68 dB", "good"
    )  # fmt: skip
    student = "student 30.78 dB, teacher 30.68 dB; no package was measured"
    failed = Failure(stage="gate", error="it broke")
    for changed in (None, {**found.verdict, "checks": _without_value(checks)}):
        other = dataclasses.replace(found, verdict=changed, failure=failed)
        tile = tables.tiles(other)[0]
        assert (tile.value, tile.about, tile.tone) == ("100.3 %", student, "")
        assert "; by then the student before packaging kept 100.3 % of" in words.headline(other)


def _without_value(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As of a package that crashed."""
    return [check | {"measured": None, "result": "fails"} for check in checks]


def test_a_run_beyond_its_budget_says_by_how_much(work: Path, gather: Gather) -> None:
    found = gather(work)
    costs = dataclasses.replace(
        found.costs, budget_usd=Decimal("0.01"), budget_share=Decimal("1.3311"),
        over_usd=found.costs.usd - Decimal("0.01"),
    )  # fmt: skip
    cost = tables.cost(dataclasses.replace(found, costs=costs))
    assert (cost["left_name"], cost["left"]) == ("Over the budget by", "$0.00331")
    assert tables.tiles(dataclasses.replace(found, costs=costs))[-1].tone == "bad"


def test_stages_without_a_charge_are_named(work: Path, gather: Gather) -> None:
    found = gather(work)
    costs = dataclasses.replace(found.costs, stages=found.costs.stages[3:4])
    cost = tables.cost(dataclasses.replace(found, costs=costs))
    nothing = dataclasses.replace(
        costs, stages=(), usd=Decimal(0), wasted_usd=Decimal(0), budget_share=Decimal(0)
    )
    page = render(dataclasses.replace(found, costs=nothing))
    assert page.count("no charge: its outputs were there already") == 7
    assert "for $0.00 of the $95.00 budget" in page
    assert cost["reused"] == ["validate", "clip", "encode", "evaluate", "export", "gate"]


@given(
    st.floats(1e-3, 5000), st.floats(1e-3, 5000), st.sampled_from(["share", "ratio", "dB", "MB"])
)
def test_a_figure_never_reads_as_its_limit_or_beyond_it(
    measured: float, limit: float, unit: str
) -> None:
    limit = float(f"{limit:.3g}")  # as a person would type it
    shown, asked = (float(text.split()[0]) for text in
                    words.measured_and_limit(measured, limit, unit))  # fmt: skip
    if abs(measured - limit) > 1e-9 * limit:
        assert (shown < asked) == (measured < limit) and shown != asked
    assert asked == pytest.approx(limit * (100 if unit == "share" else 1), rel=1e-9)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.percent(0.99123), "99.1 %"),
        (words.percent(0.0000139, 2), "< 0.01 %"),
        (words.percent(0.0), "0.0 %"),
        (words.percent(None), "unknown"),
        (words.percent(float("nan")), "unknown"),
        (words.seconds(8.44), "8.4 s"),
        (words.seconds(59.97), "1 min 00 s"),
        (words.seconds(200), "3 min 20 s"),
        (words.seconds(7500), "2 h 05 min"),
        (words.milliseconds(0.131), "131 ms"),
        (words.milliseconds(1.307), "1.31 s"),
        (words.milliseconds(12.34), "12.3 s"),
        (words.latency(0.0362, 0.0324, 0.0414), ("36.2 ms", "32.4 to 41.4 ms")),
        (words.latency(0.98, 0.9, 1.1), ("0.98 s", "0.90 to 1.10 s")),
        (words.size(4_310_220), "4.3 MB"),
        (words.size(20_123), "20.1 kB"),
        (words.decibel(None), "not measured"),
        (words.million(1_038_211), "1.04 M"),
        (words.measured_and_limit(None, 0.95, "share")[0], "not measured"),
        (words.measured_and_limit(0.949999, 0.95, "share")[0], "94.9999 %"),
        (words.measured_and_limit(312.0, 1500.0, "MB"), ("312 MB", "1500 MB")),
    ],
)
def test_figures(said: object, expected: object) -> None:
    assert said == expected
