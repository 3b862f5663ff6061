"""The autoscaler's configuration, as Ray reads it."""

from __future__ import annotations

import copy
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.environments import SHAPES, candidate, environment, usd_per_hour
from tests.costs.listed import Listed
from turbo_vaed.cluster import autoscaler
from turbo_vaed.cluster.autoscaler import HEAD, node_types, render
from turbo_vaed.cluster.environment import FILE, read, volume_gib
from turbo_vaed.config.schema import PriceParams
from turbo_vaed.costs import PriceBook
from turbo_vaed.errors import UserError
from turbo_vaed.planning import cluster_config

EXAMPLE = Path(__file__).parents[2] / FILE.with_name("environment.example.yaml")


def types(*names: str, **given: Any) -> list[autoscaler.NodeType]:
    found, _ = node_types(
        given.pop("environment", environment()),
        [candidate(name) for name in names],
        SHAPES,
        given.pop("usd_per_hour", usd_per_hour),
    )
    return found


def rendered(order: list[autoscaler.NodeType], **given: Any) -> dict[str, Any]:
    affordable = given.pop("affordable", {each.name for each in order})
    return render(environment(), order, head_address="10.0.0.5:6379", affordable=affordable)


def test_spot_comes_before_on_demand_and_the_cheapest_for_the_same_work_first() -> None:
    order = types("g4dn.xlarge", "g5.xlarge", "g6.xlarge")
    assert [each.name for each in order] == [
        "g5.xlarge-spot", "g6.xlarge-spot", "g4dn.xlarge-spot",
        "g5.xlarge-on-demand", "g6.xlarge-on-demand", "g4dn.xlarge-on-demand",
    ]  # fmt: skip
    config = rendered(order)
    given = {name: each.get("priority", 0) for name, each in config["available_node_types"].items()}
    assert sorted(order, key=lambda each: -given[each.name]) == order
    assert given[HEAD] == 0


def test_zones_are_tried_from_the_cheapest_and_those_without_a_subnet_never() -> None:
    spot, on_demand = types("g6.xlarge")
    assert spot.zones == ("eu-central-1b", "eu-central-1a")  # c has no price on spot
    assert on_demand.zones == ("eu-central-1a", "eu-central-1b", "eu-central-1c")
    narrow = environment(subnets={"eu-central-1c": "subnet-c", "eu-central-1a": "subnet-a"})
    spot, _ = types("g6.xlarge", environment=narrow)
    assert spot.zones == ("eu-central-1a",)


def test_what_has_no_price_is_not_started_and_said() -> None:
    def unknown(name: str, market: str, region: str, zone: str | None) -> Decimal | None:
        return None if market == "spot" else usd_per_hour(name, market, region, zone)

    found, left_out = node_types(environment(), [candidate("g6.xlarge")], SHAPES, unknown)
    assert [each.name for each in found] == ["g6.xlarge-on-demand"]
    assert left_out == ["g6.xlarge spot: its price is not known"]


def test_workers_are_of_one_kind() -> None:
    """Training takes a GPU for each worker, or a CPU."""
    wanted = [candidate("g6.xlarge"), candidate("c7i.2xlarge"), candidate("x1.nothing")]
    found, left_out = node_types(environment(), wanted, SHAPES, usd_per_hour)
    assert {each.instance_type for each in found} == {"g6.xlarge"}
    assert [why.split(":")[0] for why in left_out] == ["c7i.2xlarge", "x1.nothing"]
    assert {each.instance_type for each in types("c7i.2xlarge")} == {"c7i.2xlarge"}


def test_without_any_candidate_the_reasons_are_named() -> None:
    elsewhere = [candidate("g6.xlarge", region="us-east-1")]
    with pytest.raises(UserError, match=r"eu-central-1: g6\.xlarge: it is in us-east-1"):
        node_types(environment(), elsewhere, SHAPES, usd_per_hour)


def test_machines_with_as_many_gpus_pass_for_equals() -> None:
    """Otherwise Ray prefers the one that a demand fills the most to the cheapest."""
    config = rendered(types("g6.xlarge", "g6.2xlarge", "g6.12xlarge"))
    resources = {
        name: (each["resources"].get("CPU"), each["resources"].get("GPU"))
        for name, each in config["available_node_types"].items()
        if name.endswith("-spot")
    }
    assert resources == {
        "g6.xlarge-spot": (4, 1), "g6.2xlarge-spot": (4, 1), "g6.12xlarge-spot": (48, 4)
    }  # fmt: skip


def test_what_the_budget_does_not_allow_is_never_started() -> None:
    order = types("g6.xlarge")
    config = rendered(order, affordable={"g6.xlarge-spot"})["available_node_types"]
    assert config["g6.xlarge-spot"]["max_workers"] == environment().max_workers
    assert config["g6.xlarge-on-demand"]["max_workers"] == 0


