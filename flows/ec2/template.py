"""`infra/ray/machine.yaml`: what every machine of `turbo-vaed ec2 run` has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.errors import UserError

TEMPLATE = Path("infra/ray/machine.yaml")


def read(root: Path) -> dict[str, Any]:
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


def node_config(config: dict[str, Any]) -> dict[str, Any]:
    """What it says of the machine itself, in the words of EC2.

    Raises:
        UserError: it says nothing.
    """
    try:
        found: dict[str, Any] = config["available_node_types"][config["head_node_type"]][
            "node_config"
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{TEMPLATE} lacks {error}; compare it with the one in git") from None
    return found


def volume_gib(config: dict[str, Any]) -> int:
    """The size of all volumes of a machine together.

    Raises:
        UserError: of one it does not say the size.
    """
    mappings = node_config(config).get("BlockDeviceMappings") or []
    sizes = [mapping.get("Ebs", {}).get("VolumeSize") for mapping in mappings]
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(
            f"{TEMPLATE}: the sizes of its volumes are {sizes}; expected BlockDeviceMappings, each "
            "with an Ebs.VolumeSize in GiB, for a volume is paid for"
        )
    return sum(sizes)
