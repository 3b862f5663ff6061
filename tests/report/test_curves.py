"""How the student was trained: its curves, what interrupted it, what looked wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from turbo_vaed.report import tables, wording
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.curves import Curve, curves
from turbo_vaed.report.page import render
from turbo_vaed.report.tables import MOST_LISTED

Gather = Callable[..., ReportContext]


@pytest.fixture(scope="module")
def calm(tmp_path_factory, make_work: Callable[..., Path]) -> Path:
    """A run without any trouble, of the two L1 losses alone."""
    return make_work(tmp_path_factory.mktemp("calm") / "demo")


def test_the_facts_of_a_training_run(work: Path, gather: Gather) -> None:
    found = tables.training(gather(work))
    assert found is not None
    assert (found["done"], found["planned"], found["best_step"]) == ("400", "400", 400)
    assert re.search(r"teacher 0\.25, perceptual 0\.2, feature 1\.5", found["losses"])
    assert found["targets"]["mode"] == "cache" and found["last_tenth_db"] == "$0.00041"
    assert found["interruptions"].startswith("7 steps") and "$0.002 " in found["interruptions"]
    assert "1 min 32 s" in found["interruptions"]  # of both
    assert [(w["step"], w["kind"]) for w in found["warnings"]] == [(120, "flicker")]
    lost = [(one["step"], one["lost"].split()[0]) for one in found["restarts"]]
    assert lost == [(47, "7"), (90, "0")]


@pytest.mark.slow
def test_warnings_and_restarts_are_listed_only_where_there_were_some(
    work: Path, calm: Path, gather: Gather
) -> None:
    troubled, quiet = render(gather(work)), render(gather(calm))
    for listed in ('id="warnings"', 'id="restarts"'):
        assert listed in troubled and listed not in quiet
    assert 'id="training-end"' in quiet


def test_a_long_list_is_cut_and_the_rest_is_counted(
    tmp_path: Path, make_work: Callable[..., Path], gather: Gather
) -> None:
    many = [{"step": n, "kind": "flicker", "text": "<b>"} for n in range(MOST_LISTED + 5)]
    context = gather(make_work(tmp_path / "demo", warnings=many))
    found = tables.training(context)
    assert found is not None
    assert (len(found["warnings"]), found["warnings_left_out"]) == (MOST_LISTED, 5)
    listed = render(context).partition('id="warnings"')[2].partition("</ul>")[0]
    assert listed.count("<li>") == MOST_LISTED + 1 and "<b>" not in listed


def test_every_part_of_the_loss_that_ran_is_drawn_and_named(
    work: Path, calm: Path, gather: Gather
) -> None:
    of_work = {curve.title: curve for curve in curves(gather(work))}
    assert [name for _, name in of_work["Parts of the loss"].legend] == [
        "perceptual", "features", "adversarial", "discriminator",
    ]  # fmt: skip
    assert of_work["Parts of the loss"].svg.body.count("<polyline") == 4
    of_calm = {curve.title: curve for curve in curves(gather(calm))}
    assert "Parts of the loss" not in of_calm
    assert [name for _, name in of_calm["Training loss"].legend] == [
        "loss", "L1 to the source", "L1 to the teacher",
    ]  # fmt: skip
    assert of_calm["Training loss"].svg.body.count("<polyline") == 4  # the loss as it was, faintly


def test_a_loss_that_begins_late_is_drawn_from_its_beginning(work: Path, gather: Gather) -> None:
    context = gather(work)
    assert context.history is not None
    for row in context.history["steps"][:300]:
        del row["loss_adversarial"]
    late = next(curve for curve in curves(context) if curve.title == "Parts of the loss")
    lines = late.svg.body.split("<polyline")[1:]
    starts = [float(line.split('points="')[1].split(",")[0]) for line in lines]
    assert starts[2] - starts[0] > 250  # of 400 units


WHY = "validation PSNR 27.52 dB reaches the target of 27.50 dB"


@pytest.fixture(scope="module")
def enough(tmp_path_factory, make_work: Callable[..., Path]) -> Path:
    """A run that stopped after 120 of 400 steps, for the target that it had."""
    return make_work(
        tmp_path_factory.mktemp("enough") / "demo",
        stopped="good enough", reason=WHY, target_psnr=27.5,
    )  # fmt: skip


def dollars(context: ReportContext) -> Curve:
    return next(c for c in curves(context) if c.title == "Quality against dollars")


def test_a_good_enough_run_has_its_reason_and_is_no_failure(enough: Path, gather: Gather) -> None:
    context = gather(enough)
    page = render(context)
    assert page.count(WHY) == 1
    assert wording.badge(context)[1] == "good"
    assert 'id="stopped-early"' not in page


def test_quality_against_dollars_has_the_target_and_the_end(enough: Path, gather: Gather) -> None:
    drawn = dollars(gather(enough))
    assert [tone for tone, _ in drawn.legend] == ["phone", "required", "third"]
    root = ElementTree.fromstring(str(drawn.svg))
    target = next(e for e in root.iter("polyline") if "required" in e.get("class", ""))
    (left, level), (right, same) = (p.split(",") for p in target.get("points", "").split())
    assert level == same and float(left) < float(right)
    dots = [(e.get("class"), float(e.get("cx", "")), float(e.get("cy", "")))
            for e in root.iter("circle")]  # fmt: skip
    (end,) = [dot for dot in dots if "third" in dot[0]]
    assert end[1:] == max(dot[1:] for dot in dots if "phone" in dot[0])  # the last validation
    assert (left, right) == (str(min(dot[1] for dot in dots)), str(end[1]))
    below = 28.6 - 3.2 * 2.718281828 ** (-120 / 110) < 27.5
    assert (end[2] > float(level)) == below


def test_without_a_quality_target_there_is_no_line(calm: Path, gather: Gather) -> None:
    drawn = dollars(gather(calm))
    assert [tone for tone, _ in drawn.legend] == ["phone", "third"]


def test_dollars_continue_where_an_earlier_run_stopped(enough: Path, gather: Gather) -> None:
    context = gather(enough)
    assert context.history is not None
    for row in context.history["steps"][100:]:
        row["spent_usd"] = "0.0001"  # a new run
    drawn = dollars(context)
    places = [float(e.get("cx", "")) for e in ElementTree.fromstring(str(drawn.svg)).iter("circle")]
    assert places == sorted(places)


def test_a_history_without_a_reason_has_a_page(calm: Path, gather: Gather) -> None:
    context = gather(calm)
    assert context.history is not None
    del context.history["target_psnr"], context.history["reason"]
    assert "400" in wording.training_end(context.history) and dollars(context) is not None
    assert wording.training_end(context.history) in render(context)
