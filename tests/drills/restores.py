"""Everything of a checkout is lost and restored from a backup, and the customer goes on.

A real run on the embedded stores is lost first: SQLite, folders. Then its charges move to
PostgreSQL, it is registered there, in an MLflow on PostgreSQL, and both databases are lost with it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from tests.costs.conftest import Postgres
from tests.e2e import checkout
from turbo_vaed.costs import Ledger
from turbo_vaed.runtime.files import sha256_file, sha256_json

CUSTOMER = "tiny"
LOST = ("state", "work", "customers", "mlruns", ".dvc/cache", ".dvc/tmp")
"""Everything that runs have made in the checkout."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be the same after a restore."""

    charged_usd: Decimal
    charges: int
    registered: str
    """Every version in MLflow's registry, with its digests and aliases."""
    champion: str
    """The alias, and what an audit of the version's bytes finds wrong."""
    outputs_sha256: str
    """Of all files that the stages have made, and of their lock."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What came of a drill."""

    create_seconds: float
    restore_seconds: float
    stored_bytes: int
    facts: Facts


def make(root: Path) -> Path:
    """A checkout whose customer has run, on the embedded stores; returns it."""
    checkout.make(root)
    call(root, {}, "customer", "add", CUSTOMER, "--source", "videos", "--use-case", "education")
    checkout.override(root, **checkout.TINY)
    call(root, {}, "poc", CUSTOMER)
    return root


def move_to_postgres(root: Path, server: Postgres) -> dict[str, str]:
    """The run's charges go to a ledger on PostgreSQL, and its package is registered in an MLflow
    there; the environment of it."""
    url = server.new_database()
    with Ledger.open(f"sqlite:///{root}/state/ledger.db") as old, Ledger.open(url) as new:
        new.add_all(old.charges())
    run = root / "work" / CUSTOMER / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "status": "open"}))
    environment = {"TURBO_VAED_LEDGER_URL": url, "MLFLOW_TRACKING_URI": server.new_database()}
    call(root, environment, "poc", CUSTOMER)
    return environment


def carry_out(
    root: Path, store: Path, environment: Mapping[str, str], lose_databases: Callable[[], None]
) -> Restored:
    """Back up, lose, restore, go on.

    Raises:
        AssertionError: something is not as it was.
    """
    server = ["--mlflow-artifacts", str(root / "mlruns")] if environment else []
    before = facts_of(root, environment)
    assert "champion" in before.champion and before.charges > 0
    began = time.monotonic()
    call(root, environment, "backup", "create", str(store), *server)
    create_seconds = time.monotonic() - began
    for name in LOST:
        shutil.rmtree(root / name, ignore_errors=True)
    lose_databases()
    began = time.monotonic()
    call(root, environment, "backup", "restore", str(store), *server)
    restore_seconds = time.monotonic() - began
    assert facts_of(root, environment) == before
    plan = json.loads(call(root, environment, "upgrade", "plan", CUSTOMER, "--format", "json"))
    assert plan["total"]["customers"] == 0, plan
    assert "Nothing has changed" in call(root, environment, "poc", CUSTOMER)
    after = facts_of(root, environment)
    assert after == before, f"the next run changed {after}"
    return Restored(
        create_seconds=create_seconds,
        restore_seconds=restore_seconds,
        stored_bytes=sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
        facts=before,
    )


def facts_of(root: Path, environment: Mapping[str, str]) -> Facts:
    """As they are now."""
    url = environment.get("TURBO_VAED_LEDGER_URL", f"sqlite:///{root}/state/ledger.db")
    with Ledger.open(url) as ledger:
        charged_usd, charges = ledger.total(), len(ledger.charges())
    work = root / "work" / CUSTOMER
    made = [
        path
        for stage in ("validate", "clip", "encode", "distill", "evaluate", "export", "gate")
        for path in sorted((work / stage).rglob("*"))
        if path.is_file()
    ]
    made.append(root / "customers" / CUSTOMER / "dvc.lock")
    digests = {str(path.relative_to(root)): sha256_file(path) for path in made}
    registry = ("registry", "list", CUSTOMER, "--format", "json")
    audit = ("registry", "audit", CUSTOMER, "--format", "json")
    return Facts(
        charged_usd=charged_usd,
        charges=charges,
        registered=call(root, environment, *registry),
        champion=call(root, environment, *audit),
        outputs_sha256=sha256_json(digests),
    )


def call(root: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """What a command prints, which must succeed."""
    done = checkout.turbo_vaed(root, *arguments, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
