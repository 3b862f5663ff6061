"""What the autoscaler has EC2 start: Ray's own autoscaler, our configuration and provider, and EC2
by moto over HTTP. What Ray's head would report of demands and nodes is given; no Ray is started.

moto starts what it is asked for, at once: it knows no capacity, takes no machine back and merges no
parameters of a launch template. Where EC2 has no machine, its answer takes the place of moto's.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest
import yaml
from botocore.awsrequest import AWSResponse
from ray.autoscaler.v2.autoscaler import Autoscaler
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.core.generated.autoscaler_pb2 import (
    ClusterResourceConstraint,
    ClusterResourceState,
    GetClusterResourceStateReply,
    NodeState,
    NodeStatus,
    ResourceRequest,
    ResourceRequestByCount,
)

from tests.cluster.environments import REGION, SHAPES, candidate, usd_per_hour
from turbo_vaed.cluster.autoscaler import CLUSTER, HEAD, ROLE, node_types, render
from turbo_vaed.cluster.controller import Machine, ensure
from turbo_vaed.cluster.environment import Environment

pytestmark = pytest.mark.slow

NO_CAPACITY = (
    '<?xml version="1.0"?><Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>'
    "<Message>no {type} in {subnet}</Message></Error></Errors><RequestID>1</RequestID></Response>"
)


class Head:
    """What the autoscaler asks Ray's head for."""

    address = "127.0.0.1:6379"

    def __init__(self, controller: Machine) -> None:
        self.wanted: list[dict[str, float]] = []
        self.nodes = [
            NodeState(
                node_id=uuid.uuid4().bytes,
                instance_id=controller.instance_id,
                ray_node_type_name=HEAD,
                total_resources={"node:__internal_head__": 1.0},
                available_resources={"node:__internal_head__": 1.0},
                status=NodeStatus.RUNNING,
                node_ip_address=controller.private_ip,
            )
        ]
        self.version = 0

    def get_cluster_resource_state(self) -> bytes:
        self.version += 1
        by_count = [
            ResourceRequestByCount(request=ResourceRequest(resources_bundle=bundle), count=1)
            for bundle in self.wanted
        ]
        state = ClusterResourceState(
            cluster_resource_state_version=self.version,
            node_states=self.nodes,
            cluster_resource_constraints=[ClusterResourceConstraint(resource_requests=by_count)],
        )
        reply: bytes = GetClusterResourceStateReply(
            cluster_resource_state=state
        ).SerializeToString()
        return reply

    def join(self, machine: dict[str, Any]) -> NodeState:
        """A machine's Ray has joined, as `turbo-vaed node join` starts it."""
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        node = NodeState(
            node_id=uuid.uuid4().bytes,
            instance_id=machine["InstanceId"],
            ray_node_type_name=tags["ray-user-node-type"],
            total_resources={"CPU": 4.0, "GPU": 1.0},
            available_resources={"CPU": 4.0, "GPU": 1.0},
            status=NodeStatus.RUNNING,
            node_ip_address=machine["PrivateIpAddress"],
        )
        self.nodes.append(node)
        return node


class Scaling:
    """An autoscaler on its head, and EC2, which has none of the types in `gone`."""

    def __init__(self, given: Environment, folder: Path) -> None:
        order, _ = node_types(
            given, [candidate("g5.xlarge"), candidate("g6.xlarge")], SHAPES, usd_per_hour
        )
        self.refusals = folder / "refusals.jsonl"
        config = render(
            given,
            order,
            head_address=Head.address,
            affordable={each.name for each in order},
            refusals=self.refusals,
        )
        self.path = folder / "cluster.yaml"
        self.write(config)
        self.config, self.head = config, Head(ensure(given)[0])
        self.gone: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []
        """Type, market and subnet of each request to start a machine."""
        self.autoscaler = Autoscaler(
            session_name="test",
            config_reader=FileConfigReader(str(self.path), skip_content_hash=True),
            gcs_client=self.head,
        )
        provider = self.autoscaler._cloud_instance_provider.v1_provider
        provider.ec2_fail_fast.meta.client.meta.events.register(
            "before-send.ec2.RunInstances", self._refuse
        )

    def write(self, config: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump(config))

    def _refuse(self, request: Any, **_: Any) -> AWSResponse | None:
        asked = {key: value[0] for key, value in parse_qs(request.body).items()}
        name, subnet = asked["InstanceType"], asked["SubnetId"]
        market = asked.get("InstanceMarketOptions.MarketType", "on-demand")
        self.asked.append((name, market, subnet))
        if f"{name}-{market}" not in self.gone:
            return None
        text = NO_CAPACITY.format(type=name, subnet=subnet).encode()

        class Raw:
            def stream(self, **_: Any) -> Iterator[bytes]:
                yield text

        return AWSResponse(request.url, 500, {}, Raw())

    def update(self, until: Callable[[], object]) -> None:
        """Let the autoscaler look again and again, until something holds."""
        for _ in range(100):
            self.autoscaler.update_autoscaling_state()
            if until():
                return
            time.sleep(0.05)  # machines are started in threads
        raise AssertionError(f"not within 100 looks; asked: {self.asked}")


