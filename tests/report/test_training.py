"""What the page says of the training: its losses, what interrupted it, what looked wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from turbo_vaed.report import words
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.curves import Curve, curves
from turbo_vaed.report.page import render
from turbo_vaed.report.training import MOST_LISTED, training

Gather = Callable[..., ReportContext]


@pytest.fixture(scope="module")
def calm(tmp_path_factory, make_work: Callable[..., Path]) -> Path:
    """A run without any trouble, of the two L1 losses alone."""
    return make_work(tmp_path_factory.mktemp("calm") / "demo")


def test_the_facts_of_a_run(work: Path, gather: Gather) -> None:
    found = training(gather(work))
    assert found is not None
    assert dict(found["facts"]) == {
        "Losses and weights": "L1 to the source 1, L1 to the teacher 0.25, perceptual 0.2, "
        "feature 1.5, adversarial -0.1, discriminator 1.9",
        "Teacher's targets": "cache: reading is 8 times as fast as the teacher",
        "The last 0.1 dB": "$0.00041",
        "Interruptions": "2: 7 steps computed again, 1 min 32 s and $0.002 wasted",
        "End": "All 400 planned steps were done.",
    }
    assert found["warnings"] == ["Step 120, flicker: the error changes by 3.1 of 255"]
    assert found["restarts"] == [
        "Step 47, worker lost: 7 steps computed again, 1 min 12 s and $0.0016 wasted",
        "Step 90, notice: 0 steps computed again, 20.0 s and $0.0004 wasted",
    ]


def test_trouble_is_listed_only_where_there_was_some(
    work: Path, calm: Path, gather: Gather
) -> None:
    troubled, quiet = render(gather(work)), render(gather(calm))
    for heading in ("<h3>Warnings", "<h3>Interruptions"):
        assert heading in troubled and heading not in quiet
    assert "Losses and weights" in quiet


def test_a_long_list_is_cut_and_says_so(
    tmp_path: Path, make_work: Callable[..., Path], gather: Gather
) -> None:
    many = [{"step": n, "kind": "flicker", "text": "<b>"} for n in range(MOST_LISTED + 5)]
    context = gather(make_work(tmp_path / "demo", warnings=many))
    found = training(context)
    assert found is not None and len(found["warnings"]) == MOST_LISTED + 1
    assert found["warnings"][-1] == "5 more are in history.json"
    assert "<b>" not in render(context).partition("<h3>Warnings")[2][:3000]


def test_every_part_of_the_loss_that_ran_is_drawn_and_named(
    work: Path, calm: Path, gather: Gather
) -> None:
    of_work = {curve.title: curve for curve in curves(gather(work))}
    assert [name for _, name in of_work["Parts of the loss"].legend] == [
        "perceptual", "features", "adversarial", "discriminator",
    ]  # fmt: skip
    assert of_work["Parts of the loss"].svg.count("<polyline") == 4
    of_calm = {curve.title: curve for curve in curves(gather(calm))}
    assert "Parts of the loss" not in of_calm
    assert [name for _, name in of_calm["Training loss"].legend] == [
        "loss", "L1 to the source", "L1 to the teacher",
    ]  # fmt: skip
    assert of_calm["Training loss"].svg.count("<polyline") == 4  # the loss as it was, faintly


def test_a_part_that_begins_late_is_drawn_from_there(work: Path, gather: Gather) -> None:
    context = gather(work)
    assert context.history is not None
    for row in context.history["steps"][:300]:
        del row["loss_adversarial"]
    late = next(curve for curve in curves(context) if curve.title == "Parts of the loss")
    lines = late.svg.split("<polyline")[1:]
    starts = [float(line.split('points="')[1].split(",")[0]) for line in lines]
    assert starts[2] - starts[0] > 250  # of 400 units


WHY = "validation PSNR 27.52 dB reaches 27.50 dB: 27.00 dB that the gate asks for"


@pytest.fixture(scope="module")
def enough(tmp_path_factory, make_work: Callable[..., Path]) -> Path:
    """A run that stopped after 120 of 400 steps, for the target that it had."""
    return make_work(
        tmp_path_factory.mktemp("enough") / "demo",
        stopped="good enough", reason=WHY, target_psnr=27.5,
    )  # fmt: skip


def dollars(context: ReportContext) -> Curve:
    return next(c for c in curves(context) if c.title == "Quality against dollars")


def test_a_run_that_was_good_enough_says_why_and_is_no_failure(
    enough: Path, gather: Gather
) -> None:
    context = gather(enough)
    said = f"Stopped, good enough, after 120 of 400 planned steps: {WHY}."
    assert dollars(context).note == said
    assert dict(training(context)["facts"])["End"] == said
    page = render(context)
    assert page.count(said) == 2
    assert words.headline(context).startswith(
        "Ready to ship: the student as packaged in fp32 keeps"
    )
    assert "stopped-early" not in page and "stopped early" not in page


def test_quality_against_dollars_has_the_target_and_the_end(enough: Path, gather: Gather) -> None:
    drawn = dollars(gather(enough))
    assert [name for _, name in drawn.legend] == [
        "student",
        "PSNR is enough above",
        "stopped, good enough",
    ]
    root = ElementTree.fromstring(str(drawn.svg))
    target = next(e for e in root.iter("polyline") if "asked" in e.get("class", ""))
    (left, level), (right, same) = (p.split(",") for p in target.get("points", "").split())
    assert level == same and float(left) < float(right)
    dots = [(e.get("class"), float(e.get("cx", "")), float(e.get("cy", "")))
            for e in root.iter("circle")]  # fmt: skip
    (end,) = [dot for dot in dots if "third" in dot[0]]
    assert end[1:] == max(dot[1:] for dot in dots if "phone" in dot[0])  # the last validation
    assert (left, right) == (str(min(dot[1] for dot in dots)), str(end[1]))
    below = 28.6 - 3.2 * 2.718281828 ** (-120 / 110) < 27.5
    assert (end[2] > float(level)) == below


def test_where_no_quality_was_enough_there_is_no_line(calm: Path, gather: Gather) -> None:
    drawn = dollars(gather(calm))
    assert [name for _, name in drawn.legend] == ["student", "all steps done"]
    assert drawn.note == "All 400 planned steps were done."


def test_dollars_go_on_where_an_earlier_run_stopped(enough: Path, gather: Gather) -> None:
    context = gather(enough)
    assert context.history is not None
    for row in context.history["steps"][100:]:
        row["spent_usd"] = "0.0001"  # a new run
    drawn = dollars(context)
    places = [float(e.get("cx", "")) for e in ElementTree.fromstring(str(drawn.svg)).iter("circle")]
    assert places == sorted(places)
    assert "spent by the run and those before it (USD)" in drawn.svg


def test_a_history_of_an_earlier_version_is_shown(calm: Path, gather: Gather) -> None:
    context = gather(calm)
    assert context.history is not None
    del context.history["target_psnr"], context.history["reason"]
    assert dollars(context).note == "All 400 planned steps were done."
