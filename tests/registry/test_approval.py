"""A person's approval: recorded whole, for exactly these bytes, and audited."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from mlflow import MlflowClient

from tests.registry.stored import Make, put
from turbo_vaed.registry.approval import Approval
from turbo_vaed.registry.promotion import audit, promote


@pytest.mark.slow
def test_a_person_approves_for_exactly_these_bytes_and_it_is_recorded(
    store: str, make: Make
) -> None:
    approval = Approval(by="ada", reason="seen on three phones")
    put(store, make(b"first", needs_approval=True))
    found = promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    assert (found.alias, found.reasons) == ("champion", ())
    (row,) = audit(store, "demo")
    assert (row.alias, row.approved_by, row.approval_rationale) == (
        "champion",
        "ada",
        approval.reason,
    )
    assert row.wrong == ()
    approved_at = datetime.fromisoformat(row.approved_at)
    assert abs(datetime.now(UTC) - approved_at) < timedelta(hours=1), "with its time zone"
    # It holds for the version, whoever asks again, and for no other.
    assert promote(tracking_uri=store, customer="demo", version=1).alias == "champion"
    put(store, make(b"second", needs_approval=True))
    assert promote(tracking_uri=store, customer="demo", version=2).alias == "candidate"


def test_an_approval_of_an_earlier_version_still_counts(store: str, make: Make) -> None:
    put(store, make(b"first", needs_approval=True))
    approval = Approval(by="ada", reason="seen on three phones")
    promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    client = MlflowClient(tracking_uri=store)
    client.delete_model_version_tag("turbo-vaed-demo", "1", "approval_rationale")
    client.set_model_version_tag("turbo-vaed-demo", "1", "approved_because", approval.reason)
    (row,) = audit(store, "demo")
    assert (row.approval_rationale, row.wrong) == (approval.reason, ())


def test_an_approval_does_not_make_up_for_a_failed_check(store: str, make: Make) -> None:
    put(store, make(b"bad", psnr_db=20.0, needs_approval=True))
    approval = Approval(by="ada", reason="in a hurry")
    found = promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    assert found.alias == "candidate"
    assert any("required >= " in reason for reason in found.reasons)


@pytest.mark.parametrize("missing", ["approved_by", "approval_rationale", "approved_at"])
def test_an_approval_without_a_name_reason_or_date_does_not_count(
    store: str, make: Make, missing: str
) -> None:
    put(store, make(b"first", needs_approval=True))
    approval = Approval(by="ada", reason="seen")
    promote(tracking_uri=store, customer="demo", version=1, approval=approval)
    client = MlflowClient(tracking_uri=store)
    client.delete_model_version_tag("turbo-vaed-demo", "1", missing)
    (row,) = audit(store, "demo")
    (wrong,) = row.wrong
    assert "inspection" in wrong and "approval" in wrong
    assert promote(tracking_uri=store, customer="demo", version=1).alias == "candidate"
    with pytest.raises(ValueError, match="by is empty"):
        Approval(by=" ", reason="x")
