"""`turbo-vaed upgrade plan`: what a new version runs again, and that DVC then agrees."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from flows import outputs, remotes, upgrade
from tests import configs
from tests.costs.listed import NOON
from tests.planning.customer import charge, estimated, local
from turbo_vaed.cli import app
from turbo_vaed.config import load, pipeline
from turbo_vaed.config.schema import DistillParams, EvaluateParams, Params
from turbo_vaed.config.stages import STAGES
from turbo_vaed.config.types import LATER, STRICT, Count, Positive
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.db.migrate import REVISION
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.errors import UserError
from turbo_vaed.planning.history import pace_key
from turbo_vaed.runtime.processes import Process
from turbo_vaed.stages import params
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateWithKey(EvaluateParams):
    passes: Annotated[Count, LATER] = 3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillWithKey(DistillParams):
    patience: Annotated[Count, LATER] = 3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillOfOtherDefault(DistillParams):
    learning_rate: Positive = 7.0e-4


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WithKey(Params):
    evaluate: EvaluateWithKey = EvaluateWithKey()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfOtherDefault(Params):
    distill: DistillOfOtherDefault = DistillOfOtherDefault()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`install(Schema, evaluate=2)`: a version with this schema and these stage versions."""
    version_of = params.stage_version

    def install(schema: Any = Params, **versions: int) -> None:
        monkeypatch.setattr(load, "Params", schema)
        monkeypatch.setattr(load, "_PARAMS", TypeAdapter(schema))
        monkeypatch.setattr(params, "stage_version", lambda one: versions.get(one, version_of(one)))
        load.built_in.cache_clear()

    yield install
    load.built_in.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose customer `demo` has run, as its lock says."""
    configs.copy_to(tmp_path)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "assets").symlink_to(REPOSITORY / "assets")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/one.mp4").write_text("a video")
    configs.override(tmp_path, source="videos", distill={"steps": 1000})
    record(tmp_path)
    return tmp_path


def record(root: Path) -> None:
    """Write the customer's params, and a lock in which every stage has run by them."""
    workspace = Workspace.load(root, "demo")
    params.run(workspace)
    pipeline.write(root, "demo", workspace.params.source)
    stages = pipeline.fill(pipeline.template(root), "demo", workspace.params.source)["stages"]

    def entry(path: Any) -> dict[str, str]:
        path = next(iter(path)) if isinstance(path, dict) else path
        file = root / path
        content = file.read_bytes() if file.is_file() else b""
        return {"path": path, "md5": hashlib.md5(content, usedforsecurity=False).hexdigest()}

    found = {
        name: {
            "cmd": stages[name]["cmd"],
            **{kind: list(map(entry, stages[name][kind])) for kind in ("deps", "outs")},
        }
        for name in STAGES
    }
    lock = {"schema": "2.0", "stages": found}
    workspace.dvc_lock.write_text(yaml.safe_dump(lock), encoding="utf-8")


def plan_of(root: Path) -> upgrade.CustomerPlan:
    (found,) = upgrade.plan(local(root)).customers
    return found


def files_of(root: Path) -> dict[Path, tuple[int, int]]:
    kept = (path for path in root.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in kept}


def test_a_neutral_new_key_runs_nothing_again(root: Path, install: Callable[..., None]) -> None:
    install(WithKey)
    workspace = Workspace.load(root, "demo")
    assert workspace.params.evaluate.passes == 3  # type: ignore[attr-defined]
    assert plan_of(root) == upgrade.CustomerPlan(customer="demo")
    assert params.run(workspace) == {"changed": []}, "no section is written"
    was, now = (pace_key(kind(), local(root)) for kind in (DistillParams, DistillWithKey))
    assert was == now, "nor is a measured pace forgotten"
    assert pace_key(DistillWithKey(patience=4), local(root)) != was
    configs.override(root, evaluate={"passes": 4})
    assert [str(one) for one in plan_of(root).again["evaluate"]] == ["evaluate.passes: absent -> 4"]


