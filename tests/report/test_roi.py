"""The return on investment of a run: what is read, what is said, what is drawn."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests import configs
from turbo_vaed import cli
from turbo_vaed.config import load
from turbo_vaed.config.schema import RoiParams
from turbo_vaed.costs import Charge, Ledger
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.report.context import Failure, ReportContext
from turbo_vaed.report.page import render
from turbo_vaed.report.roi import document, figures, sensitivities, sentence
from turbo_vaed.report.tornado import short_usd, tornado, tornado_svg
from turbo_vaed.report.words import amount, headline
from turbo_vaed.roi.inputs import INPUTS, Input
from turbo_vaed.roi.measured import DEMO_TEACHERS, cost_of_poc, read_roi, roi_of_run
from turbo_vaed.roi.roi import Roi, calculate

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
COST = Input.exact("poc_usd", Decimal("1.25"), "ledger: 1 run")
Documents = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def assumptions() -> RoiParams:
    return load.load(configs.FOLDER, "demo").roi


@pytest.fixture
def documents(work: Path) -> Documents:
    """The three that a run leaves, to be changed at will."""
    names = {
        "clips": "clip/clips.json",
        "package": "gate/package/package.json",
        "measurement": "gate/measurement.json",
    }
    return {key: json.loads((work / name).read_text()) for key, name in names.items()}


LATENTS = {"ltx": (128, 3, 32, 41_900_000), "hunyuan": (16, 5, 8, 40_690_000)}
"""Channels, frames of 17, compression in space; weights of the published student."""


def of_bench(name: str, assumptions: RoiParams) -> Roi:
    """The examples of docs/roi.md: the recorded benchmark's seconds, the shipped assumptions."""
    bench = json.loads((ROOT / "bench/results/decode.json").read_text())
    seconds, frames, side = (bench[name][key] for key in ("seconds", "frames", "side"))
    channels, times, compression, weights = LATENTS[name]
    return roi_of_run(
        clips={"clips": [{"fps": 25.0}]},
        package={
            "sha256": "a",
            "size_bytes": 4 * weights,
            "io": {
                "latent_shape": [1, channels, times, *[side // compression] * 2],
                "video_shape": [1, 3, frames, side, side],
            },
        },
        measurement={
            "package_sha256": "a",
            "device": "host",
            "machine": bench["cpu"],
            "threads": bench["threads"],
            "latency_seconds": [seconds["fp32"]],
            "teacher_latency_seconds": [seconds["teacher_fp32"]],
        },
        cost=Input.exact("poc_usd", Decimal(95), "published"),
        assumptions=assumptions,
    )


def unsure(roi: Roi, **likely: str) -> Roi:
    """The same with every input known, some at another value."""
    return calculate(
        Input.exact(one.name, Decimal(likely.get(one.name, str(one.likely))), one.source)
        for one in roi.inputs
    )


def test_what_was_measured_is_read_per_minute_of_video(
    documents: Documents, assumptions: RoiParams
) -> None:
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    teacher, student = (roi.input(f"{who}_seconds_per_minute") for who in ("teacher", "student"))
    clips = Decimal(60 * 25) / 9  # a minute, 25 fps, 9 frames a clip
    for one, samples in ((teacher, (".308", ".310", ".322")), (student, (".128", ".131", ".142"))):
        for value, sample in zip((one.low, one.likely, one.high), samples, strict=True):
            assert round(value, 9) == round(Decimal(sample) * clips, 9)
    assert round(roi.likely.latent_values_per_minute, 6) == round(32 * 3 * 64 * clips, 6)
    assert roi.likely.clip_megapixels == Decimal("0.004096")
    assert roi.likely.package_bytes == 4_310_220
    assert roi.likely.poc_usd == Decimal("1.25")
    for words in ("gate/measurement.json teacher_latency_seconds", "this host's CPU, no GPU",
                  "1 thread, 5 runs", "9 frames at 25 fps"):  # fmt: skip
        assert words in teacher.source
    assert "this host, no phone" in student.source
    assert "NOT TRUST" not in teacher.source + student.source
    busy = {
        **documents,
        "measurement": {**documents["measurement"], "unreliable_reason": "it was busy"},
    }
    for one in roi_of_run(**busy, cost=COST, assumptions=assumptions).inputs:
        is_time = one.name.endswith("_seconds_per_minute")
        assert ("DOES NOT TRUST THESE TIMES: it was busy" in one.source) == is_time, one.name
    documents["measurement"]["threads"] = 2  # as long on twice the threads is twice the work
    twice = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    assert twice.likely.teacher_seconds_per_minute == 2 * roi.likely.teacher_seconds_per_minute


def test_every_figure_says_what_it_is_and_who_says_so(
    documents: Documents, assumptions: RoiParams
) -> None:
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    rows = figures(roi)
    kinds = {row["name"]: row["kind"] for row in rows}
    assert set(INPUTS) < set(kinds) and len(rows) == len(kinds)
    assert all(kinds[name] == INPUTS[name].kind for name in INPUTS)
    assert {kind for name, kind in kinds.items() if name not in INPUTS} == {"computed"}
    assert all(row["source"] and row["unit"] for row in rows)
    sources = {row["name"]: row["source"] for row in rows if row["kind"] == "assumed"}
    for name, source in sources.items():
        assert source == f"params.yaml roi.{name}: {getattr(assumptions, name).source}"


PHONES = [("adb", "Pixel 8, arm64-v8a, Android 15"), ("device-farm", "Galaxy S24, arm64-v8a"),
          ("apple", "iPhone 16 Pro, iOS 19, CPU_AND_NE")]  # fmt: skip


@pytest.mark.parametrize(("kind", "machine"), PHONES)
def test_a_phone_that_was_measured_is_not_multiplied_by_what_is_assumed_of_phones(
    documents: Documents, assumptions: RoiParams, kind: str, machine: str
) -> None:
    documents["measurement"] |= {
        "device": "theirs", "device_kind": kind, "machine": machine, "threads": 4
    }  # fmt: skip
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    one, student = roi.input("phone_speedup"), roi.input("student_seconds_per_minute")
    assert (one.low, one.likely, one.high, one.kind) == (1, 1, 1, "measured")
    assert "the package was measured on the phone itself, theirs" in one.source
    assert "roi.phone_speedup is not used" in one.source
    rows = figures(roi)
    assert {row["name"]: row["kind"] for row in rows}["phone_speedup"] == "measured"
    kinds = [row["kind"] for row in rows]
    assert kinds == sorted(kinds, key=["computed", "measured", "assumed"].index)
    clips = Decimal(60 * 25) / 9
    assert round(student.likely, 9) == round(Decimal(".131") * clips, 9)  # whatever its threads
    assert f"s of the phone theirs, on {machine}, 4 threads" in student.source
    assert "CPU-thread" not in student.source
    teacher = roi.input("teacher_seconds_per_minute")
    assert round(teacher.likely, 9) == round(Decimal(".310") * 4 * clips, 9)
    assert machine not in teacher.source  # which is the phone's
    assert roi.input("gpu_speedup").kind == "assumed"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"device_kind": "host"},
        {"device": "studio", "device_kind": "apple", "machine": "Apple M3, macOS 15, CPU_AND_NE"},
        {"device": "theirs", "machine": "Pixel 8, arm64-v8a, Android 15"},  # of before the kind
    ],
)
def test_what_is_no_phone_is_multiplied(
    documents: Documents, assumptions: RoiParams, changes: dict[str, str]
) -> None:
    documents["measurement"] |= {**changes, "threads": 2}
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    one, assumed = roi.input("phone_speedup"), assumptions.phone_speedup
    assert (one.low, one.likely, one.high) == (assumed.low, assumed.likely, assumed.high)
    assert one.kind == "assumed"
    student = roi.input("student_seconds_per_minute")
    assert round(student.likely, 9) == round(Decimal(".131") * 2 * 60 * 25 / 9, 9)
    assert "CPU-thread s of" in student.source


