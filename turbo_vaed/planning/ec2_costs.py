"""What a machine of `turbo-vaed ec2 run` costs outside its stages: its volume, and the time before
the first and after the last of them. `infra/ray/machine.yaml` describes what all machines share."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.errors import UserError
from turbo_vaed.workspace import Workspace

TEMPLATE = Path("infra/ray/machine.yaml")
ENDS_ITSELF_MINUTES = 15
"""After its run has ended, unless somebody ends the machine before."""
BEFORE_MINUTES = 15
"""The most that start, set-up and copies are expected to take."""
VOLUME = "volume"
"""The resource of a charge for its volume."""
_MONTH_HOURS = 30 * 24


def read_template(root: Path) -> dict[str, Any]:
    """The template of a checkout, as Ray's cluster launcher takes it.

    Raises:
        UserError: it is missing, or is not YAML.
    """
    path = root / TEMPLATE
    try:
        template: dict[str, Any] = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error}") from error
    return template


def node_config(template: dict[str, Any]) -> dict[str, Any]:
    """The template's EC2 parameters of the machine itself.

    Raises:
        UserError: it has none.
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
        UserError: it has none, or one without a size.
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
    """The most that a machine is expected to cost outside its stages: its volume while it is up,
    and start, set-up, copies and end at its price.

    Raises:
        UserError: as `volume_usd_per_hour`.
    """
    minutes = BEFORE_MINUTES + ENDS_ITSELF_MINUTES
    return usd_per_hour * minutes / 60 + volume_usd_per_hour(workspace) * up_hours
