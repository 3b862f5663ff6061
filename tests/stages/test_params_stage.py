"""The stage `params`: what an edit of params.yaml reaches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import configs
from turbo_vaed.config.stages import STAGES
from turbo_vaed.stages import params
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


def resolved(root: Path, document: dict[str, Any]) -> dict[str, bytes]:
    """The files that the stage writes of `document`."""
    configs.write(root, document)
    workspace = Workspace.load(root, "demo")
    params.run(workspace)
    return {path.name: path.read_bytes() for path in workspace.folder("params").iterdir()}


@pytest.mark.parametrize("place", ["finance", "customer"])
def test_an_assumption_of_the_return_reaches_no_stage(tmp_path: Path, place: str) -> None:
    shutil.copytree(REPOSITORY / "assets/teachers", tmp_path / "assets/teachers")
    document = configs.read()
    before = resolved(tmp_path, document)
    assert set(before) == {f"{stage}.yaml" for stage in STAGES}
    owner = document if place == "finance" else document["customers"]["demo"]
    owner.setdefault("roi", {}).setdefault("devices", {})["likely"] = 12_345
    assert resolved(tmp_path, document) == before
    assert Workspace.load(tmp_path, "demo").params.roi.devices.likely == 12_345
    document["defaults"]["gate"] = {"max_samples": 61}
    changed = resolved(tmp_path, document)
    assert [name for name in before if changed[name] != before[name]] == ["gate.yaml"]


def test_the_shape_of_a_device_reaches_the_export_and_nothing_else_of_it_does(
    tmp_path: Path,
) -> None:
    shutil.copytree(REPOSITORY / "assets/teachers", tmp_path / "assets/teachers")
    document = configs.read()
    before = resolved(tmp_path, document)
    document["devices"]["host"]["shape"] = [9, 720, 1280]
    shaped = resolved(tmp_path, document)
    assert {name for name in before if shaped[name] != before[name]} == {"export.yaml", "gate.yaml"}
    assert Workspace.load(tmp_path, "demo").params.device.shape == (9, 720, 1280)


def test_only_the_stage_params_reads_params_yaml() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert set(stages) == {"params", *STAGES}
    for name, stage in stages.items():
        assert ("params" in stage) == (name == "params")
        assert not any("params.yaml" in dependency for dependency in stage.get("deps", ()))
