"""What the page says of the training: its losses, what interrupted it, what looked wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from turbo_vaed.report import ReportContext, render
from turbo_vaed.report.curves import curves
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
    for heading in ("Early signs of trouble", "<h3>Interruptions"):
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
    assert "<b>" not in render(context).partition("Early signs of trouble")[2][:3000]


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