def test_a_teacher_that_was_timed_on_a_gpu_is_not_divided_by_what_is_assumed_of_gpus(
    documents: Documents, assumptions: RoiParams
) -> None:
    documents["measurement"] |= {
        "teacher_gpu_latency_seconds": [0.004, 0.002, 0.003], "teacher_gpu": "NVIDIA L4",
        "threads": 2,
    }  # fmt: skip
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    one, teacher = roi.input("gpu_speedup"), roi.input("teacher_seconds_per_minute")
    assert (one.low, one.likely, one.high, one.kind) == (1, 1, 1, "measured")
    assert "timed on the GPU itself, NVIDIA L4" in one.source
    assert "roi.gpu_speedup is not used" in one.source
    clips = Decimal(60 * 25) / 9
    for value, sample in zip(
        (teacher.low, teacher.likely, teacher.high), (".002", ".003", ".004"), strict=True
    ):
        assert round(value, 9) == round(Decimal(sample) * clips, 9)
    assert "teacher_gpu_latency_seconds: GPU s of NVIDIA L4" in teacher.source
    assert roi.likely.gpu_seconds_per_minute == teacher.likely * roi.likely.scale
    assert roi.input("phone_speedup").kind == "assumed"
    student = roi.input("student_seconds_per_minute")
    assert round(student.likely, 9) == round(Decimal(".131") * 2 * clips, 9)


