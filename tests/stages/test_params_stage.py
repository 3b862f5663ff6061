"""The stage `params`: what an edit of the configuration reaches, and what a stage reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import configs
from turbo_vaed.config.devices import AdbProfile, HostProfile
from turbo_vaed.config.sections import COSTS
from turbo_vaed.config.stages import STAGES
from turbo_vaed.errors import CorruptFile, Refused, UserError
from turbo_vaed.gate import read_verdict
from turbo_vaed.planning.compatibility import student_config
from turbo_vaed.planning.pricing import limits_of, spending_of
from turbo_vaed.runtime import digests
from turbo_vaed.runtime.digests import DigestCache
from turbo_vaed.settings import Settings
from turbo_vaed.stages import gate, params
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
TEACHER = "assets/teachers/tiny-ltx"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / TEACHER, tmp_path / TEACHER)
    return configs.copy_to(tmp_path)


@pytest.fixture
def changed(root: Path) -> Callable[..., set[str]]:
    """`changed()`: the sections that differ from those of the last call."""
    folder, before = root / "work" / "demo" / "params", {}

    def run(**overrides: Any) -> set[str]:
        if overrides:
            configs.override(configs.copy_to(root), **overrides)
        params.run(Workspace.load(root, "demo"))
        after = {path.stem: path.read_bytes() for path in folder.iterdir()}
        found = {name for name in after if after[name] != before.get(name)}
        before.update(after)
        return found

    run()
    return run


def test_there_is_a_section_for_every_stage_and_an_unchanged_one_is_not_written(
    root: Path, changed: Callable[..., set[str]]
) -> None:
    folder = root / "work" / "demo" / "params"
    assert {path.name for path in folder.iterdir()} == {f"{n}.yaml" for n in (*STAGES, COSTS)}
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert changed() == set()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_no_section_changes_while_a_stage_runs_by_it(
    root: Path, changed: Callable[..., set[str]]
) -> None:
    """DVC records a stage's section when the stage ends."""
    with Workspace.for_stage(root, "demo", "gate").reading_sections():
        assert changed() == set(), "nothing to write"
        with pytest.raises(Refused, match="is running"):
            changed(gate={"max_samples": 61})
    assert changed() == {"gate"}


@pytest.mark.parametrize(
    ("overrides", "reached"),
    [
        ({"roi": {"devices": {"likely": 12_345}}}, set()),
        ({"gate": {"max_samples": 61}}, {"gate"}),
        ({"device": {"shape": [9, 720, 1280]}}, {"export", "gate", COSTS}),
        ({"thresholds": {"min_psnr": 23}}, {"gate"}),
        ({"prices": {"local_usd_per_hour": 1}}, {COSTS}),
        ({"budget": {"customer_month_usd": 1000}}, {COSTS}),
        ({"budget": {"run_usd": 96}}, {"distill", COSTS}),
        ({"distill": {"steps": 7}}, {"distill"}),
        ({"distill": {"stop_usd_per_tenth_db": 1}}, {"distill"}),
        ({"validate": {"min_seconds": 2}}, {"validate"}),
        ({"evaluate": {"worst_share": 0.1}}, {"evaluate"}),
        ({"clip": {"frames": 17}}, {"clip", "distill", "export"}),
    ],
)
def test_an_edit_changes_the_sections_of_the_stages_it_concerns(
    changed: Callable[..., set[str]], overrides: dict[str, Any], reached: set[str]
) -> None:
    assert changed(**overrides) == reached


def test_a_changed_teacher_changes_the_section_and_another_customers_does_not(
    root: Path, changed: Callable[..., set[str]]
) -> None:
    shutil.copytree(root / TEACHER, root / "assets/teachers/of-another-customer")
    assert changed() == set()
    (root / TEACHER / "training.json").write_text("{}")
    assert changed() == set(), "it is no part of what a teacher computes"
    path = root / TEACHER / "config.json"
    path.write_text(path.read_text() + "\n")
    assert changed() == {"encode", "distill", "gate"}


def test_changed_perceptual_weights_change_the_section(
    root: Path, changed: Callable[..., set[str]]
) -> None:
    weights = root / "lpips.safetensors"
    overrides = {"distill": {"perceptual": "lpips", "perceptual_weights": weights.name}}
    with pytest.raises(UserError, match=r"perceptual_weights.*lpips\.safetensors"):
        changed(**overrides)
    weights.write_bytes(b"one")
    assert changed(**overrides) == {"distill"}
    weights.write_bytes(b"another")
    assert changed(**overrides) == {"distill"}


