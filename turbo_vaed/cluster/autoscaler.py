"""The configuration of Ray's autoscaler: a node type per instance type and market, over all zones.

Ray starts the type with the highest priority that fits. What cannot be had is set aside for ten
minutes (`turbo_vaed.cluster.provider`), and the next one is tried.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from turbo_vaed.cluster.environment import HEAD_PORT, Environment
from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET
from turbo_vaed.config.schema import CandidateParams
from turbo_vaed.costs.tags import PROJECT, PROJECT_VALUE, ec2_tags
from turbo_vaed.errors import UserError

HEAD = "controller"
WORKER = "worker"
CLUSTER = "turbo-vaed:cluster"
ROLE = "turbo-vaed:role"
"""Tags of all machines of a cluster, and of what they are: `worker` or `controller`."""
PROVIDER = "turbo_vaed.cluster.provider.Ec2Nodes"
PYTHON_ROOT = "/opt/turbo-vaed"
"""Where image and archive have the code and its environment."""
VARIABLES = "/etc/turbo-vaed.env"
"""Of the image: where ledger, MLflow, Prefect and checkpoints are."""
CONFIG = Path("infra/ray/cluster.yaml")
"""In the controller's checkout: the configuration that its autoscaler reads."""
Market = Literal["spot", "on-demand"]
UsdPerHour = Callable[[str, Market, str, str | None], Decimal | None]
"""Of an instance type, a market, a region and a zone (None on demand); None where unknown."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an instance type has."""

    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Machines of one instance type on one market."""

    name: str
    instance_type: str
    market: Market
    shape: Shape
    usd_per_hour: Decimal
    """In the cheapest zone."""
    speed: float
    """As the candidate has it."""
    zones: tuple[str, ...]
    """In this order they are tried: the cheapest first, those without a price last."""

    @property
    def usd_per_work(self) -> Decimal:
        """USD for an hour of work of this checkout's machine; by this, types are compared."""
        return self.usd_per_hour / Decimal(str(self.speed))


def node_types(
    environment: Environment,
    candidates: Iterable[CandidateParams],
    shapes: Mapping[str, Shape],
    usd_per_hour: UsdPerHour,
) -> tuple[list[NodeType], list[str]]:
    """The node types in the order in which they are tried, and why others are left out: spot before
    on-demand, the cheapest for the same work first.

    Raises:
        UserError: none is left.
    """
    wanted = list(candidates)
    has_gpus = any(shapes[c.instance_type].gpus for c in wanted if c.instance_type in shapes)
    found: dict[str, NodeType] = {}
    left_out: list[str] = []
    for candidate in wanted:
        name, shape = candidate.instance_type, shapes.get(candidate.instance_type)
        if candidate.region != environment.region:
            left_out.append(f"{name}: it is in {candidate.region}")
        elif shape is None:
            left_out.append(f"{name}: EC2 has no such type in {environment.region}")
        elif has_gpus and not shape.gpus:
            left_out.append(f"{name}: it has no GPU, and a run's workers are of one kind")
        else:
            markets: tuple[Market, ...] = ("spot", "on-demand")
            for market in markets:
                made = _priced(environment, candidate, shape, market, usd_per_hour)
                if isinstance(made, str):
                    left_out.append(made)
                else:
                    found[made.name] = made
    if not found:
        raise UserError(
            f"no machine of prices.candidates can be started in {environment.region}: "
            f"{'; '.join(left_out) or 'there is none'}"
        )
    order = sorted(found.values(), key=lambda t: (t.market != "spot", t.usd_per_work, t.name))
    return order, left_out


def _priced(
    environment: Environment,
    candidate: CandidateParams,
    shape: Shape,
    market: Market,
    usd_per_hour: UsdPerHour,
) -> NodeType | str:
    """A node type, or why it is left out: what has no price must not be started."""
    name, region = candidate.instance_type, environment.region
    zones = [z for z in candidate.zones if z in environment.subnets] or list(environment.subnets)
    if market == "on-demand":
        price = usd_per_hour(name, market, region, None)
        prices = {} if price is None else dict.fromkeys(zones, price)
    else:
        quoted = {zone: usd_per_hour(name, market, region, zone) for zone in zones}
        prices = {zone: price for zone, price in quoted.items() if price is not None}
    if not prices:
        return f"{name} {market}: its price is not known"
    return NodeType(
        name=f"{name}-{market}",
        instance_type=name,
        market=market,
        shape=shape,
        usd_per_hour=min(prices.values()),
        speed=candidate.speed,
        zones=tuple(sorted(prices, key=lambda zone: (prices[zone], zone))),
    )


