"""The return on investment of a run: its sentence, its rows, its section, its command."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import configs
from tests.roi import made_up
from tests.roi.made_up import COST, ROOT
from turbo_vaed import cli
from turbo_vaed.config.schema import RoiParams
from turbo_vaed.costs import Ledger
from turbo_vaed.report.context import Failure, ReportContext
from turbo_vaed.report.formatting import amount
from turbo_vaed.report.page import render
from turbo_vaed.report.roi import document, figures
from turbo_vaed.report.wording import return_on_investment
from turbo_vaed.roi.inputs import INPUTS, Input
from turbo_vaed.roi.measured import DEMO_TEACHERS, roi_of_run
from turbo_vaed.roi.roi import calculate


@pytest.fixture(scope="module")
def assumptions() -> RoiParams:
    return made_up.shipped_assumptions()


def figures_of(sentence: str) -> list[str]:
    """Its numbers, in order."""
    return re.findall(r"-?\$?\d[\d,.]*\d|-?\$?\d", sentence)


def test_the_sentence_has_saving_payback_value_and_the_input_that_matters_most(
    assumptions: RoiParams,
) -> None:
    roi = made_up.of_bench("hunyuan", assumptions)
    found, saving = return_on_investment(roi), roi.result("monthly_saving_usd")
    assert figures_of(found) == [
        amount(roi.likely.monthly_saving_usd, "USD"), amount(saving.low, "USD"),
        amount(saving.high, "USD"), amount(roi.likely.payback_months),
        amount(roi.likely.value_usd, "USD"), "36", "10,000", "1,000,000",
        amount(roi.likely.phone_realtime),
    ]  # fmt: skip
    assert INPUTS[roi.sensitivities[0].name].label in found


def test_only_a_phone_that_is_too_slow_is_mentioned(assumptions: RoiParams) -> None:
    roi = made_up.of_bench("ltx", assumptions)
    assert roi.likely.phone_realtime >= 1
    assert amount(roi.likely.phone_realtime) not in figures_of(return_on_investment(roi))
    measured = Input.exact("phone_speedup", Decimal(1), "a phone", is_measured=True)
    slow = calculate([*(one for one in roi.inputs if one.name != measured.name), measured])
    assert figures_of(return_on_investment(slow))[-1] == amount(slow.likely.phone_realtime)


def test_a_return_that_never_comes_has_no_payback_and_no_value(assumptions: RoiParams) -> None:
    roi = made_up.of_bench("ltx", assumptions)
    never = made_up.exactly(roi, gpu_usd_per_hour="0")
    assert never.likely.payback_months is None
    case = never.likely
    assert figures_of(return_on_investment(never))[:3] == [
        amount(value, "USD") for value in (-case.monthly_saving_usd, case.gpu_usd_per_minute,
                                           case.egress_usd_per_minute)
    ]  # fmt: skip
    assert INPUTS[roi.sensitivities[0].name].label not in return_on_investment(never)


def test_every_figure_has_a_kind_a_unit_and_a_source(assumptions: RoiParams) -> None:
    documents = made_up.documents()
    documents["measurement"] |= {"device_kind": "adb", "device": "theirs"}
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    rows = figures(roi)
    kinds = {row["name"]: row["kind"] for row in rows}
    assert set(INPUTS) < set(kinds) and len(rows) == len(kinds)
    assert all(kinds[one.name] == one.kind for one in roi.inputs)
    assert kinds["phone_speedup"] == "measured"
    assert {kind for name, kind in kinds.items() if name not in INPUTS} == {"computed"}
    assert list(kinds.values()) == sorted(
        kinds.values(), key=["computed", "measured", "assumed"].index
    )
    assert all(row["source"] and row["unit"] for row in rows)


def test_the_worked_example_of_the_docs_is_what_is_calculated(assumptions: RoiParams) -> None:
    text = " ".join((ROOT / "docs/roi.md").read_text().replace("\n> ", "\n").split())
    roi = made_up.of_bench("ltx", assumptions)
    assert return_on_investment(roi) in text
    assert return_on_investment(made_up.of_bench("hunyuan", assumptions)) in text
    case = roi.likely
    assert case.payback_months is not None and case.break_even_minutes_per_month is not None
    for printed in (
        f"{case.teacher_seconds_per_minute:,.0f} CPU-thread seconds",
        f"{case.scale:.3f}",
        f"{case.gpu_seconds_per_minute:.1f} GPU seconds",
        f"${case.gpu_usd_per_minute:.5f}",
        f"{case.latent_mb_per_minute:.1f} MB",
        f"${case.egress_usd_per_minute:.5f}",
        f"${case.downloads_usd_per_month:.2f}",
        f"${case.monthly_saving_usd:,.2f}",
        f"{case.payback_months:.1f} months",
        f"{case.break_even_minutes_per_month:,.0f} minutes",
        f"-${-case.value_usd:,.0f}",
        f"{case.phone_realtime:.2f} times",
    ):
        assert printed in text, printed


def test_programs_get_numbers_as_text_and_null_for_never(assumptions: RoiParams) -> None:
    roi = made_up.of_bench("ltx", assumptions)
    found = json.loads(json.dumps(document(roi, "acme")))
    assert (found["customer"], found["sentence"]) == ("acme", return_on_investment(roi))
    rows = {row["name"]: row for row in found["figures"]}
    assert rows["gpu_usd_per_hour"]["likely"] == "2"
    assert rows["payback_months"]["high"] is None
    assert abs(Decimal(rows["value_usd"]["likely"]) - roi.likely.value_usd) < Decimal("1e-5")
    assert [row["name"] for row in found["sensitivities"]] == [r.name for r in roi.sensitivities]


Gather = Callable[..., ReportContext]


def section(page: str) -> str:
    found = re.search(r'<section class="card" id="roi">.*?</section>', page, re.S)
    return found[0] if found else ""


def test_the_page_shows_the_sentence_the_kinds_and_the_tornado(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.roi is not None
    page = render(context)
    html = section(page)
    assert return_on_investment(context.roi) in html
    assert 'id="roi-not-passed"' not in html
    counts = {kind: html.count(f">{kind}</span>") for kind in ("measured", "assumed", "computed")}
    assert counts == {"measured": 6, "assumed": 13, "computed": 8}
    assert 'class="chart tornado"' in html and '<a href="#roi">' in page
    assert section(render(gather(work))) == ""


def test_measured_inputs_are_not_marked_as_assumed(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    path = work / "gate/measurement.json"
    changes = {"device": "pixel", "device_kind": "adb", "teacher_gpu": "NVIDIA L4",
               "teacher_gpu_latency_seconds": [0.002]}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    html = section(render(gather(work, assumptions=assumptions, cost_of_poc=COST)))
    counts = {kind: html.count(f">{kind}</span>") for kind in ("measured", "assumed", "computed")}
    assert counts == {"measured": 8, "assumed": 11, "computed": 8}


def test_the_results_are_ordered_from_worst_to_best(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    """Of payback and break-even the low end is the good one, of saving and value the high one."""
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.roi is not None
    results, rest = section(render(context)).split("<details>")
    assert re.findall(r'class="num">(\w+)</th>', results) == ["Worst", "Likely", "Best"]
    assert re.findall(r'class="num">(\w+)</th>', rest) == ["Low", "Likely", "High"]
    rows = dict(re.findall(r"<tr><td>([^<]+)</td>(.*?)</tr>", results))
    ends = {label: re.findall(r'class="num">([^<]+)</td>', row) for label, row in rows.items()}
    assert len(ends) == 5
    for result in context.roi.results:
        if result.label in ends:
            by_size = [amount(x, result.unit) for x in (result.low, result.likely, result.high)]
            is_less_better = result.label in ("Payback", "Break-even volume")
            assert ends[result.label] == (by_size[::-1] if is_less_better else by_size)
    assert ends["Payback"][0] == "never"


def test_the_return_of_a_demo_teacher_is_marked(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.latents is not None and 'id="roi-demo"' not in section(render(context))
    latents = {**context.latents, "teacher_sha256": DEMO_TEACHERS[0]}
    assert 'id="roi-demo"' in section(render(replace(context, latents=latents)))


def test_a_package_that_fails_the_gate_returns_nothing_yet(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.verdict is not None
    failed = replace(context, verdict={**context.verdict, "result": "fails"})
    assert 'id="roi-not-passed"' in section(render(failed))


@pytest.mark.parametrize("stage", ["validate", "distill", "gate"])
def test_a_run_that_stopped_early_has_the_reason_for_no_return(
    work: Path, gather: Gather, assumptions: RoiParams, stage: str
) -> None:
    failure = Failure(stage=stage, error="it broke")
    context = gather(work, failure=failure, assumptions=assumptions, cost_of_poc=COST)
    assert context.roi is None
    html = section(render(context))
    assert 'id="roi-unknown"' in html and "gate/measurement.json" in html
    assert ("clip/clips.json" in html) == (stage == "validate")
    assert "$" not in html and "<table" not in html


def test_the_command_prints_the_return_in_every_form(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs.copy_to(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    monkeypatch.setenv("TURBO_VAED_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["turbo-vaed", "cost", "roi", *arguments])
        code = cli.main()
        return (code, *capsys.readouterr())

    code, _, err = call("demo")
    assert code == 2 and "gate/measurement.json" in err and "ledger" in err
    assert call("nobody")[0] == 2

    shutil.copytree(work, tmp_path / "work/demo")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(made_up.charge("a", "demo", "0.50"))
    picture = tmp_path / "tornado.svg"
    code, out, err = call("demo", "--format", "json", "--chart", str(picture))
    assert code == 0, err
    found = json.loads(out)
    rows = {row["name"]: row for row in found["figures"]}
    assert rows["poc_usd"]["likely"] == "0.5"
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
    code, out, _ = call("demo")
    assert code == 0
    assert out.splitlines()[0] == found["sentence"]
    for one in INPUTS.values():
        assert out.count(one.label) >= 2  # its source, and what it does to the value
    (tmp_path / "work/demo/gate/measurement.json").write_text('{"dev')
    code, _, err = call("demo")
    assert code == 3 and "measurement.json" in err
