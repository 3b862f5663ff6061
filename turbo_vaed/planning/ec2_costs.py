"""A machine of `turbo-vaed ec2 run`, and what it costs beside its stages: its volume, and the time
before the first of them and after the last. `infra/ray/machine.yaml` is what all have in common."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.errors import UserError
from turbo_vaed.workspace import Workspace

TEMPLATE = Path("infra/ray/machine.yaml")
ENDS_ITSELF_MINUTES = 15
"""After the run on it has ended, where nobody ends the machine before."""
BEFORE_MINUTES = 15
"""What start, set-up and copies are expected to take at most."""
VOLUME = "volume"
"""What a charge for its volume names."""
_MONTH_HOURS = 30 * 24


def read_template(root: Path) -> dict[str, Any]:
    """The template of a checkout, as Ray's cluster launcher takes it.

    Raises:
        UserError: it is not there, or no YAML.
    """
    path = root / TEMPLATE
    try:
        template: dict[str, Any] = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error}") from error
    return template


def node_config(template: dict[str, Any]) -> dict[str, Any]:
    """What it says of the machine itself, in the words of EC2.

    Raises:
        UserError: it says nothing.
    """
    try:
        node: dict[str, Any] = template["available_node_types"][template["head_node_type"]]
        found: dict[str, Any] = node["node_config"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{TEMPLATE} lacks {error}; compare it with the one in git") from None
    return found


def volume_gib(template: dict[str, Any]) -> int:
    """The size of all its volumes together.

    Raises:
        UserError: it has none, or of one it does not say the size.
    """
    mappings = node_config(template).get("BlockDeviceMappings") or []
    sizes = [mapping["Ebs"].get("VolumeSize") for mapping in mappings if mapping.get("Ebs")]
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(
            f"{TEMPLATE}: the sizes of its volumes are {sizes}; expected BlockDeviceMappings with "
            "Ebs.VolumeSize in GiB, for a volume is paid for"
        )
    return sum(sizes)


def volume_usd_per_hour(workspace: Workspace) -> Decimal:
    """Of all volumes of one machine.

    Raises:
        UserError: as `volume_gib` and `read_template`.
    """
    price = workspace.params.prices.volume_usd_per_gb_month
    return volume_gib(read_template(workspace.root)) * price / _MONTH_HOURS


def overhead_usd(workspace: Workspace, usd_per_hour: Decimal, up_hours: Decimal) -> Decimal:
    """The most that a machine is expected to cost beside its stages: its volume, for as long as it
    is up, and start, set-up, copies and end at its price.

    Raises:
        UserError: as `volume_usd_per_hour`.
    """
    minutes = BEFORE_MINUTES + ENDS_ITSELF_MINUTES
    return usd_per_hour * minutes / 60 + volume_usd_per_hour(workspace) * up_hours
