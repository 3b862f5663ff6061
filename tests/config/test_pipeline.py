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
def test_it_names_one_customer_and_leaves_no_placeholder(root: Path, source: str) -> None:
    assert pipeline.write(root, "acme", source)
    path = pipeline.folder(root, "acme") / "dvc.yaml"
    made = read(path)
    assert list(made["stages"]) == ["params", *STAGES]
    assert "${" not in path.read_text()
    for name, stage in made["stages"].items():
        assert stage["cmd"] == f"turbo-vaed stage {name} acme"
        assert (path.parent / stage["wdir"]).resolve() == root
    assert source in made["stages"]["validate"]["deps"]


def test_it_is_written_again_only_where_something_has_changed(root: Path) -> None:
    assert pipeline.write(root, "acme", "videos")
    assert not pipeline.write(root, "acme", "videos")
    assert pipeline.write(root, "acme", "elsewhere")
    with (root / "dvc.yaml").open("a") as template:
        template.write("plots: []\n")
    assert pipeline.write(root, "acme", "elsewhere")


def test_what_a_common_lock_has_of_a_customer_becomes_its_own_lock(root: Path) -> None:
    entries = {name: {"cmd": name} for name in ("clip@acme", "gate@acme", "clip@other")}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))
    pipeline.write(root, "acme", "videos")
    own = pipeline.folder(root, "acme") / "dvc.lock"
    assert read(own) == {
        "schema": "2.0",
        "stages": {"clip": {"cmd": "clip@acme"}, "gate": {"cmd": "gate@acme"}},
    }
    own.write_text("schema: '2.0'\n")
    pipeline.write(root, "acme", "videos")
    assert own.read_text() == "schema: '2.0'\n", "an own lock is never overwritten"
    pipeline.write(root, "new", "videos")
    assert not (pipeline.folder(root, "new") / "dvc.lock").exists()
