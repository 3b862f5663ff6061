"""The controller of a cluster, in an EC2 by moto over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.cluster.environments import REGION
from turbo_vaed.cluster import controller, machines
from turbo_vaed.cluster.autoscaler import CLUSTER
from turbo_vaed.cluster.environment import Environment
from turbo_vaed.errors import Fault, Unreachable, UserError

pytestmark = pytest.mark.slow


def test_a_controller_is_started_once(on_ec2: Environment) -> None:
    assert controller.find(on_ec2) is None
    first, is_new = controller.ensure(on_ec2)
    assert is_new and first.instance_type == on_ec2.controller.instance_type
    again, is_new = controller.ensure(on_ec2)
    assert not is_new and again.instance_id == first.instance_id
    ec2 = boto3.client("ec2", region_name=REGION)
    (reservation,) = ec2.describe_instances(InstanceIds=[first.instance_id])["Reservations"]
    (machine,) = reservation["Instances"]
    assert "InstanceLifecycle" not in machine, "on demand"
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert [group["GroupId"] for group in machine["SecurityGroups"]] == [*on_ec2.security_groups]
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    assert tags[CLUSTER] == on_ec2.name and tags["turbo-vaed:project"] == "turbo-vaed"
    assert tags["ray-node-type"] == "head", "the autoscaler knows it"
    (mapping,) = machine["BlockDeviceMappings"]
    (volume,) = ec2.describe_volumes(VolumeIds=[mapping["Ebs"]["VolumeId"]])["Volumes"]
    assert volume["Encrypted"] and volume["Size"] == on_ec2.controller.volume_gib
    user_data = ec2.describe_instance_attribute(InstanceId=first.instance_id, Attribute="userData")[
        "UserData"
    ]["Value"]
    assert user_data
    behaviour = ec2.describe_instance_attribute(
        InstanceId=first.instance_id, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert behaviour["InstanceInitiatedShutdownBehavior"]["Value"] == "stop"
    tokens, call = [], controller._call

    def recorded(environment, verb, **given):
        if verb != "run_instances":
            return call(environment, verb, **given)
        tokens.append(given["ClientToken"])
        return {"Instances": [machine]}

    with pytest.MonkeyPatch.context() as patch:  # moto knows no tokens
        patch.setattr(controller, "find", lambda _: None)  # both ask before either is there
        patch.setattr(controller, "_call", recorded)
        controller.ensure(on_ec2)
        controller.ensure(on_ec2)
    assert tokens[0] == tokens[1], "by which EC2 gives two who ask at once the same one"

    ec2.stop_instances(InstanceIds=[first.instance_id])
    with pytest.raises(UserError, match=f"{first.instance_id}, is stop"):
        controller.ensure(on_ec2)
    ec2.terminate_instances(InstanceIds=[first.instance_id])
    second, is_new = controller.ensure(on_ec2)
    assert is_new and second.instance_id != first.instance_id


def test_a_token_of_a_controller_that_ended_is_not_used_again(
    on_ec2: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2 refuses it for a day, and no longer lists the machine after an hour."""
    tokens: list[str] = []
    call = controller._call
    hours = iter((9, 11))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            return cls(2026, 12, 1, next(hours), tzinfo=UTC)

    def recorded(environment: Environment, verb: str, **given: Any) -> dict[str, Any]:
        if verb == "run_instances":
            tokens.append(given["ClientToken"])
        return call(environment, verb, **given)

    monkeypatch.setattr(controller, "_call", recorded)
    monkeypatch.setattr(controller, "_ended", lambda _: "")  # the list is empty again
    monkeypatch.setattr(controller, "datetime", Clock)
    first, _ = controller.ensure(on_ec2)
    ec2 = boto3.client("ec2", region_name=REGION)
    ec2.terminate_instances(InstanceIds=[first.instance_id])
    controller.ensure(on_ec2)
    assert len(set(tokens)) == 2


def test_two_started_as_the_hour_turns_are_a_fault_at_once(
    on_ec2: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = controller._start

    def twice(environment: Environment) -> controller.Machine:
        start(environment)
        return start(environment)  # moto knows no tokens

    monkeypatch.setattr(controller, "_start", twice)
    with pytest.raises(Fault, match="2 controllers"):
        controller.ensure(on_ec2)


def test_rays_token_is_the_owners_alone_even_in_a_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.touch()
    file.chmod(0o644)
    monkeypatch.setattr(machines, "TOKEN_FILE", file)
    monkeypatch.setattr(machines, "read_token", lambda *_: "a-token")
    machines._identity(REGION, "secret", "i-1", "worker")
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_controllers_are_a_fault(on_ec2: Environment) -> None:
    found, _ = controller.ensure(on_ec2)
    ec2 = boto3.client("ec2", region_name=REGION)
    tags = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [found.instance_id]}])
    other = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]
    ec2.create_tags(
        Resources=[other["InstanceId"]],
        Tags=[{"Key": tag["Key"], "Value": tag["Value"]} for tag in tags["Tags"]],
    )
    with pytest.raises(Fault, match="2 controllers"):
        controller.find(on_ec2)


def test_rays_token_is_read_from_its_secret(on_ec2: Environment) -> None:
    secrets = boto3.client("secretsmanager", region_name=REGION)
    with pytest.raises(Unreachable, match=on_ec2.name):
        machines.read_token(REGION, on_ec2.name)
    secrets.create_secret(Name=on_ec2.name, SecretString="a-token\n")
    assert machines.read_token(REGION, on_ec2.name) == "a-token"
