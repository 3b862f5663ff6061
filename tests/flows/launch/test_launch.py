"""A run on a machine of its own, which ends whatever happens.

Ray's launcher is the real one, EC2 is moto's server; `ssh` and `rsync`, which nothing answers
here, are executables that record their arguments.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import runs
from flows.launch import launch, launch_config
from flows.launch.instance_selection import select_instance
from flows.to_do import ToDo
from tests.flows.launch.places import on_postgres
from turbo_vaed.costs import PriceBook
from turbo_vaed.errors import Fault
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

FAKE = """#!/bin/sh
# Stands in for {name}: no machine answers here. Keeps its arguments, and hands out what a run
# would have left there.
echo "{name} $*" >> {folder}/calls
for last; do :; done
case "{name} $last" in
  "rsync "*/fetched/exit-code) echo 1 > "$last";;
  "rsync "*/fetched/made) mkdir -p "$last/gate"; echo there > "$last/gate/verdict.json";;
  "rsync "*/fetched/pipeline) mkdir "$last"; cp {folder}/dvc.lock "$last";;
esac
"""
THEIR_LOCK = {"schema": "2.0", "stages": {"gate": {"cmd": "new"}}}


@pytest.fixture
def remote(
    s3_url: str, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """EC2 (moto's), and an `ssh` and `rsync` that record their arguments in this folder."""
    import boto3

    folder, home = tmp_path / "remote", tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    home.mkdir()
    (folder / "dvc.lock").write_text(yaml.safe_dump(THEIR_LOCK))
    for name in ("ssh", "rsync"):
        fake = folder / "bin" / name
        fake.write_text(FAKE.format(name=name, folder=folder))
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # Ray's launcher keeps what it looked up there
    iam = boto3.client("iam")
    if not iam.list_instance_profiles()["InstanceProfiles"]:
        iam.create_instance_profile(InstanceProfileName="turbo-vaed")
    return folder


def machines() -> list[dict[str, Any]]:
    import boto3

    found = boto3.client("ec2", region_name="eu-central-1").describe_instances()
    return [machine for each in found["Reservations"] for machine in each["Instances"]]


@pytest.mark.slow
def test_a_run_starts_its_machine_and_ends_it(
    remote: Path,
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    todo: ToDo,
    book: PriceBook,
) -> None:
    (workspace.work / "gate" / "candidates").mkdir(parents=True)
    selection = select_instance(workspace, settings, todo, book=book)
    config = launch_config.prepare(
        workspace, on_postgres(settings), selection, run, name=launch_config.MACHINE
    )
    with launch.started(config):
        (machine,) = machines()
        assert machine["State"]["Name"] == "running"
        assert machine["InstanceLifecycle"] == "spot"
        assert machine["Placement"]["AvailabilityZone"] == "eu-central-1b"
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert tags["turbo-vaed:run"] == run.run_id
        ran = launch.run_there(workspace, config)
        assert ran.exit_code == 1, "refused by the gate"
        assert ran.fetched_bytes == len("1\n" + "there\n" + yaml.safe_dump(THEIR_LOCK))
    assert [machine["State"]["Name"] for machine in machines()] == ["terminated"]
    assert (workspace.work / "gate" / "verdict.json").read_text() == "there\n"
    assert not (workspace.work / "gate" / "candidates").exists(), "what is gone there is gone here"
    assert yaml.safe_load(workspace.dvc_lock.read_text()) == THEIR_LOCK
    assert not config.exists()
    calls = (remote / "calls").read_text()
    order = ["/ec2/checkout", "make setup", "ray start --head", "node watch", "turbo-vaed poc demo"]
    places = [calls.index(words) for words in order]
    assert places == sorted(places)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Ray's launcher as a table of exit codes; returns the verbs that it was given."""

    def answer(**codes: int) -> list[str]:
        given: list[str] = []

        def ray(verb: str, *_: str) -> int:
            given.append(verb)
            return codes.get(verb.replace("-", "_"), 0)

        monkeypatch.setattr(launch, "_ray", ray)
        return given

    return answer


def test_a_machine_that_cannot_be_set_up_is_ended(launcher: Callable[..., list[str]]) -> None:
    given = launcher(up=1)
    with pytest.raises(Fault, match="started"), launch.started(Path("m.yaml")):
        raise AssertionError("nothing runs on it")
    assert given == ["up", "down"]


@pytest.mark.parametrize("lost", [{"exec": 1}, {"rsync_down": 1}, {}])
def test_a_lost_machine_is_a_fault_and_is_ended(
    workspace: Workspace, launcher: Callable[..., list[str]], lost: dict[str, int]
) -> None:
    """With an exit code of an earlier run lying about, which must not pass for this one's."""
    stale = launch_config.folder(workspace) / "fetched"
    stale.mkdir(parents=True)
    (stale / launch.EXIT_CODE).write_text("0")
    given = launcher(**lost)
    with pytest.raises(Fault, match="was lost"), launch.started(Path("m.yaml")):
        launch.run_there(workspace, Path("m.yaml"))
    assert (given[:2], given[-1]) == (["up", "exec"], "down")


def test_a_first_run_without_a_successful_stage_is_not_a_lost_machine(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC has written no lock by then, there as here."""

    def ray(verb: str, *arguments: str) -> int:
        if verb != "rsync-down":
            return 0
        source, target = arguments[1].removeprefix(launch_config.HOME), Path(arguments[2])
        if source == f"/{launch.EXIT_CODE}":
            target.write_text("1\n")
        elif source == "/work/demo/":
            (target / "report").mkdir(parents=True)
            (target / "report" / "report.html").write_text("refused")
        elif source == "/customers/demo/":
            target.mkdir()
            (target / "dvc.yaml").touch()
        else:
            return 23  # as rsync ends for what is not there
        return 0

    monkeypatch.setattr(launch, "_ray", ray)
    assert launch.run_there(workspace, Path("m.yaml")).exit_code == 1
    assert workspace.report.read_text() == "refused"
    assert not workspace.dvc_lock.exists()


def test_a_closed_terminal_ends_the_machine(launcher: Callable[..., list[str]]) -> None:
    given = launcher()
    with pytest.raises(KeyboardInterrupt, match="SIGHUP"), launch.started(Path("m.yaml")):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
    assert given == ["up", "down"]


def test_a_machine_that_cannot_be_ended_is_a_fault_with_the_command_to_retry(
    launcher: Callable[..., list[str]],
) -> None:
    launcher(down=1)
    with (
        pytest.raises(Fault, match=r"m\.yaml .*turbo-vaed ec2 down"),
        launch.started(Path("m.yaml")),
    ):
        pass