def render(
    environment: Environment,
    types: Iterable[NodeType],
    *,
    head_address: str,
    affordable: Collection[str],
    up: Mapping[str, int] | None = None,
    refusals: Path | None = None,
) -> dict[str, Any]:
    """The configuration for `ray start --head --autoscaling-config`.

    Args:
        types: as `node_types` orders them.
        head_address: of the controller, `host:port`.
        affordable: names of the types that the budget allows; the others keep as many machines as
            they have now, of which one that is lost may come back.
        up: how many machines of each type there are: Ray would end those above `max_workers`.
        refusals: where the provider keeps why EC2 started no machine.
    """
    order = list(types)
    cpus: dict[int, int] = {}  # by GPUs
    for each in order:
        cpus[each.shape.gpus] = min(cpus.get(each.shape.gpus, each.shape.cpus), each.shape.cpus)
    available = {
        each.name: {
            # Ray prefers the machine that a demand fills the most, and only then the one with the
            # higher priority. So machines with as many GPUs pass for equals until they are up.
            "resources": {
                "CPU": cpus[each.shape.gpus] if each.shape.gpus else each.shape.cpus,
                **({"GPU": each.shape.gpus} if each.shape.gpus else {}),
            },
            "labels": {INSTANCE_TYPE: each.instance_type, MARKET: each.market},
            "min_workers": 0,
            "max_workers": environment.max_workers
            if each.name in affordable
            else (up or {}).get(each.name, 0),
            "priority": len(order) - place,
            "node_config": _node_config(environment, each, head_address),
        }
        for place, each in enumerate(order)
    }
    return {
        "cluster_name": environment.name,
        "max_workers": environment.max_workers,
        "idle_timeout_minutes": environment.idle_minutes,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "region": environment.region,
            "use_internal_ips": True,
            "cache_stopped_nodes": False,  # a stopped machine's disk goes on costing
            "disable_node_updaters": True,  # machines set themselves up: nothing goes over SSH
            **({"refusals_file": str(refusals)} if refusals else {}),
        },
        "auth": {},
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"resources": {}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            **available,
        },
        # Ray has no defaults for a provider of ours.
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def machine_config(
    environment: Environment,
    *,
    role: str,
    launch_template: Mapping[str, str],
    instance_type: str,
    volume_gib: int,
    user_data: str,
) -> dict[str, Any]:
    """Parameters of EC2's RunInstances that every machine of the cluster has: they win over those
    of its launch template."""
    tags = ec2_tags({PROJECT: PROJECT_VALUE, CLUSTER: environment.name, ROLE: role})
    return {
        "LaunchTemplate": dict(launch_template),
        "InstanceType": instance_type,
        "SecurityGroupIds": list(environment.security_groups),
        # The controller has what is not yet pushed or charged on its disk.
        "InstanceInitiatedShutdownBehavior": "terminate" if role == WORKER else "stop",
        # A hop limit of 1: what runs in a container does not get at the machine's role.
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": environment.root_device,
                "Ebs": {
                    "VolumeSize": volume_gib,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags}
            for kind in ("instance", "volume", "network-interface")
        ],
        "UserData": user_data,
    }


def _node_config(environment: Environment, each: NodeType, head_address: str) -> dict[str, Any]:
    template = environment.launch_template
    config = machine_config(
        environment,
        role=WORKER,
        launch_template={"LaunchTemplateId": template.id, "Version": template.version},
        instance_type=each.instance_type,
        volume_gib=environment.volume_gib,
        user_data=worker_user_data(environment, each.name, head_address),
    )
    config["SubnetIds"] = [environment.subnets[zone] for zone in each.zones]
    if each.market == "spot":
        config["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "one-time",
                "InstanceInterruptionBehavior": "terminate",
            },
        }
    return config


def worker_user_data(environment: Environment, node_type: str, head_address: str) -> str:
    """What a worker does at boot: it sets itself up, joins the head, and ends itself afterwards,
    whatever that ends in."""
    return boot_script(
        environment,
        f"node join --head {shlex.quote(head_address)} "
        f"--token-secret {shlex.quote(environment.token_secret)} --type {shlex.quote(node_type)}",
        ends_machine=True,
    )


def boot_script(environment: Environment, verb: str, *, ends_machine: bool) -> str:
    """A machine's user data: set-up from its image or from the pinned archive, then one verb of
    `turbo-vaed`."""
    archive = environment.archive
    lines = ["#!/bin/bash", "exec >> /var/log/turbo-vaed.log 2>&1"]
    if ends_machine:  # a machine without work must not cost anything
        minutes = round(environment.max_hours * 60)
        lines += [f"shutdown -h +{minutes}", "trap 'shutdown -h now' EXIT"]
    lines += ["set -euo pipefail", f"export AWS_DEFAULT_REGION={environment.region}"]
    if archive:
        lines += [
            'cd "$(mktemp -d)"',
            f"aws s3 cp --only-show-errors {shlex.quote(archive.url)} archive.tar.gz",
            f"echo '{archive.sha256}  archive.tar.gz' | sha256sum --check --strict",
            f"mkdir -p {PYTHON_ROOT} && tar -xzf archive.tar.gz -C {PYTHON_ROOT}",
            f"{PYTHON_ROOT}/setup",
        ]
    lines += [
        f"if [ -f {VARIABLES} ]; then set -a; . {VARIABLES}; set +a; fi",
        f"cd {PYTHON_ROOT}",
        f"{PYTHON_ROOT}/.venv/bin/turbo-vaed {verb}",
    ]
    return "\n".join(lines) + "\n"


def check(config: Mapping[str, Any]) -> None:
    """Have Ray check the configuration as its autoscaler does when it reads it.

    Raises:
        UserError: Ray does not take it.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except Exception as error:  # jsonschema's, and plain ones
        text = str(error).strip().splitlines()[0]
        raise UserError(f"Ray does not take the cluster's configuration: {text}") from error


def head_address(private_ip: str) -> str:
    """Of a head on the machine with this address."""
    return f"{private_ip}:{HEAD_PORT}"
