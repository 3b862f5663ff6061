"""The configuration of Ray's launcher: type, market, zone, tags, files, and no secret."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import runs
from flows.launch import launch_config
from flows.launch.instance_selection import select_instance
from flows.to_do import ToDo
from tests.flows.launch.places import REPOSITORY, on_postgres
from turbo_vaed.costs import PriceBook
from turbo_vaed.errors import UserError
from turbo_vaed.planning.ec2_costs import TEMPLATE, node_config, read_template
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


def template() -> dict[str, Any]:
    return read_template(REPOSITORY)


def test_embedded_stores_that_would_be_lost_with_the_machine_are_refused(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> None:
    embedded = dataclasses.replace(
        settings, mlflow_tracking_uri="sqlite:///state/mlflow.db", checkpoints_url="work"
    )
    selection = select_instance(workspace, settings, todo, book=book)
    with pytest.raises(UserError) as refusal:
        launch_config.prepare(workspace, embedded, selection, run, name=launch_config.PLANNED)
    for name in ("TURBO_VAED_LEDGER_URL", "MLFLOW_TRACKING_URI", "TURBO_VAED_CHECKPOINTS"):
        assert name in str(refusal.value)
    assert not (workspace.work / "ec2").exists()


@pytest.fixture
def prepared(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> Callable[..., dict[str, str]]:
    """`prepared(perceptual_weights=)`: what the launch config mounts for a job with LPIPS."""

    def mounts(perceptual_weights: str) -> dict[str, str]:
        distill = dataclasses.replace(
            workspace.params.distill, perceptual="lpips", perceptual_weights=perceptual_weights
        )
        params = dataclasses.replace(workspace.params, distill=distill)
        changed = dataclasses.replace(workspace, params=params)
        written = launch_config.prepare(
            changed,
            on_postgres(settings),
            select_instance(workspace, settings, todo, book=book),
            run,
            name=launch_config.PLANNED,
        )
        found: dict[str, str] = yaml.safe_load(written.read_text())["file_mounts"]
        return found

    return mounts


def test_the_machine_gets_the_perceptual_weights(
    prepared: Callable[..., dict[str, str]], settings: Settings
) -> None:
    (settings.root / "assets/lpips.pt").touch()
    mounts = prepared("assets/lpips.pt")
    assert mounts["~/turbo-vaed/assets/lpips.pt"] == str(settings.root / "assets/lpips.pt")
    assert not any("lpips" in place for place in prepared("hub"))


def test_perceptual_weights_outside_the_checkout_are_refused(
    prepared: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"distill\.perceptual_weights: .*elsewhere\.pt"):
        prepared(str(tmp_path / "elsewhere.pt"))


def test_a_git_worktree_is_refused(
    prepared: Callable[..., dict[str, str]], settings: Settings
) -> None:
    """Its `.git` is a file that names a folder of this machine."""
    elsewhere = settings.root.parent / "worktree.git"
    (settings.root / ".git").rename(elsewhere)
    (settings.root / ".git").write_text(f"gitdir: {elsewhere}\n")
    with pytest.raises(UserError, match="git worktree"):
        prepared("hub")


def test_the_launch_config_has_type_market_zone_tags_files_and_no_secret(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    todo: ToDo,
    book: PriceBook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t 'quoted'")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-machine")
    (settings.root / ".gitignore").write_text("/work/\n/secret\n")
    (settings.root / "secret").touch()
    elsewhere = tmp_path / "their videos"
    elsewhere.mkdir()
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, source=str(elsewhere))
    )
    selection = select_instance(workspace, settings, todo, book=book)
    written = launch_config.prepare(
        workspace, on_postgres(settings), selection, run, name=launch_config.MACHINE
    )
    text = written.read_text()
    config = yaml.safe_load(text)
    assert "s3cr3t" not in text and "not-for-the-machine" not in text
    assert config["cluster_name"] == f"turbo-vaed-{run.run_id}"
    assert config["provider"]["region"] == "eu-central-1"
    assert config["provider"]["availability_zone"] == "eu-central-1b"
    node = config["available_node_types"]["machine"]["node_config"]
    assert node["InstanceType"] == "g5.xlarge"
    assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert node["UserData"] == f"#!/bin/sh\nshutdown -h +{selection.minutes}\n"
    tags = {tag["Key"]: tag["Value"] for tag in node["TagSpecifications"][0]["Tags"]}
    assert tags["turbo-vaed:run"] == run.run_id and tags["turbo-vaed:customer"] == "demo"
    kinds = [spec["ResourceType"] for spec in node["TagSpecifications"]]
    assert kinds == ["instance", "volume", "spot-instances-request"]
    mounts = config["file_mounts"]
    assert all(Path(here).exists() for here in mounts.values())
    sent = Path(mounts["~/turbo-vaed"])
    assert (sent / "params.yaml").is_file() and (sent / "infra/ray/machine.yaml").is_file()
    assert not (sent / "secret").exists() and not (sent / "work").exists()
    assert mounts["~/turbo-vaed/work/demo/distill"] == str(workspace.work / "distill")
    assert mounts["~/turbo-vaed/assets/teachers/tiny-ltx"].endswith("assets/teachers/tiny-ltx")
    assert not any("/ec2" in place for place in mounts)
    assert mounts["~/sources/demo"] == str(elsewhere)
    assert f"sudo ln -sfn ~/sources/demo '{elsewhere}'" in config["setup_commands"]
    environment = workspace.work / "ec2" / "environment"
    assert environment.stat().st_mode & 0o077 == 0, "others must not read it"
    echoed = subprocess.run(
        [
            "sh",
            "-c",
            f". {environment} 2> /dev/null; "
            "echo $MLFLOW_TRACKING_PASSWORD $RAY_ADDRESS $TURBO_VAED_MACHINE_OVERHEAD_USD",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert echoed.stdout == f"s3cr3t 'quoted' auto {selection.machine_overhead_usd}\n"
    assert "AWS_SECRET" not in environment.read_text()


def test_on_demand_machines_name_no_zone(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> None:
    selection = select_instance(workspace, settings, todo, book=book, market="on-demand")
    config = launch_config.configuration(workspace, run, selection, template())
    node = config["available_node_types"]["machine"]["node_config"]
    assert "InstanceMarketOptions" not in node and "availability_zone" not in config["provider"]
    assert [s["ResourceType"] for s in node["TagSpecifications"]] == ["instance", "volume"]


def test_a_template_that_lacks_a_part_is_named(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> None:
    selection = select_instance(workspace, settings, todo, book=book)
    with pytest.raises(UserError, match=r"infra/ray/machine\.yaml .*'provider'"):
        launch_config.configuration(
            workspace, run, selection, {k: v for k, v in template().items() if k != "provider"}
        )


@pytest.mark.parametrize(
    "volumes", [[], [{"VirtualName": "ephemeral0"}], [{"Ebs": {"VolumeType": "gp3"}}]]
)
def test_a_volume_without_a_size_is_refused(
    workspace: Workspace, settings: Settings, todo: ToDo, book: PriceBook, volumes: list[Any]
) -> None:
    changed = template()
    node_config(changed)["BlockDeviceMappings"] = volumes
    (settings.root / TEMPLATE).write_text(yaml.safe_dump(changed))
    with pytest.raises(UserError, match=r"BlockDeviceMappings .*Ebs"):
        select_instance(workspace, settings, todo, book=book)


def test_a_machine_that_may_be_up_is_not_overwritten(
    workspace: Workspace, settings: Settings, run: runs.Run, todo: ToDo, book: PriceBook
) -> None:
    selection = select_instance(workspace, settings, todo, book=book)
    launch_config.prepare(
        workspace, on_postgres(settings), selection, run, name=launch_config.MACHINE
    )
    for name in (launch_config.MACHINE, launch_config.PLANNED):
        with pytest.raises(UserError, match="turbo-vaed ec2 down demo"):
            launch_config.prepare(workspace, on_postgres(settings), selection, run, name=name)
