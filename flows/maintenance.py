"""What nobody's run does: the dead runs of customers who do not run again are settled, and the
fleet's page keeps up with the time."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows import publish
from flows.open_run import settle_dead
from turbo_vaed.report.fleet.site import site_at
from turbo_vaed.runtime import logs
from turbo_vaed.settings import Settings, set_environment_defaults

CRON = "*/15 * * * *"


@flow(name="maintenance")
def maintenance_flow() -> None:
    """Settle what dead runs left, and make the fleet's page again; `schedule sync` has it run every
    quarter of an hour."""
    set_environment_defaults()
    logs.of_run()
    settings = Settings.from_environment()
    for dead in settle_dead(settings):
        get_run_logger().warning("run %s of %s had died and is settled", dead.run, dead.customer)
    publish.rebuild(settings, site_at(settings.site_url))
