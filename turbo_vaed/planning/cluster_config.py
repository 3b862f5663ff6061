"""The autoscaler's configuration for a run: what candidates cost now, and which of them its budget
allows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.cluster import autoscaler, environment
from turbo_vaed.cluster.autoscaler import NodeType, Shape
from turbo_vaed.config.schema import CandidateParams, PriceParams
from turbo_vaed.costs import PriceBook
from turbo_vaed.errors import Unreachable
from turbo_vaed.planning.quote import quote
from turbo_vaed.runtime import files
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

REFUSALS = Path("state/launch-failures.jsonl")
"""In the controller's checkout."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """A cluster's node types, and the configuration with them."""

    types: list[NodeType]
    affordable: frozenset[str]
    left_out: list[str]
    up: Mapping[str, int]
    """How many machines of each type there were."""
    document: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """A table: in the order in which types are tried."""
        return [
            {
                "type": each.instance_type,
                "market": each.market,
                "usd_per_hour": each.usd_per_hour,
                "zones": list(each.zones),
                "gpus": each.shape.gpus,
                "cpus": each.shape.cpus,
                "started": each.name in self.affordable,
            }
            for each in self.types
        ]


def plan(
    root: Path,
    prices: PriceParams,
    head_address: str,
    *,
    fits_on_demand: Collection[str] = (),
    up: Mapping[str, int] | None = None,
    book: PriceBook,
    shapes: dict[str, Shape] | None = None,
) -> ClusterConfig:
    """The configuration of a cluster.

    Args:
        head_address: of the controller, `host:port`.
        fits_on_demand: instance types on which a run fits its budget on demand; none of them is
            started on demand by default.
        up: how many machines of each node type there are.
        shapes: of instance types; by default EC2 is asked.

    Raises:
        UserError: no environment, or no candidate in its region.
        Unreachable: AWS does not answer.
    """
    where = environment.read(root)
    known = describe(where.region, prices.candidates) if shapes is None else shapes
    types, left_out = autoscaler.node_types(where, prices.candidates, known, book.usd_per_hour)
    affordable = frozenset(
        each.name for each in types if each.market == "spot" or each.instance_type in fits_on_demand
    )
    document = autoscaler.render(
        where,
        types,
        head_address=head_address,
        affordable=affordable,
        up=up,
        refusals=root / REFUSALS,
    )
    autoscaler.check(document)
    return ClusterConfig(
        types=types, affordable=affordable, left_out=left_out, up=up or {}, document=document
    )


def fits_on_demand(
    workspace: Workspace, settings: Settings, book: PriceBook, *, run: str | None = None
) -> set[str]:
    """The instance types of prices.candidates on which the customer's next run, or one that goes
    on, is expected to cost no more than it may still spend, on demand all the way.

    Raises:
        UserError: as `quote`.
        Unreachable: the ledger cannot be read.
    """
    alone = replace(settings, ray_address=None)  # the quote compares with this machine
    found = quote(workspace, alone, book, run=run)
    return {
        choice.machine.instance_type
        for choice in found.choices
        if choice.machine.market == "on-demand"
        and choice.usd is not None
        and choice.usd <= found.left_usd
    }


def write(root: Path, config: ClusterConfig) -> Path:
    """Where the controller's autoscaler reads it, a few seconds later. A type that was there before
    stays, for Ray's autoscaler stops where it finds a machine of a type that it does not know; none
    is added to it."""
    path = root / autoscaler.CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    before = yaml.safe_load(path.read_text())["available_node_types"] if path.is_file() else {}
    now = config.document["available_node_types"]
    gone = {
        name: each | {"max_workers": config.up.get(name, 0)}
        for name, each in before.items()
        if name not in now
    }
    document = config.document | {"available_node_types": now | gone}
    text = yaml.safe_dump(document, sort_keys=False, width=1000)
    files.write_text(path, f"# Written by turbo-vaed; edits are lost.\n{text}")
    return path


def describe(region: str, candidates: Iterable[CandidateParams]) -> dict[str, Shape]:
    """What EC2 says that instance types have; those that it does not know are missing.

    Raises:
        Unreachable: EC2 does not answer, or refuses.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    names = list({candidate.instance_type for candidate in candidates})
    try:
        # By a filter, which leaves out what there is none of; ids that are unknown are an error.
        found = boto3.client("ec2", region_name=region).describe_instance_types(
            Filters=[{"Name": "instance-type", "Values": names}]
        )["InstanceTypes"]
    except (BotoCoreError, ClientError) as error:
        raise Unreachable(f"EC2 in {region}: {error}") from error
    return {
        each["InstanceType"]: Shape(
            cpus=each["VCpuInfo"]["DefaultVCpus"],
            gpus=sum(gpu["Count"] for gpu in each.get("GpuInfo", {}).get("Gpus", ())),
        )
        for each in found
    }
