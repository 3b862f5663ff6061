"""A cluster's environment for tests, and candidates with prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from turbo_vaed.cluster.autoscaler import Shape
from turbo_vaed.cluster.environment import Environment
from turbo_vaed.config.schema import CandidateParams

SHAPES = {
    "g4dn.xlarge": Shape(cpus=4, gpus=1),
    "g5.xlarge": Shape(cpus=4, gpus=1),
    "g6.xlarge": Shape(cpus=4, gpus=1),
    "g6.2xlarge": Shape(cpus=8, gpus=1),
    "g6.12xlarge": Shape(cpus=48, gpus=4),
    "c7i.2xlarge": Shape(cpus=8, gpus=0),
}
SPEEDS = {"g4dn.xlarge": 20, "g5.xlarge": 60, "c7i.2xlarge": 4}
REGION = "eu-central-1"
ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")


def candidate(instance_type: str, region: str = REGION) -> CandidateParams:
    return CandidateParams(
        instance_type=instance_type,
        region=region,
        zones=ZONES,
        speed=float(SPEEDS.get(instance_type, 40)),
        interruptions_per_hour=0.05,
        source="a test",
    )


def usd_per_hour(name: str, market: str, region: str, zone: str | None) -> Decimal | None:
    """The same for each type; on spot none in zone c."""
    if market == "on-demand":
        return Decimal(1)
    return {"eu-central-1a": Decimal("0.40"), "eu-central-1b": Decimal("0.25")}.get(str(zone))


def environment(**given: Any) -> Environment:
    template = {"id": "lt-1", "version": "1"}
    usual: dict[str, Any] = {
        "name": "cluster",
        "region": REGION,
        "launch_template": template,
        "subnets": {zone: f"subnet-{zone[-1]}" for zone in ZONES},
        "security_groups": ["sg-1"],
        "token_secret": "ray-token",
        "controller": {"launch_template": template},
    }
    return Environment.model_validate(usual | given)