def test_of_a_gpu_that_failed_the_assumption_stands(
    documents: Documents, assumptions: RoiParams
) -> None:
    documents["measurement"]["teacher_gpu_failed"] = "CUDA out of memory"
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    assert roi.input("gpu_speedup").likely == assumptions.gpu_speedup.likely
    source = roi.input("teacher_seconds_per_minute").source
    assert "this host's CPU, its GPU failed (CUDA out of memory), on x86_64" in source


def test_the_teachers_machine_is_named_where_the_package_ran_elsewhere(
    documents: Documents, assumptions: RoiParams
) -> None:
    documents["measurement"] |= {
        "device": "pixel", "device_kind": "adb", "machine": "Pixel 8", "teacher_machine": "EPYC"
    }  # fmt: skip
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    assert "no GPU, on EPYC, 1 thread, 5 runs" in roi.input("teacher_seconds_per_minute").source


def test_the_range_of_gpus_reaches_to_what_this_project_measured(assumptions: RoiParams) -> None:
    """Of the published teachers at 512x512: the H200's frames a second over one CPU thread's."""
    cpu, gpu = (
        json.loads((ROOT / f"bench/results/decode{which}.json").read_text())
        for which in ("", "_gpu")
    )
    ratios = []
    for name in ("ltx", "hunyuan", "cogvideox"):
        seconds = cpu[name]["seconds"]["teacher_fp32"] * cpu["threads"]
        on_thread = cpu[name]["frames"] / seconds * (cpu[name]["side"] / 512) ** 2
        ratios.append(gpu[f"{name}:512x512"]["fps"]["teacher"] / on_thread)
    one = assumptions.gpu_speedup
    assert float(one.high) == pytest.approx(max(ratios), rel=0.02)
    assert f"{round(min(ratios), -1):,.0f} to {round(max(ratios), -1):,.0f} times" in one.source


@pytest.mark.parametrize(
    ("absent", "said"),
    [("clips", "the videos' frame rate"), ("package", "the package"),
     ("measurement", "the seconds of teacher"),
     ("cost", "what the PoC cost")],
)  # fmt: skip
def test_what_was_not_measured_is_named_and_never_nothing(
    documents: Documents, assumptions: RoiParams, absent: str, said: str
) -> None:
    given: dict[str, Any] = {**documents, "cost": COST, absent: None}
    with pytest.raises(UserError, match=f"not measured: {said}") as refused:
        roi_of_run(**given, assumptions=assumptions)
    assert str(refused.value).count(" was not made") == (absent != "cost")


