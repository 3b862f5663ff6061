"""A network in an EC2 that answers on loopback."""

from __future__ import annotations

import uuid

import pytest

from tests.cluster.environments import REGION, ZONES, environment
from tests.costs.conftest import postgres as postgres
from turbo_vaed.cluster.environment import Environment


@pytest.fixture
def on_ec2(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """A network in moto's EC2."""
    import boto3
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler._private.aws.utils import resource_cache

    resource_cache.cache_clear()
    monkeypatch.setattr(node_provider, "BOTO_CREATE_MAX_RETRIES", 1)  # as on the controller
    ec2 = boto3.client("ec2", region_name=REGION)
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = {
        zone: ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{place}.0/24", AvailabilityZone=zone)[
            "Subnet"
        ]["SubnetId"]
        for place, zone in enumerate(ZONES)
    }
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    group = ec2.create_security_group(GroupName=name, Description="a test", VpcId=vpc)["GroupId"]
    template = ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData={"ImageId": "ami-12c6146b"}
    )["LaunchTemplate"]["LaunchTemplateId"]
    pinned = {"id": template, "version": "1"}
    return environment(
        name=name,
        subnets=subnets,
        security_groups=[group],
        launch_template=pinned,
        controller={"launch_template": pinned},
    )
