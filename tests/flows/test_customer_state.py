"""Another checkout on the same ledger goes on where the last run of a customer ended."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows import collect_garbage, customer_state, dvc, outputs, runs
from flows.open_run import Heartbeat, Reached
from turbo_vaed.config import pipeline
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.runtime.processes import Process


@pytest.fixture
def open_runs(tmp_path):
    with OpenRuns.open(f"sqlite:///{tmp_path}/ledger.db") as found:
        yield found


def checkout(root: Path) -> SimpleNamespace:
    work = root / "work/acme"
    (work / "report").mkdir(parents=True, exist_ok=True)
    lock = pipeline.folder(root, "acme") / "dvc.lock"
    return SimpleNamespace(
        customer="acme", root=root, work=work, dvc_lock=lock, folder=work.joinpath,
        report=work / "report/report.html", params=SimpleNamespace(source="videos"),
    )  # fmt: skip


def heartbeat_of(open_runs: OpenRuns) -> Heartbeat:
    mine, _ = open_runs.acquire("acme", Process.this())
    return Heartbeat(open_runs, mine, Reached(), lambda: False, interrupt=lambda: None)


def end(heartbeat: Heartbeat) -> None:
    heartbeat.open_runs.end(heartbeat._mine)


def test_another_checkout_takes_what_the_last_run_left(tmp_path, open_runs):
    here, there = checkout(tmp_path / "a"), checkout(tmp_path / "b")
    first = runs.write(here.work, runs.fresh("acme"))
    here.dvc_lock.parent.mkdir(parents=True)
    here.dvc_lock.write_text("stages: {}\n")
    held = heartbeat_of(open_runs)
    customer_state.save(here, held)
    end(held)
    runs.write(there.work, runs.fresh("acme"))
    (there.work / "begun.json").write_text("{}")
    there.report.touch()
    assert customer_state.fetch(there, open_runs)
    assert runs.read(there.work) == first
    assert there.dvc_lock.read_text() == "stages: {}\n"
    assert not (there.work / "begun.json").exists(), "of a run that was over"
    assert not there.report.exists(), "of that run, too"
    assert not customer_state.fetch(there, open_runs) and not customer_state.fetch(here, open_runs)


def test_a_stage_by_hand_stays_where_no_other_checkout_has_run_since(tmp_path, open_runs):
    here = checkout(tmp_path / "a")
    runs.write(here.work, runs.fresh("acme"))
    assert not customer_state.fetch(here, open_runs), "nobody has left anything"
    held = heartbeat_of(open_runs)
    customer_state.save(here, held)
    here.dvc_lock.parent.mkdir(parents=True)
    here.dvc_lock.write_text("by hand")
    assert not customer_state.fetch(here, open_runs)
    assert here.dvc_lock.read_text() == "by hand"


def test_a_run_that_has_lost_its_customer_leaves_nothing(tmp_path, open_runs):
    here, there = checkout(tmp_path / "a"), checkout(tmp_path / "b")
    late = heartbeat_of(open_runs)
    end(late)
    held = heartbeat_of(open_runs)
    theirs = runs.write(there.work, runs.fresh("acme"))
    customer_state.save(there, held)
    runs.write(here.work, runs.fresh("acme"))
    customer_state.save(here, late)
    assert late.is_lost
    assert runs.RUN_FILE in open_runs.state_of("acme").files
    assert customer_state.fetch(here, open_runs) and runs.read(here.work) == theirs


STAGES = ("validate", "clip", "gate")


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A checkout in which three stages have run and were pushed; what a fresh one has of it."""
    monkeypatch.setattr(outputs, "STAGES", STAGES)
    monkeypatch.setattr(outputs.params, "run", lambda _: None)
    monkeypatch.setattr(outputs.pipeline, "write", lambda *_: None)
    here = checkout(tmp_path / "a")
    (here.work / "params").mkdir()
    made, before = {}, "videos"
    (here.root / "videos").write_text("1")
    for stage in STAGES:
        (here.work / "params" / stage).write_text("1")
        out = f"work/acme/{stage}"
        made[stage] = {
            "wdir": "../..", "cmd": f"mkdir -p {out}; cat {before} work/acme/params/{stage}"
            f" > {out}/made", "deps": [before, f"work/acme/params/{stage}"],
            "outs": [{out: {"remote": "customer-acme"}}],
        }  # fmt: skip
        before = f"{out}/made"
    here.dvc_lock.parent.mkdir(parents=True)
    here.dvc_lock.with_name("dvc.yaml").write_text(yaml.safe_dump({"stages": made}))
    runs.write(here.work, runs.Run(run_id="acme-1", started="2026-11-30", status="done"))
    remote = ("remote", "add", "-d", "shared", str(tmp_path / "remote"))
    subprocess.run(["git", "init", "-q"], cwd=here.root, check=True)
    for command in (("init", "-q"), remote, ("repro", str(here.dvc_lock.with_name("dvc.yaml")))):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=here.root, check=True)
    outputs.remotes.write(here.root, "acme")
    dvc.push(here.root, "acme", STAGES)
    assert list((tmp_path / "remote").iterdir()) == [tmp_path / "remote/acme"], "its own prefix"
    fresh = checkout(tmp_path / "b")
    shutil.copytree(here.root, fresh.root, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("cache", "tmp", *STAGES))  # fmt: skip
    shutil.copytree(here.work / "params", fresh.work / "params", dirs_exist_ok=True)
    return fresh