def test_a_measurement_without_the_teacher_is_not_one(
    documents: Documents, assumptions: RoiParams
) -> None:
    del documents["measurement"]["teacher_latency_seconds"]
    with pytest.raises(UserError, match="not measured: the seconds of the teacher"):
        roi_of_run(**documents, cost=COST, assumptions=assumptions)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("measurement", "latency_seconds"), []),
        (("measurement", "latency_seconds"), [0.1, 0]),
        (("measurement", "teacher_latency_seconds"), [0.1, float("nan")]),
        (("measurement", "threads"), None),
        (("measurement", "package_sha256"), "another"),
        (("clips", "clips"), []),
        (("clips", "clips"), [{"fps": None}]),
        (("package", "io"), {}),
        (("package", "io", "video_shape"), [1, 3, 0, 64, 64]),
        (("package", "io", "latent_shape"), [32, 3, 8, 8]),
        (("package", "size_bytes"), "many"),
    ],
)
def test_figures_that_cannot_be_are_refused(
    documents: Documents, assumptions: RoiParams, place: tuple[str, ...], value: object
) -> None:
    changed: Any = copy.deepcopy(documents)
    part = changed
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(CorruptFile, match="again"):
        roi_of_run(**changed, cost=COST, assumptions=assumptions)


def charge(run: str, customer: str, usd: str, useful: str = "useful") -> Charge:
    began = datetime(2026, 11, 24, tzinfo=UTC)
    return Charge(
        run=run, customer=customer, stage="distill", resource="node", market="local",
        quantity=Decimal(10), unit="node-second", unit_price_usd=Decimal(usd) / 10,
        amount_usd=Decimal(usd), started_at=began, ended_at=began + timedelta(seconds=10),
        useful=useful, price_source="test",  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_cost_is_all_that_the_customer_was_ever_charged(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert cost_of_poc(ledger, "acme") is None
        ledger.add_all([
            charge("a", "acme", "0.50"), charge("b", "acme", "0.30", "wasted"),
            charge("c", "other", "7"),
        ])  # fmt: skip
        found = cost_of_poc(ledger, "acme")
    assert found is not None
    assert found.low == found.likely == found.high == Decimal("0.80")
    assert "2 runs, $0.30 of it wasted" in found.source


def test_the_sentence_says_saving_payback_and_what_it_hinges_on(assumptions: RoiParams) -> None:
    said = sentence(of_bench("hunyuan", assumptions))
    assert re.match(
        r"Saves \$19,\d{3} a month \(-\$\d+\.\d\d to \$[\d,]+\), pays back in 1\.\d+ months and "
        r"is worth \$6\d\d,\d{3} after 36 months; it hinges most on “Minutes decoded”, 10,000 to "
        r"1,000,000 per month\. But a phone as assumed decodes at 0\.12\d+ of real time: ",
        said,
    ), said
    measured = Input.exact("phone_speedup", Decimal(1), "a phone", is_measured=True)
    others = [one for one in of_bench("ltx", assumptions).inputs if one.name != measured.name]
    said = sentence(calculate([*others, measured]))
    assert "But the phone that was measured decodes at 0.02" in said, said
    roi = of_bench("ltx", assumptions)
    assert "of real time" not in sentence(roi)
    assert "after the horizon of 36 months" in sentence(roi)
    assert sentence(unsure(roi)).endswith("no input has a range that moves it.")
    never = unsure(roi, gpu_usd_per_hour="0")
    assert sentence(never).startswith("Saves nothing and never pays back: a minute spares $0.00 ")


def test_the_worked_example_of_the_docs_is_what_is_calculated(assumptions: RoiParams) -> None:
    text = " ".join((ROOT / "docs/roi.md").read_text().replace("\n> ", "\n").split())
    roi = of_bench("ltx", assumptions)
    assert sentence(roi) in text
    assert sentence(of_bench("hunyuan", assumptions)) in text
    case = roi.likely
    assert case.payback_months is not None and case.break_even_minutes_per_month is not None
    for shown in (
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
        f"{case.phone_realtime:.2f} times real time",
    ):
        assert shown in text, shown


def test_programs_get_numbers_as_text_and_null_for_never(assumptions: RoiParams) -> None:
    roi = of_bench("ltx", assumptions)
    found = json.loads(json.dumps(document(roi, "acme")))
    assert (found["customer"], found["sentence"]) == ("acme", sentence(roi))
    rows = {row["name"]: row for row in found["figures"]}
    assert rows["gpu_usd_per_hour"]["likely"] == "2"
    assert rows["payback_months"]["high"] is None
    assert abs(Decimal(rows["value_usd"]["likely"]) - roi.likely.value_usd) < Decimal("1e-5")
    assert [row["name"] for row in found["sensitivities"]] == [r.name for r in roi.sensitivities]


def bars(drawing: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(drawing)
    return [one for one in found.iter(f"{SVG}rect") if "bar" in one.attrib.get("class", "")]


def test_the_tornado_reaches_from_the_likely_value_to_both_ends(assumptions: RoiParams) -> None:
    roi = of_bench("ltx", assumptions)
    drawing = tornado_svg(roi, "acme & sons")
    root = ElementTree.fromstring(drawing)
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts[0] == "acme & sons"
    (centre,) = [float(one.attrib["x1"]) for one in root.iter(f"{SVG}line")
                 if one.attrib["class"] == "likely"]  # fmt: skip
    drawn = bars(drawing)[2:]  # two are the key
    labels = [text for text in texts if text in {q.label for q in INPUTS.values()}]
    assert labels == [INPUTS[row.name].label for row in roi.sensitivities[: len(labels)]]
    assert len(drawn) == 2 * len(labels) > 10
    first = roi.sensitivities[0]
    low, high = drawn[:2]
    assert (low.attrib["class"], high.attrib["class"]) == ("bar teacher", "bar phone")
    assert float(low.attrib["x"]) + float(low.attrib["width"]) == pytest.approx(centre, abs=0.2)
    assert float(high.attrib["x"]) == pytest.approx(centre, abs=0.2)
    ratio = float(high.attrib["width"]) / float(low.attrib["width"])
    likely = roi.likely.value_usd
    asked = float((first.at_high_usd - likely) / (likely - first.at_low_usd))
    assert ratio == pytest.approx(asked, rel=0.01)
    for value in (first.at_low_usd, first.at_high_usd):
        assert short_usd(float(value)) in texts
    left_out = len(roi.sensitivities) - len(labels)
    assert f"{left_out} more inputs move it little or not" in texts


def test_where_nothing_moves_the_value_nothing_is_drawn(assumptions: RoiParams) -> None:
    known = unsure(of_bench("ltx", assumptions))
    assert tornado(known) == ""
    with pytest.raises(ValueError, match="no tornado"):
        tornado_svg(known, "acme")
    assert len(sensitivities(known)) == len(INPUTS)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "$0"), (12.345, "$12.3"), (950, "$950"), (-12_345, "-$12.3k"), (999_900, "$1M"),
     (3_400_000, "$3.4M"), (-2.5e9, "-$2.5B")],
)  # fmt: skip
def test_places_on_the_axis_are_short(value: float, said: str) -> None:
    assert short_usd(value) == said


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
    shown = section(page)
    assert sentence(context.roi) in shown
    assert "does not pass the gate" not in shown
    counts = {kind: shown.count(f">{kind}</span>") for kind in ("measured", "assumed", "computed")}
    assert counts == {"measured": 6, "assumed": 13, "computed": 8}
    assert 'class="chart tornado"' in shown and '<a href="#roi">' in page
    assert section(render(gather(work))) == ""


