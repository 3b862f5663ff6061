"""The picture of simulated budgets, and the command that draws it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from turbo_vaed.costs.simulate import mean_shortfall, simulate
from turbo_vaed.report.simulation import simulation_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.slow
def test_the_command_prints_figures_and_draws_every_run(tmp_path: Path) -> None:
    picture = tmp_path / "runs.svg"
    done = subprocess.run(
        [sys.executable, "-m", "turbo_vaed.cli", "cost", "simulate", "--traces", "40",
         "--seed", "2", "--format", "json", "--chart", str(picture)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["traces"], found["overspent"], found["worst_overspend_usd"]) == (40, 0, 0.0)
    assert 0 < found["median_steps_of_oracle"] <= 1
    root = ElementTree.fromstring(picture.read_text())
    median = 100 * found["median_steps_of_oracle"]
    runs, overspent, drawn_median = map(float, re.findall(r"[\d.]+", texts(root)[0]))
    assert (runs, overspent) == (40, 0)
    assert drawn_median == pytest.approx(median, abs=1)
    lines = [each.get("class") for each in root.iter(f"{SVG}polyline")]
    assert lines == ["line required", "line phone", "line teacher"]


def test_bars_are_as_long_as_their_values() -> None:
    replays = simulate(40, seed=2, processes=1)
    root = ElementTree.fromstring(simulation_svg(replays))
    means = mean_shortfall([each for each in replays if each.was_reachable])
    widths = [float(each.get("width", "")) for each in root.iter(f"{SVG}rect")
              if each.get("class") == "bar phone"]  # fmt: skip
    largest = max(means.values())
    wanted = sorted((max(0.0, share) / largest for share in means.values()), reverse=True)
    assert [width / widths[0] for width in widths] == pytest.approx(wanted, abs=1e-3)
    assert f"{100 * largest:.2f} %" in texts(root)
    assert any(f"{100 * sum(means.values()):.1f} %" in text for text in texts(root))


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def test_without_a_reachable_goal_there_is_no_picture() -> None:
    with pytest.raises(ValueError):
        simulation_svg([])