@pytest.mark.slow
def test_a_fresh_checkout_brings_what_it_needs(shared, tmp_path):
    assert outputs.stale_stages(shared) == []
    assert not (shared.work / "clip").exists(), "only stages read it"
    assert (shared.work / "gate/made").read_text() == "1111"
    with pytest.raises(Fault, match="neither here nor"):
        shutil.move(tmp_path / "remote", tmp_path / "lost")
        outputs.pull_inputs(shared, "gate")
    shutil.move(tmp_path / "lost", tmp_path / "remote")
    (shared.work / "params/gate").write_text("2")
    assert outputs.stale_stages(shared) == ["gate"]
    assert (shared.work / "clip/made").exists()


@pytest.mark.slow
def test_a_checkout_with_an_earlier_runs_outputs_takes_the_newer_ones(shared, tmp_path):
    """They would count as changed, and be made and paid again."""
    other = checkout(tmp_path / "other")
    shutil.copytree(tmp_path / "a", other.root, dirs_exist_ok=True)
    with OpenRuns.open(f"sqlite:///{tmp_path}/ledger.db") as open_runs:
        (other.work / "params/clip").write_text("2")
        assert outputs.stale_stages(other) == ["clip"]
        pipeline_file = str(other.dvc_lock.with_name("dvc.yaml"))
        subprocess.run([sys.executable, "-m", "dvc", "repro", pipeline_file], cwd=other.root)
        dvc.push(other.root, "acme", STAGES)
        held = heartbeat_of(open_runs)
        customer_state.save(other, held)
        end(held)
        here = checkout(tmp_path / "a")
        (here.work / "params/clip").write_text("2")
        assert (here.work / "gate/made").read_text() == "1111"
        assert customer_state.fetch(here, open_runs)
        assert (here.work / "validate/made").exists(), "it is the same"
        assert outputs.stale_stages(here) == []
        assert (here.work / "gate/made").read_text() == "1121"
        assert customer_state.is_saved(here, open_runs)


@pytest.mark.slow
def test_a_pull_that_was_cut_off_is_made_again_and_not_the_stage(shared, monkeypatch):
    pull = dvc.pull

    def cut_off(root, customer, stages):
        assert pull(root, customer, stages)
        (shared.work / "gate/made").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(dvc, "pull", cut_off)
    with pytest.raises(KeyboardInterrupt):
        outputs.stale_stages(shared)
    monkeypatch.setattr(dvc, "pull", pull)
    assert outputs.stale_stages(shared) == []
    assert (shared.work / "gate/made").exists()


@pytest.mark.slow
def test_another_remote_is_a_fault_and_not_a_paid_run(shared, tmp_path):
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(Fault, match="dvc remote list"):
        outputs.stale_stages(shared)


@pytest.mark.slow
def test_what_an_unfinished_run_left_is_compared_in_full(shared, tmp_path):
    """Its first stage was run again and its second was not: DVC sees that from the files alone."""
    runs.write(shared.work, runs.fresh("acme"))
    lock = yaml.safe_load(shared.dvc_lock.read_text())
    (dep,) = (one for one in lock["stages"]["clip"]["deps"] if one["path"].endswith("made"))
    dep["md5"] = "0" * 32
    shared.dvc_lock.write_text(yaml.safe_dump(lock))
    assert outputs.stale_stages(shared) == ["clip"]
    shutil.rmtree(shared.work / "clip")
    shutil.rmtree(shared.root / ".dvc/cache")
    shutil.rmtree(tmp_path / "remote")
    assert "clip" in outputs.stale_stages(shared), "lost: it is made again"


@pytest.mark.slow
def test_garbage_is_what_the_customers_last_run_does_not_refer_to(shared, tmp_path, monkeypatch):
    """Nor is that of a checkout which is behind; and nothing goes where something is missing."""
    url, objects = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "remote/acme/files/md5"
    settings = SimpleNamespace(root=shared.root, ledger_url=url)
    monkeypatch.setattr(collect_garbage.Workspace, "load", lambda *_: shared)
    monkeypatch.setattr(collect_garbage.pipeline, "write", lambda *_: None)
    wanted = {path for path in objects.rglob("*") if path.is_file()}
    (objects / "00").mkdir()
    (objects / "00" / ("1" * 30)).write_text("of an earlier run")
    with OpenRuns.open(url) as open_runs:
        assert "run turbo-vaed poc" in collect_garbage.collect(settings, "acme", is_dry=True)
        held = heartbeat_of(open_runs)
        customer_state.save(shared, held)
        end(held)
    assert collect_garbage.collect(settings, "acme", is_dry=True).startswith("1 ")
    with OpenRuns.open(url) as open_runs:
        mine, _ = open_runs.acquire("acme", Process.this())
        assert "is going on" in collect_garbage.collect(settings, "acme", is_dry=False)
        open_runs.end(mine)
    assert collect_garbage.collect(settings, "acme", is_dry=False)
    assert {path for path in objects.rglob("*") if path.is_file()} == wanted
    next(path for path in wanted if path.name.endswith(".dir")).unlink()
    with pytest.raises(Fault, match="lacks objects"):
        collect_garbage.collect(settings, "acme", is_dry=False)


def test_a_customers_remote_follows_the_default_one(tmp_path):
    def configured(*lines):
        (tmp_path / ".dvc/config").write_text("\n".join(lines))
        outputs.remotes.write(tmp_path, "acme")
        return (tmp_path / ".dvc/config.local").read_text().splitlines()

    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text("[cache]\n    type = copy  # mine\n")
    with pytest.raises(UserError, match="remote add"):
        configured("")
    disk = configured("[core]", "remote = disk", "['remote \"disk\"']", "url = /disk")
    assert "url = remote://disk/acme" in [line.strip() for line in disk]
    moved = configured("[core]", "remote = s3", "['remote \"s3\"']", "url = s3://bucket")
    assert [line.strip() for line in moved].count("url = remote://s3/acme") == 1
    assert any("# mine" in line for line in moved) and not any("disk" in x for x in moved)