def test_the_page_tells_what_was_measured_after_all_from_what_is_assumed(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    path = work / "gate/measurement.json"
    changes = {"device": "pixel", "device_kind": "adb", "teacher_gpu": "NVIDIA L4",
               "teacher_gpu_latency_seconds": [0.002]}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    shown = section(render(gather(work, assumptions=assumptions, cost_of_poc=COST)))
    counts = {kind: shown.count(f">{kind}</span>") for kind in ("measured", "assumed", "computed")}
    assert counts == {"measured": 8, "assumed": 11, "computed": 8}


def test_the_results_stand_from_worst_to_best(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    """Of payback and break-even the low end is the good one, of saving and value the high one."""
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.roi is not None
    results, rest = section(render(context)).split("<details>")
    assert re.findall(r'class="num">(\w+)</th>', results) == ["Worst", "Likely", "Best"]
    assert re.findall(r'class="num">(\w+)</th>', rest) == ["Low", "Likely", "High"]
    assert "of payback and break-even less is better, of the others more" in results
    rows = dict(re.findall(r"<tr><td>([^<]+)</td>(.*?)</tr>", results))
    ends = {label: re.findall(r'class="num">([^<]+)</td>', row) for label, row in rows.items()}
    assert len(ends) == 5
    for result in context.roi.results:
        if result.label in ends:
            by_size = [amount(x, result.unit) for x in (result.low, result.likely, result.high)]
            is_less_better = result.label in ("Payback", "Break-even volume")
            assert ends[result.label] == (by_size[::-1] if is_less_better else by_size)
    assert ends["Payback"][0] == "never"


def test_the_return_of_a_demos_teacher_says_that_it_is_nobodys(
    work: Path, tmp_path: Path, gather: Gather, assumptions: RoiParams
) -> None:
    said = "THE TEACHER IS THE DEMO'S"
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.roi is not None and 'id="roi-demo"' not in section(render(context))
    assert not [one for one in context.roi.inputs if said in one.source]
    shutil.copytree(work, tmp_path / "demo")
    path = tmp_path / "demo/encode/latents.json"
    latents = json.loads(path.read_text()) | {"teacher_sha256": DEMO_TEACHERS[0]}
    path.write_text(json.dumps(latents))
    assert "not for shipping" not in headline(context)
    found = gather(tmp_path / "demo", assumptions=assumptions, cost_of_poc=COST)
    assert headline(found).endswith(" Its teacher is the demo's, which is not for shipping.")
    shown = section(render(found))
    assert "The teacher of this run is the demo's" in shown
    assert "says nothing about a customer" in shown
    roi = read_roi(tmp_path / "demo", cost=COST, assumptions=assumptions)
    told = [one.name for one in roi.inputs if said in one.source]
    assert told == ["teacher_seconds_per_minute", "student_seconds_per_minute"]


def test_every_teacher_that_is_shipped_is_known_as_the_demos() -> None:
    weights = sorted((ROOT / "assets/teachers").glob("*/training.json"))
    assert weights
    for path in weights:  # `make teacher` writes the sha256 that `encode` tells of them
        assert json.loads(path.read_text())["sha256"] in DEMO_TEACHERS, path
        content = (path.parent / "diffusion_pytorch_model.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() in DEMO_TEACHERS, path


def test_a_package_that_fails_the_gate_returns_nothing_yet(
    work: Path, gather: Gather, assumptions: RoiParams
) -> None:
    context = gather(work, assumptions=assumptions, cost_of_poc=COST)
    assert context.verdict is not None
    failed = replace(context, verdict={**context.verdict, "result": "fails"})
    assert "does not pass the gate" in section(render(failed))


@pytest.mark.parametrize("stage", ["validate", "distill", "gate"])
def test_a_run_that_stopped_early_says_why_there_is_no_return(
    work: Path, gather: Gather, assumptions: RoiParams, stage: str
) -> None:
    failure = Failure(stage=stage, error="it broke")
    context = gather(work, failure=failure, assumptions=assumptions, cost_of_poc=COST)
    assert context.roi is None
    shown = section(render(context))
    assert "No return on investment yet, not measured:" in shown
    assert "gate/measurement.json was not made" in shown
    assert ("clip/clips.json" in shown) == (stage == "validate")
    assert "$" not in shown and "<table" not in shown


def test_the_command(
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
    assert code == 2
    for words in ("not measured", "the seconds of teacher", "what the PoC cost", "turbo-vaed poc"):
        assert words in err
    assert call("nobody")[0] == 2

    shutil.copytree(work, tmp_path / "work/demo")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(charge("a", "demo", "0.50"))
    picture = tmp_path / "tornado.svg"
    code, out, err = call("demo", "--format", "json", "--chart", str(picture))
    assert code == 0, err
    found = json.loads(out)
    rows = {row["name"]: row for row in found["figures"]}
    assert rows["poc_usd"]["likely"] == "0.5"
    assert bars(picture.read_text())
    code, out, _ = call("demo")
    assert code == 0
    assert out.splitlines()[0] == found["sentence"]
    for words in ("what it would return", "where each figure is from", "one input at a time"):
        assert words in out
    (tmp_path / "work/demo/gate/measurement.json").write_text('{"dev')
    code, _, err = call("demo")
    assert code == 3 and "is no JSON" in err