def test_a_changed_default_and_a_raised_stage_version_run_their_stages_again(
    root: Path, install: Callable[..., None]
) -> None:
    install(OfOtherDefault, export=99)
    before = files_of(root)
    found = plan_of(root)
    assert files_of(root) == before, "a plan writes nothing"
    assert list(found.again) == ["distill", "export"]
    assert [str(one) for one in found.again["distill"]] == [
        "distill.learning_rate: 0.0005 -> 0.0007"
    ]
    (of_export,) = found.again["export"]
    assert (of_export.key, of_export.now) == ("stage_version", 99)
    assert found.downstream == ("evaluate", "gate")


def test_only_what_reads_a_stages_output_is_downstream_of_it(
    root: Path, install: Callable[..., None]
) -> None:
    install(evaluate=99)
    assert plan_of(root).downstream == ("gate",), "no package is made again for it"


def test_a_changed_command_and_a_new_dependency_are_named(root: Path) -> None:
    template = yaml.safe_load((root / "dvc.yaml").read_text())
    template["stages"]["clip"]["cmd"] += " --fast"
    template["stages"]["gate"]["deps"].append("videos/one.mp4")
    (root / "dvc.yaml").write_text(yaml.safe_dump(template))
    again = plan_of(root).again
    assert {stage: [one.key for one in why] for stage, why in again.items()} == {
        "clip": ["command"],
        "gate": ["deps videos/one.mp4"],
    }


def test_where_the_recorded_params_are_gone_their_digest_still_tells(
    root: Path, install: Callable[..., None]
) -> None:
    """A fresh checkout has the lock alone, and a run that was refused has rewritten the params."""
    shutil.rmtree(root / "work")
    assert not plan_of(root).again
    install(OfOtherDefault)
    (why,) = plan_of(root).again["distill"]
    assert (why.key, why.recorded) == ("params/distill.yaml", "unknown")
    params.run(Workspace.load(root, "demo"))
    assert list(plan_of(root).again) == ["distill"]


def test_a_run_of_another_checkout_is_known_by_what_it_left(
    root: Path, install: Callable[..., None]
) -> None:
    lock = root / "customers/demo/dvc.lock"
    with OpenRuns.open(local(root).ledger_url) as open_runs:
        held, _ = open_runs.acquire("demo", Process.this())
        assert open_runs.save_state(held, {"dvc.lock": lock.read_text()})
    shutil.rmtree(root / "work")
    lock.unlink()
    assert plan_of(root) == upgrade.CustomerPlan(customer="demo")
    install(export=99)
    assert list(plan_of(root).again) == ["export"]


def test_the_cost_is_what_the_run_is_estimated_at(root: Path, install: Callable[..., None]) -> None:
    install(distill=99)
    settings, workspace = local(root), Workspace.load(root, "demo")
    began = NOON.timestamp() + 20_130
    history = {
        "steps": [{"step": i + 1, "at": began + 36 * i} for i in range(101)],
        "pace_key": pace_key(workspace.params.distill, settings),
    }
    workspace.folder("distill").mkdir(parents=True)
    (workspace.folder("distill") / "history.json").write_text(json.dumps(history))
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add_all(
            [
                charge("distill", "demo-2", 20_100, 20_100 + 101 * 36 + 60),
                *(charge(stage, "demo-2", 30_000, 30_040) for stage in STAGES[4:]),
            ]
        )
        found = plan_of(root)
        params.run(workspace)
        stages = ("distill", "evaluate", "export", "gate")
        cost = estimated(workspace, settings, ledger, stages=stages, may_spend_usd=95)  # type: ignore[arg-type]
    assert found.cost == cost and cost.likely_usd > 0 and not found.note


def test_a_stage_without_training_is_estimated_by_its_changed_params(
    root: Path, install: Callable[..., None]
) -> None:
    install(gate=99)
    settings, workspace = local(root), Workspace.load(root, "demo")
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge("gate", "demo-2", 30_000, 30_040))
        found = plan_of(root)
        assert found.cost is not None and found.cost.high_usd > 2 * found.cost.likely_usd
        params.run(workspace)
        cost = estimated(workspace, settings, ledger, stages=("gate",), may_spend_usd=95)  # type: ignore[arg-type]
    assert found.cost == cost


