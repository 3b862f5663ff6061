"""A customer's pipeline: filled in from one dvc.yaml, with a lock of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from turbo_vaed.config import pipeline
from turbo_vaed.config.stages import STAGES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", ["data/acme", "/mnt/Vidéos: alle #1"])
def test_a_pipeline_names_its_customer_and_has_no_placeholder_left(root: Path, source: str) -> None:
    assert pipeline.write(root, "acme", source)
    path = pipeline.folder(root, "acme") / "dvc.yaml"
    made = read(path)
    assert list(made["stages"]) == ["params", *STAGES]
    assert "${" not in path.read_text()
    for name, stage in made["stages"].items():
        assert stage["cmd"] == f"turbo-vaed stage {name} acme"
        assert (path.parent / stage["wdir"]).resolve() == root
    assert source in made["stages"]["validate"]["deps"]


def test_a_pipeline_is_written_again_only_where_something_has_changed(root: Path) -> None:
    assert pipeline.write(root, "acme", "videos")
    assert not pipeline.write(root, "acme", "videos")
    assert pipeline.write(root, "acme", "elsewhere")
    with (root / "dvc.yaml").open("a") as template:
        template.write("plots: []\n")
    assert pipeline.write(root, "acme", "elsewhere")
