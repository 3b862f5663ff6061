"""What a machine of EC2 costs a run outside its stages: its volume, and the time before the first
and after the last of them."""

from __future__ import annotations

from decimal import Decimal

from turbo_vaed.cluster.environment import volume_gib
from turbo_vaed.workspace import Workspace

BEFORE_MINUTES = 15
"""The most that start and set-up are expected to take."""
AFTER_MINUTES = 15
"""The most that a machine is expected to be up after its last stage."""
VOLUME = "volume"
"""The resource of a charge for its volume."""
_MONTH_HOURS = 30 * 24


def overhead_usd(workspace: Workspace, usd_per_hour: Decimal, up_hours: Decimal) -> Decimal:
    """The most that a machine is expected to cost outside its stages: its volume while it is up,
    and start, set-up and end at its price.

    Raises:
        UserError: the environment of the cluster is not valid.
    """
    price = workspace.params.prices.volume_usd_per_gb_month
    volume_usd_per_hour = volume_gib(workspace.root) * price / _MONTH_HOURS
    minutes = BEFORE_MINUTES + AFTER_MINUTES
    return usd_per_hour * minutes / 60 + volume_usd_per_hour * up_hours
