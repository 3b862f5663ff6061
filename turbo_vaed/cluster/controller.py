"""The controller of a team's cluster: a small on-demand machine that holds driver, Prefect worker
and Ray head, and so whatever must outlive a laptop and a spot machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from turbo_vaed.cluster.autoscaler import CLUSTER, HEAD, ROLE, boot_script, machine_config
from turbo_vaed.cluster.environment import Environment
from turbo_vaed.errors import Fault, Unreachable, UserError

_UP = ("pending", "running")
_STATES = (*_UP, "stopping", "stopped")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The controller, as EC2 has it."""

    instance_id: str
    instance_type: str
    state: str
    private_ip: str
    zone: str
    since: datetime


def find(environment: Environment) -> Machine | None:
    """The controller of the cluster, if it has one.

    Raises:
        Unreachable: EC2 does not answer, or refuses.
        Fault: there are several.
    """
    filters = [
        {"Name": f"tag:{CLUSTER}", "Values": [environment.name]},
        {"Name": f"tag:{ROLE}", "Values": [HEAD]},
        {"Name": "instance-state-name", "Values": list(_STATES)},
    ]
    found = _call(environment, "describe_instances", Filters=filters)
    machines = [_machine(one) for each in found["Reservations"] for one in each["Instances"]]
    if len(machines) > 1:
        ids = ", ".join(machine.instance_id for machine in machines)
        raise Fault(
            f"cluster {environment.name} has {len(machines)} controllers: {ids}; end all but the "
            "one whose Ray head is in use"
        )
    return machines[0] if machines else None


def ensure(environment: Environment) -> tuple[Machine, bool]:
    """The controller, started where there is none, and whether it was.

    Two who ask for it at once get the same one: EC2 knows the request by its token.

    Raises:
        UserError: it is stopped.
        Unreachable: EC2 does not answer, or refuses; in every subnet, where it has no capacity.
        Fault: there are several.
    """
    known = find(environment)
    if known is not None and known.state not in _UP:
        raise UserError(
            f"the controller of cluster {environment.name}, {known.instance_id}, is {known.state}; "
            "start it, or end it and run the same command again"
        )
    if known is not None:
        return known, False
    started = _start(environment)
    # Two who ask as the hour turns may start two: a fault now is better than one that is idle. EC2
    # may not list a machine yet that it has just started.
    return find(environment) or started, True


def _start(environment: Environment) -> Machine:
    controller = environment.controller
    template = controller.launch_template
    config = machine_config(
        environment,
        role=HEAD,
        launch_template={"LaunchTemplateId": template.id, "Version": template.version},
        instance_type=controller.instance_type,
        volume_gib=controller.volume_gib,
        user_data=boot_script(environment, "cluster start", ends_machine=False),
    )
    # By these the autoscaler knows its head among the machines of the cluster.
    instance_tags = config["TagSpecifications"][0]["Tags"]
    instance_tags += [
        {"Key": "ray-cluster-name", "Value": environment.name},
        {"Key": "ray-node-type", "Value": "head"},
        {"Key": "ray-user-node-type", "Value": HEAD},
        {"Key": "Name", "Value": f"{environment.name}-{HEAD}"},
    ]
    refused, hour = "", datetime.now(UTC).strftime("%Y-%m-%dT%H")
    ended = _ended(environment)
    for subnet in environment.subnets.values():
        # The same for who asks within the hour, so that two get one; another after its end. EC2
        # refuses the token of a machine that has ended for a day, and lists it for an hour.
        token = hashlib.sha256(f"{environment.name}:{subnet}:{hour}:{ended}".encode())
        try:
            found = _call(
                environment,
                "run_instances",
                **config,
                SubnetId=subnet,
                MinCount=1,
                MaxCount=1,
                ClientToken=token.hexdigest()[:64],
            )
            return _machine(found["Instances"][0])
        except Unreachable as error:
            refused = str(error)
            if "InsufficientInstanceCapacity" not in refused:
                raise
    raise Unreachable(f"no controller is started: {refused}")


def _ended(environment: Environment) -> str:
    """Of the controllers before, which EC2 lists for an hour after their end."""
    filters = [
        {"Name": f"tag:{CLUSTER}", "Values": [environment.name]},
        {"Name": f"tag:{ROLE}", "Values": [HEAD]},
        {"Name": "instance-state-name", "Values": ["shutting-down", "terminated"]},
    ]
    found = _call(environment, "describe_instances", Filters=filters)
    ids = [one["InstanceId"] for each in found["Reservations"] for one in each["Instances"]]
    return ",".join(sorted(ids))


def _call(environment: Environment, verb: str, **given: Any) -> dict[str, Any]:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("ec2", region_name=environment.region)
        found: dict[str, Any] = getattr(client, verb)(**given)
    except (BotoCoreError, ClientError) as error:
        raise Unreachable(f"EC2 in {environment.region}: {error}") from error
    return found


def _machine(found: dict[str, Any]) -> Machine:
    return Machine(
        instance_id=found["InstanceId"],
        instance_type=found["InstanceType"],
        state=found["State"]["Name"],
        private_ip=found.get("PrivateIpAddress", ""),
        zone=found["Placement"]["AvailabilityZone"],
        since=found["LaunchTime"],
    )
