"""What the stage `distill` takes for good enough, and what its parameters depend on."""

from __future__ import annotations

import dataclasses
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_vaed.costs import Budget, Spending
from turbo_vaed.distill import teacher_psnr as module
from turbo_vaed.models import PRESETS
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages import distill
from turbo_vaed.stages import params as params_stage

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def poc(tmp_path: Path, tiny_teacher: Path) -> Poc:
    """The demo's, with a teacher; `education` asks for 22 dB and 0.95 of the teacher's."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(tiny_teacher, tmp_path / "assets/teachers/tiny-ltx")
    return Poc.load(tmp_path, "demo")


def target(poc: Poc, margin: float | None, usd: str = "1") -> Any:
    changed = dataclasses.replace(poc.params.distill, stop_psnr_margin_db=margin)
    poc = dataclasses.replace(poc, params=dataclasses.replace(poc.params, distill=changed))
    spending = Spending(
        budget=Budget(run_usd=Decimal(usd), warn_share=Decimal(1), reserve_usd=Decimal("0.5")),
        usd_per_hour=Decimal(1),
        spent_usd=lambda: Decimal(0),
    )
    settings = Settings.from_environment(poc.root)
    return distill._target(poc, PRESETS["tiny-ltx"], settings, spending, lambda *_: None)


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its dB on the validation clips, to be replaced."""
    known = [30.0]

    def measure(wanted: Any, *, afford: Any, **_: Any) -> float:
        afford(0.0)
        return known[0]

    monkeypatch.setattr(module, "teacher_psnr", measure)
    return known


def test_what_the_gate_asks_for_and_the_margin(poc: Poc, teacher: list[float]) -> None:
    found = target(poc, 0.5)
    assert found.psnr == pytest.approx(0.95 * 30 + 0.5)
    assert found.said == (
        "29.00 dB: 28.50 dB that the gate asks for (0.95 of the teacher's 30.00 dB on these "
        "clips), and a margin of 0.5 dB"
    )
    teacher[0] = 20.0
    found = target(poc, 0.0)
    assert found.psnr == 22.0
    assert "22.00 dB that the gate asks for (more than 0.95 of the teacher's 20.00 dB" in found.said


def test_without_a_margin_the_teacher_is_not_asked(
    poc: Poc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "teacher_psnr")
    assert target(poc, None) is None


def test_a_target_that_cannot_be_paid_stops_nothing(
    poc: Poc, teacher: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert target(poc, 0.5, usd="0.1") is None
    assert "no PSNR is enough to stop for: the teacher on validation" in capsys.readouterr().out


def sections(poc: Poc, **changes: Any) -> dict[str, Any]:
    document = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    document["customers"]["demo"] |= changes
    (poc.root / "params.yaml").write_text(yaml.safe_dump(document))
    params_stage.run(poc)
    found = yaml.safe_load((poc.work / "params" / "distill.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_distillation_depends_on_the_gate_only_where_it_aims_at_it(poc: Poc) -> None:
    assert sections(poc) == sections(poc, thresholds={"min_psnr": 31.0})
    aims = {"distill": {"stop_psnr_margin_db": 0.5}}
    assert sections(poc, **aims)["thresholds"] == {"min_psnr": 22.0, "min_psnr_retention": 0.95}
    moved = sections(poc, **aims, thresholds={"min_psnr": 31.0})
    assert moved["thresholds"]["min_psnr"] == 31.0
    assert moved == sections(poc, **aims, thresholds={"min_psnr": 31.0, "min_ssim": 0.9})
