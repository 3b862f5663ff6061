"""`turbo-vaed registry …`: versions of a customer's student, and which one ships."""

from __future__ import annotations

from typing import Annotated

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Versions of a customer's student.")


@app.command("list")
def list_versions(customer: Customer, form: Format = "table") -> None:
    """Versions of a customer's student: alias, verdict, package."""
    from turbo_vaed.config import load
    from turbo_vaed.registry.promotion import versions

    settings = Settings.from_environment()
    load.load(settings.root, customer)
    rows = [
        {
            "version": row.version,
            "aliases": ", ".join(row.aliases),
            "verdict": row.verdict_result,
            "package": row.package_sha256[:12],
            "created": row.created_at.isoformat(timespec="seconds"),
            "reasons": row.reasons.splitlines() if form == "json" else _first(row.reasons),
        }
        for row in versions(settings.mlflow_tracking_uri, customer)
    ]
    show(rows, form, f"versions of {customer}")


def _first(reasons: str) -> str:
    """The first of several reasons, and how many more there are."""
    first, *others = reasons.splitlines() or [""]
    more = f"; and {len(others)} more (--format json)" if others else ""
    return first + more


@app.command("promote")
def promote_version(
    customer: Customer,
    version: Annotated[int, typer.Argument(help="of the customer's model")],
    approved_by: Annotated[
        str, typer.Option(help="who approves it, where the use case requires that")
    ] = "",
    reason: Annotated[str, typer.Option(help="why they approve")] = "",
) -> None:
    """Make a version champion, if a passing verdict stands over exactly its bytes.

    A use case that needs a person's approval also needs --approved-by and --reason; both are
    recorded with the version, and hold for exactly these bytes.
    """
    from turbo_vaed.errors import GateRefused
    from turbo_vaed.registry.approval import Approval
    from turbo_vaed.registry.promotion import promote

    if bool(approved_by.strip()) != bool(reason.strip()):
        raise UserError("--approved-by and --reason belong together: who approves, and why")
    approver = approved_by.strip()
    approval = Approval(by=approver, reason=reason.strip()) if approver else None
    uri = Settings.from_environment().mlflow_tracking_uri
    outcome = promote(tracking_uri=uri, customer=customer, version=version, approval=approval)
    replaced = f", replacing version {outcome.previous_champion}"
    print(
        f"{outcome.name} version {outcome.version} is {outcome.alias}"
        + (replaced if outcome.previous_champion else "")
    )
    if outcome.reasons:
        raise GateRefused("not champion: " + "; ".join(outcome.reasons))


@app.command("audit")
def audit_versions(customer: Customer, form: Format = "table") -> None:
    """Check each version that has an alias again: its bytes, its verdict, its approval.

    Exits with 1 if one should not have its alias.
    """
    from turbo_vaed.config import load
    from turbo_vaed.errors import GateRefused
    from turbo_vaed.registry.promotion import audit

    settings = Settings.from_environment()
    load.load(settings.root, customer)  # a misspelled name has nothing to audit
    found = audit(settings.mlflow_tracking_uri, customer)
    rows = [
        {
            "alias": row.alias,
            "version": row.version,
            "approved by": row.approved_by or "—",
            "rationale": row.approval_rationale or "—",
            "at": row.approved_at or "—",
            "wrong": "; ".join(row.wrong) or "nothing",
        }
        for row in found
    ]
    show(rows, form, f"aliases of {customer}")
    if wrong := [row for row in found if row.wrong]:
        raise GateRefused(f"{len(wrong)} of {len(found)} aliases fail the audit")
