"""What nobody's run does: the dead runs of customers who do not run again are settled."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.open_run import settle_dead
from turbo_vaed.settings import Settings, set_environment_defaults

CRON = "*/15 * * * *"


@flow(name="maintenance")
def maintenance_flow() -> None:
    """Settle what dead runs left; `schedule sync` has it run every quarter of an hour."""
    set_environment_defaults()
    for dead in settle_dead(Settings.from_environment()):
        get_run_logger().warning("run %s of %s had died and is settled", dead.run, dead.customer)