def test_what_was_never_timed_costs_what_it_cost_last_and_what_was_never_charged_is_unknown(
    root: Path, install: Callable[..., None]
) -> None:
    install(distill=99)
    assert plan_of(root).cost is None and "no ledger" in plan_of(root).note
    with Ledger.open(local(root).ledger_url) as ledger:
        ledger.add_all([charge(s, "demo-2", 0, 45) for s in STAGES if s != "gate"])
        assert plan_of(root).cost is None and "not every stage" in plan_of(root).note
        ledger.add(charge("gate", "demo-1", 0, 45))
        cost = plan_of(root).cost
        ledger.add(charge("gate", "demo-0", 0, 44))  # an earlier one
    assert cost is not None and cost.likely_usd == 4 * charge("gate", "demo-1", 0, 45).amount_usd


def test_an_older_ledger_is_read_and_not_migrated(root: Path, install: Callable[..., None]) -> None:
    install(gate=99)
    url = local(root).ledger_url
    with Ledger.open(url) as ledger:
        ledger.add(charge("gate", "demo-1", 0, 45))
    file = root / "state/ledger.db"
    with sqlite3.connect(file) as database:
        database.executescript("drop table open_runs; update ledger_version set version_num='0003'")
    found = upgrade.plan(local(root))
    assert found.customers[0].cost is not None
    assert found.ledger.found == "0003"
    pending = [step.partition(":")[0] for step in found.ledger.pending]
    assert pending[0] == "0004" and pending[-1] == REVISION
    with sqlite3.connect(file) as database:
        assert database.execute("select version_num from ledger_version").fetchone() == ("0003",)
        database.execute("update ledger_version set version_num='9999'")
    with pytest.raises(UserError, match=r"9999.*newer"):
        upgrade.plan(local(root))


def test_a_customer_whose_params_are_refused_leaves_the_others_planned(
    root: Path, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(export=99)
    document = configs.read(root)
    document["customers"] |= {
        "new": {"source": "videos", "use_case": "education"},
        "old": {"source": "videos", "use_case": "education", "gate": {"max_others_share": 0.5}},
    }
    configs.write(root, document)
    monkeypatch.setenv("TURBO_VAED_ROOT", str(root))
    answer = CliRunner().invoke(app, ["upgrade", "plan", "--format", "json"])
    assert answer.exit_code == 2
    found = {one["customer"]: one for one in json.loads(answer.stdout)["customers"]}
    assert list(found["demo"]["again"]) == ["export"]
    assert (found["new"]["again"], found["new"]["note"]) == ({}, "has not run yet")
    assert "max_background_cpu_share" in found["old"]["error"]
    assert CliRunner().invoke(app, ["upgrade", "plan", "demo"]).exit_code == 0
    assert CliRunner().invoke(app, ["upgrade", "plan", "nobody"]).exit_code != 0


@pytest.mark.slow
def test_dvc_agrees(root: Path, install: Callable[..., None]) -> None:
    """With the outputs and the lock that DVC itself made, once the new version has written."""
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    add = ["remote", "add", "--default", "--quiet", "local", "state/remote"]
    subprocess.run([sys.executable, "-m", "dvc", *add], cwd=root, check=True)
    remotes.write(root, "demo")
    work, lock = root / "work/demo", root / "customers/demo/dvc.lock"
    lock.unlink()
    for stage in STAGES:
        (work / stage / "student").mkdir(parents=True)
        (work / stage / "student/weights").write_text(stage)
        (work / stage / "manifest.parquet").write_text(stage)
    commit = ["commit", "--force", "--quiet", "customers/demo/dvc.yaml"]
    subprocess.run([sys.executable, "-m", "dvc", *commit], cwd=root, check=True)
    install(WithKey)
    assert not plan_of(root).again
    install(OfOtherDefault, evaluate=99)
    template = yaml.safe_load((root / "dvc.yaml").read_text())
    template["stages"]["export"]["deps"].append("videos/one.mp4")
    template["stages"]["clip"]["cmd"] += " --fast"
    (root / "dvc.yaml").write_text(yaml.safe_dump(template))
    planned = list(plan_of(root).again)
    assert planned == ["clip", "distill", "evaluate", "export"]
    assert outputs.stale_stages(Workspace.load(root, "demo")) == planned
    assert list(plan_of(root).again) == planned, "also when it is written"
