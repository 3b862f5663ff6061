"""The picture of simulated budgets, and the command that draws it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from turbo_vaed.report.simulation import simulation_svg


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
    texts = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0].startswith("40 runs: 0 overspent, median ")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_without_a_run_that_could_get_there_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="simulate more"):
        simulation_svg([])
