"""What cannot be exported is refused before anything is computed or paid."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from flows import admission
from flows.poc import retries_of
from tests import configs
from turbo_vaed.config.devices import parse_profile
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("targets", ["litert/fp32"], "nothing/bin/python: no such file; .*`make litert`"),
        ("targets", ["coreml/fp16"], r"export\.targets: .*coreml/fp16.*gate\.device"),
        ("targets", ["litert/fp64"], r"export\.targets: .*litert/fp64"),
        ("shapes", [[16, 256, 256]], r"export\.shapes: \[16, 256, 256\]: frames: found 16"),
    ],
)
def test_a_missing_litert_environment_is_refused_first(
    key: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBO_VAED_LITERT", str(tmp_path / "nothing"))
    (tmp_path / "data" / "demo").mkdir(parents=True)
    shutil.copytree(
        ROOT / "assets" / "teachers" / "tiny-ltx", tmp_path / "assets/teachers/tiny-ltx"
    )
    configs.override(configs.copy_to(tmp_path), export={key: value})
    with pytest.raises(UserError, match=message):
        admission.preflight(Settings.from_environment(tmp_path), "demo")
    assert not (tmp_path / "state").exists(), "neither ledger nor MLflow was opened"


def test_a_gate_on_a_paid_device_is_not_retried() -> None:
    params = Workspace.load(configs.FOLDER, "demo").params
    assert [retries_of(stage, params) for stage in ("clip", "distill", "gate")] == [0, 1, 1]
    paid = {
        "name": "farm", "kind": "device-farm", "runner": "runner",
        "project": "arn:aws:devicefarm:a", "device": "arn:aws:devicefarm:a:device:b",
    }  # fmt: skip
    there = dataclasses.replace(params, device=parse_profile(paid))
    assert [retries_of(stage, there) for stage in ("distill", "gate")] == [1, 0]