def test_a_changed_runner_changes_the_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, runner = DigestCache(tmp_path / "digests.json"), tmp_path / "runner"
    phone, host = (
        AdbProfile(name="p", kind="adb", runner="runner"),
        HostProfile(name="h", kind="host"),
    )
    found = [params.runner_sha256(phone, tmp_path, cache)]
    for content in (b"one", b"another"):
        runner.write_bytes(content)
        found.append(params.runner_sha256(phone, tmp_path, cache))
    found.append(params.runner_sha256(host, tmp_path, cache))
    monkeypatch.setattr(params, "_version", lambda name: "99")
    found.append(params.runner_sha256(host, tmp_path, cache))
    assert len(set(found)) == len(found)


def test_a_new_stage_version_changes_its_section_and_no_other(
    changed: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = params.stage_version
    monkeypatch.setattr(params, "stage_version", lambda stage: version(stage) + (stage == "encode"))
    assert changed() == {"encode"}


def test_the_version_is_that_of_the_stages_module() -> None:
    assert {stage: params.stage_version(stage) for stage in STAGES} == {
        stage: __import__(f"turbo_vaed.stages.{stage}", fromlist=["x"]).STAGE_VERSION
        for stage in STAGES
    }


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hashed = tmp_path / "w.safetensors", []
    of = digests.sha256_file
    monkeypatch.setattr(digests, "sha256_file", lambda path: hashed.append(path) or of(path))
    path.write_bytes(b"one")
    first = DigestCache(tmp_path / "cache.json").sha256(path)
    assert DigestCache(tmp_path / "cache.json").sha256(path) == first and len(hashed) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert DigestCache(tmp_path / "cache.json").sha256(path) != first and len(hashed) == 2
    (tmp_path / "cache.json").write_text("{")  # a digest that is lost is computed again
    assert DigestCache(tmp_path / "cache.json").sha256(path) != first and len(hashed) == 3


def test_a_stage_has_what_it_reads_and_nothing_else(root: Path, changed: Any) -> None:
    whole, settings = Workspace.load(root, "demo"), Settings.from_environment(root)
    for stage in STAGES:
        own = Workspace.for_stage(root, "demo", stage)
        assert limits_of(own.params) == limits_of(whole.params)
        assert own.params.prices == whole.params.prices
        with pytest.raises(AttributeError, match=r"Params\.roi"):
            own.params.roi  # noqa: B018
    for stage in ("encode", "distill"):
        own = Workspace.for_stage(root, "demo", stage)
        assert (
            spending_of(own, settings, stage).budget == spending_of(whole, settings, stage).budget
        )
        assert own.params.encode == whole.params.encode
    assert student_config(own) == student_config(whole)
    assert own.params.distill == whole.params.distill
    with pytest.raises(AttributeError, match=r"ClipParams\.seed"):
        own.params.clip.seed  # noqa: B018
    with pytest.raises(AttributeError, match=r"Params\.thresholds"):
        own.params.thresholds  # noqa: B018
    own = Workspace.for_stage(root, "demo", "gate")
    assert (own.params.device, own.params.thresholds) == (
        whole.params.device,
        whole.params.thresholds,
    )


def test_a_missing_and_a_broken_section_are_refused_with_the_command_to_run(
    root: Path, changed: Any
) -> None:
    path = root / "work" / "demo" / "params" / "clip.yaml"
    path.write_text("clip: {frames: many}\n")
    with pytest.raises(CorruptFile, match="turbo-vaed stage params demo"):
        Workspace.for_stage(root, "demo", "clip")
    path.unlink()
    with pytest.raises(UserError, match="turbo-vaed stage params demo"):
        Workspace.for_stage(root, "demo", "clip")


def test_limits_that_are_edited_while_a_run_is_on_judge_the_next_one(
    judged_copy: Workspace, remeasured: Callable[[], None]
) -> None:
    """The gate judges by its section, which is what DVC records, whatever the files say by then."""
    remeasured()
    root, folder = judged_copy.root, judged_copy.folder("gate")

    def psnr_limit() -> float:
        gate.run(Workspace.for_stage(root, "demo", "gate"))
        return {c.name: c.limit for c in read_verdict(folder / "verdict.json").checks}["psnr"]

    before = psnr_limit()
    teacher = {"teacher_weights": judged_copy.params.encode.teacher_weights}
    targets = {"targets": list(judged_copy.params.export.targets)}
    configs.override(root, thresholds={"min_psnr": 99.0}, encode=teacher, export=targets)
    recorded = yaml.safe_load((judged_copy.folder("params") / "gate.yaml").read_text())
    assert psnr_limit() == before == recorded["thresholds"]["min_psnr"] != 99.0
    params.run(Workspace.load(root, "demo"))
    assert psnr_limit() == 99.0


def test_stages_depend_on_their_sections_and_never_on_files_that_a_person_edits() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert set(stages) == {"params", *STAGES}
    for name, stage in stages.items():
        assert "params" not in stage
        depends = [str(one) for one in stage.get("deps", ())]
        assert not any(one.startswith("assets") or "costs" in one for one in depends)
        own = [one for one in depends if "/params/" in one]
        assert [Path(one).name for one in own] == ([] if name == "params" else [f"{name}.yaml"])