def listed(folder: Path) -> PriceBook:
    prices = Listed(folder=folder / "prices", max_age=timedelta(hours=1))
    return PriceBook(local_usd_per_hour=None, ec2=prices)


def test_machines_that_are_up_are_not_ended_by_a_budget_or_a_lost_price(tmp_path: Path) -> None:
    """Ray ends what is above `max_workers`, and stops at a type that it does not know."""
    prices = PriceParams(candidates=(candidate("g6.xlarge"), candidate("g5.xlarge")))
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text(EXAMPLE.read_text())
    up = {"g6.xlarge-on-demand": 1, "g5.xlarge-spot": 2}

    def written(known: dict[str, autoscaler.Shape]) -> dict[str, Any]:
        config = cluster_config.plan(
            tmp_path, prices, "10.0.0.5:6379", up=up, book=listed(tmp_path), shapes=known
        )
        path = cluster_config.write(tmp_path, config)
        found: dict[str, Any] = yaml.safe_load(path.read_text())["available_node_types"]
        return {name: each["max_workers"] for name, each in found.items() if name != HEAD}

    most = environment().max_workers
    assert written(SHAPES) == {
        "g6.xlarge-spot": most, "g5.xlarge-spot": most,
        "g6.xlarge-on-demand": 1, "g5.xlarge-on-demand": 0,
    }  # fmt: skip
    assert written({"g6.xlarge": SHAPES["g6.xlarge"]}) == {
        "g6.xlarge-spot": most, "g5.xlarge-spot": 2,
        "g6.xlarge-on-demand": 1, "g5.xlarge-on-demand": 0,
    }  # fmt: skip


def test_ray_takes_it_from_its_file(tmp_path: Path) -> None:
    """As its autoscaler reads it, at each of its looks."""
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    config = rendered(types("g6.xlarge", "g5.xlarge"))
    autoscaler.check(config)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    found = FileConfigReader(str(path), skip_content_hash=True).get_cached_autoscaling_config()
    assert found.disable_node_updaters() and found.get_head_node_type() == HEAD
    assert set(found.get_node_type_configs()) == set(config["available_node_types"])
    assert found.get_node_type_configs()["g5.xlarge-spot"].priority == 4
    broken = copy.deepcopy(config)
    broken["available_node_types"]["g6.xlarge-spot"]["max_worker"] = 1
    with pytest.raises(UserError, match="max_worker"):
        autoscaler.check(broken)


def test_the_example_is_an_environment_and_its_errors_name_the_key(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    with pytest.raises(UserError, match=r"environment\.example\.yaml"):
        read(tmp_path)
    assert volume_gib(tmp_path) == 120
    given = yaml.safe_load(EXAMPLE.read_text())
    path.write_text(yaml.safe_dump(given | {"volume_gib": 200}))
    assert read(tmp_path).name == "turbo-vaed" and volume_gib(tmp_path) == 200
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"security_groups": []}, "security_groups"),
        ({"security_groups": ["default"]}, "sg-"),
        ({"subnets": {"us-east-1a": "subnet-1"}}, "eu-central-1"),
        ({"launch_template": {"id": "lt-1"}}, "launch_template.version"),
        ({"archive": {"url": "https://x/a.tar.gz", "sha256": "0" * 64}}, "archive.url"),
        ({"ssh": True}, "ssh"),
    ]
    for change, named in wrong:
        path.write_text(yaml.safe_dump(given | change))
        with pytest.raises(UserError, match=named):
            read(tmp_path)


def test_a_worker_ends_itself_whatever_its_set_up_comes_to(tmp_path: Path) -> None:
    """The script itself, with the commands of a machine replaced by recorders."""
    import hashlib
    import os
    import subprocess

    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"not the one that was pinned")
    for pinned in (
        hashlib.sha256(b"another").hexdigest(),
        hashlib.sha256(archive.read_bytes()).hexdigest(),
    ):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        place = tmp_path / "bin"
        place.mkdir(exist_ok=True)
        for name in ("shutdown", "aws", "tar"):
            copied = f"cp {archive} archive.tar.gz\n" if name == "aws" else ""
            (place / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{copied}')
            (place / name).chmod(0o755)
        given = environment(archive={"url": "s3://b/a.tar.gz", "sha256": pinned})
        script = autoscaler.worker_user_data(given, "g6.xlarge-spot", "10.0.0.5:6379")
        script = script.replace("/var/log/turbo-vaed.log", str(tmp_path / "log")).replace(
            autoscaler.PYTHON_ROOT, str(tmp_path / "opt")
        )
        path = {"PATH": f"{place}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", script], env=path, check=False)
        first, *lines = calls.read_text().splitlines()
        assert first == f"shutdown -h +{given.max_hours * 60:.0f}", "whatever follows"
        names = [line.split()[0] for line in lines]
        is_pinned = pinned == hashlib.sha256(archive.read_bytes()).hexdigest()
        assert names == (["aws", "tar", "shutdown"] if is_pinned else ["aws", "shutdown"])
        assert "curl" not in script