def machines(name: str) -> list[dict[str, Any]]:
    found = boto3.client("ec2", region_name=REGION).describe_instances(
        Filters=[
            {"Name": f"tag:{CLUSTER}", "Values": [name]},
            {"Name": f"tag:{ROLE}", "Values": ["worker"]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
    )
    return [machine for each in found["Reservations"] for machine in each["Instances"]]


@pytest.fixture
def scaling(on_ec2: Environment, tmp_path: Path) -> Scaling:
    return Scaling(on_ec2, tmp_path)


def test_a_worker_is_started_as_the_environment_says(on_ec2: Environment, scaling: Scaling) -> None:
    ec2 = boto3.client("ec2", region_name=REGION)
    groups = {each["GroupId"] for each in ec2.describe_security_groups()["SecurityGroups"]}
    keys = ec2.describe_key_pairs()["KeyPairs"]
    scaling.head.wanted = [{"CPU": 1, "GPU": 1}]
    scaling.update(lambda: machines(on_ec2.name))
    (machine,) = machines(on_ec2.name)
    assert machine["InstanceType"] == "g5.xlarge" and machine["InstanceLifecycle"] == "spot"
    assert machine["SubnetId"] == on_ec2.subnets["eu-central-1b"], "the cheapest zone"
    assert [group["GroupId"] for group in machine["SecurityGroups"]] == [*on_ec2.security_groups]
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert machine["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert "KeyName" not in machine
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    assert tags["turbo-vaed:project"] == "turbo-vaed" and tags["turbo-vaed:role"] == "worker"
    ids = [each["Ebs"]["VolumeId"] for each in machine["BlockDeviceMappings"]]
    (volume,) = ec2.describe_volumes(VolumeIds=ids)["Volumes"]
    assert volume["Encrypted"] and volume["VolumeType"] == "gp3" and volume["Size"] == 120
    assert {"Key": CLUSTER, "Value": on_ec2.name} in volume["Tags"]
    after = {each["GroupId"] for each in ec2.describe_security_groups()["SecurityGroups"]}
    assert after == groups, "Ray makes none of its own"
    assert ec2.describe_key_pairs()["KeyPairs"] == keys, "nor a key"


def test_what_cannot_be_had_is_followed_by_the_next_type_and_on_demand_comes_last(
    on_ec2: Environment, scaling: Scaling
) -> None:
    scaling.gone = {"g5.xlarge-spot", "g6.xlarge-spot"}
    scaling.head.wanted = [{"CPU": 1, "GPU": 1}]
    scaling.update(lambda: machines(on_ec2.name))
    (machine,) = machines(on_ec2.name)
    assert machine["InstanceType"] == "g5.xlarge" and "InstanceLifecycle" not in machine
    subnet = on_ec2.subnets
    in_order = [
        ("g5.xlarge", "spot", subnet["eu-central-1b"]),
        ("g5.xlarge", "spot", subnet["eu-central-1a"]),
        ("g6.xlarge", "spot", subnet["eu-central-1b"]),
        ("g6.xlarge", "spot", subnet["eu-central-1a"]),
        ("g5.xlarge", "on-demand", subnet["eu-central-1a"]),
    ]
    assert list(dict.fromkeys(scaling.asked)) == in_order
    kept = [json.loads(line) for line in scaling.refusals.read_text().splitlines()]
    assert [row["type"] for row in kept] == ["g5.xlarge-spot", "g6.xlarge-spot"]
    assert {row["code"] for row in kept} == {"InsufficientInstanceCapacity"}


def test_where_the_budget_allows_no_on_demand_the_run_waits_for_spot(
    on_ec2: Environment, scaling: Scaling
) -> None:
    """However long there is none: what was refused is asked for again, in turn."""
    for name, each in scaling.config["available_node_types"].items():
        if name.endswith("on-demand"):
            each["max_workers"] = 0
    scaling.write(scaling.config)
    scaling.gone = {"g5.xlarge-spot", "g6.xlarge-spot"}
    scaling.head.wanted = [{"CPU": 1, "GPU": 1}]
    scaling.update(lambda: len(scaling.asked) > 12)
    assert {market for _, market, _ in scaling.asked} == {"spot"}
    assert {name for name, _, _ in scaling.asked} == {"g5.xlarge", "g6.xlarge"}, "in turn"
    assert machines(on_ec2.name) == []
    scaling.gone = {"g5.xlarge-spot"}
    scaling.update(lambda: machines(on_ec2.name))
    assert [machine["InstanceType"] for machine in machines(on_ec2.name)] == ["g6.xlarge"]


def test_two_lost_at_once_one_of_them_in_its_set_up_are_both_replaced(
    on_ec2: Environment, scaling: Scaling
) -> None:
    scaling.head.wanted = [{"CPU": 1, "GPU": 1}] * 2
    scaling.update(lambda: len(machines(on_ec2.name)) == 2)
    first, second = machines(on_ec2.name)
    node = scaling.head.join(first)
    scaling.update(lambda: True)
    ids = [first["InstanceId"], second["InstanceId"]]
    boto3.client("ec2", region_name=REGION).terminate_instances(InstanceIds=ids)
    node.status = NodeStatus.DEAD
    scaling.update(lambda: len(machines(on_ec2.name)) == 2)
    assert not set(ids) & {machine["InstanceId"] for machine in machines(on_ec2.name)}
