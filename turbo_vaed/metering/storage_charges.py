"""Charges a run for storing its files on disk and in a bucket until its end, and for what it read
out of the bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from turbo_vaed.costs import Charge, Ledger, total_usd, transfer
from turbo_vaed.costs.prices import Market
from turbo_vaed.costs.storage import ARRAYS, BUCKET, UNIT, storage_charge
from turbo_vaed.costs.transfer import CHECKPOINTS, transfer_charge
from turbo_vaed.distill.events import read_events
from turbo_vaed.metering.stored_checkpoints import StoredCheckpoints, stored_checkpoints
from turbo_vaed.settings import Settings
from turbo_vaed.storage.published import stored_files
from turbo_vaed.storage.urls import is_remote
from turbo_vaed.workspace import Workspace

KEPT = {"clip": "clip", "encode": "encode", "targets": "distill"}
"""Folders of a customer with clips, latents and the teacher's targets, and the stages that write
them. Checkpoints are charged by the event log, since most are gone by the end."""
SOURCE = "prices.storage_usd_per_gb_month"
DISK = "disk (checkpoints)"
ARRAYS_DISK = "disk (arrays)"
BUCKET_SOURCE = "prices.bucket_usd_per_gb_month"
Kept = tuple[int, datetime, datetime]
"""Bytes, and from when to when they were stored."""


def charge_storage(
    workspace: Workspace,
    ledger: Ledger,
    settings: Settings,
    *,
    run: str,
    began: datetime,
    ended: datetime,
) -> Decimal:
    """Charge what is stored at the end of a run, for as long as this run stored it, and what it
    read out of a bucket if it ran outside AWS; returns USD.

    Files of an earlier run are charged from the beginning of this one: the time between runs
    belongs to no run. Where this run was charged before, they are charged from then on.

    Raises:
        Unreachable: the ledger does not take it.
        CorruptFile: the progress file is none.
    """
    until = _charged_until(ledger, run, began)
    found = list(_of_disks(workspace, run, began, ended, until))
    if workspace.progress_file.is_file():
        seen = stored_checkpoints(
            read_events(workspace.progress_file),
            keep=workspace.params.distill.keep_checkpoints,
            now=ended.timestamp(),
        )
        in_s3 = (settings.checkpoints_url or "").startswith("s3://")
        place = BUCKET if in_s3 else DISK
        found += _of_checkpoints(workspace, run, seen, place, until.get(place, began), ended)
        if in_s3 and not settings.machine and not settings.on_a_cluster:
            found += _of_transfer(workspace, run, seen, began, until)
    return _add(ledger, found)


def charge_arrays(
    workspace: Workspace,
    ledger: Ledger,
    settings: Settings,
    *,
    run: str,
    began: datetime,
    ended: datetime,
) -> Decimal:
    """Charge what lies in `TURBO_VAED_ARRAYS` when a run ends, as `charge_storage` does; its USD.

    Raises:
        Unreachable: the ledger does not take it, or S3 does not answer.
        UserError: the bucket is not there, or not for this machine.
    """
    if settings.arrays_url is None:
        return Decimal(0)
    until, prices = _charged_until(ledger, run, began), workspace.params.prices
    in_s3 = is_remote(settings.arrays_url)
    place = ARRAYS if in_s3 else ARRAYS_DISK
    market: Market = "on-demand" if in_s3 else "local"
    usd, source = prices.storage_usd_per_gb_month, SOURCE
    if in_s3:
        usd, source = prices.bucket_usd_per_gb_month, BUCKET_SOURCE
    kept = [
        (one.size_bytes, _utc(one.changed_at), ended)
        for one in stored_files(f"{settings.arrays_url}/{workspace.customer}")
    ]
    free_until = until.get(place, began)
    found = _kept(workspace, run, "distill", place, market, kept, free_until, usd, source)
    return _add(ledger, found)


def _charged_until(ledger: Ledger, run: str, began: datetime) -> dict[str, datetime]:
    """Up to when each resource of a run's storage and transfer is charged."""
    until: dict[str, datetime] = {}
    for charge in ledger.charges(run=run):
        if charge.unit in (UNIT, transfer.UNIT):
            until[charge.resource] = max(charge.ended_at, until.get(charge.resource, began))
    return until


def _add(ledger: Ledger, found: Iterable[Charge]) -> Decimal:
    charges = [charge for charge in found if charge.quantity > 0]
    ledger.add_all(charges)
    return total_usd(charge.amount_usd for charge in charges)


def _of_disks(
    workspace: Workspace,
    run: str,
    began: datetime,
    ended: datetime,
    charged_until: Mapping[str, datetime],
) -> Iterator[Charge]:
    for folder, stage in KEPT.items():
        files = [path for path in (workspace.work / folder).rglob("*") if path.is_file()]
        resource = f"disk ({folder})"
        free_until = max(began, charged_until.get(resource, began))
        stats = [path.stat() for path in files]
        kept = [(s.st_size, datetime.fromtimestamp(s.st_mtime, UTC), ended) for s in stats]
        usd = workspace.params.prices.storage_usd_per_gb_month
        yield from _kept(workspace, run, stage, resource, "local", kept, free_until, usd, SOURCE)


def _of_checkpoints(
    workspace: Workspace,
    run: str,
    seen: StoredCheckpoints,
    place: str,
    free_until: datetime,
    ended: datetime,
) -> Iterator[Charge]:
    kept = [(one.size_bytes, _utc(one.began_at), min(_utc(one.ended_at), ended))
            for one in seen.stored]  # fmt: skip
    prices = workspace.params.prices
    if place == BUCKET:
        usd, source = prices.bucket_usd_per_gb_month, BUCKET_SOURCE
    else:
        usd, source = prices.storage_usd_per_gb_month, SOURCE
    market: Market = "on-demand" if place == BUCKET else "local"
    yield from _kept(workspace, run, "distill", place, market, kept, free_until, usd, source)


def _kept(
    workspace: Workspace,
    run: str,
    stage: str,
    resource: str,
    market: Market,
    kept: Iterable[Kept],
    free_until: datetime,
    usd_per_gb_month: Decimal,
    source: str,
) -> Iterator[Charge]:
    """One charge for all that was stored; none for nothing."""
    paid = [(size, max(since, free_until), until) for size, since, until in kept]
    paid = [one for one in paid if one[1] < one[2]]
    if not paid:
        return
    yield storage_charge(
        run=run,
        customer=workspace.customer,
        stage=stage,
        resource=resource,
        byte_microseconds=sum(
            size * ((until - since) // timedelta(microseconds=1)) for size, since, until in paid
        ),
        since=min(since for _, since, _ in paid),
        until=max(until for _, _, until in paid),
        usd_per_gb_month=usd_per_gb_month,
        price_source=source,
        market=market,
    )


def _of_transfer(
    workspace: Workspace,
    run: str,
    seen: StoredCheckpoints,
    began: datetime,
    charged_until: Mapping[str, datetime],
) -> Iterator[Charge]:
    """A charge per checkpoint that was read since the run began and is not charged yet."""
    resource = transfer.resource(CHECKPOINTS)
    for one in seen.fetched:
        at = _utc(one.at)
        if at > charged_until.get(resource, began):
            yield transfer_charge(
                run=run,
                customer=workspace.customer,
                stage="distill",
                what=CHECKPOINTS,
                size_bytes=one.size_bytes,
                began=at,
                ended=at,
                usd_per_gb=workspace.params.prices.transfer_out_usd_per_gb,
            )


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
