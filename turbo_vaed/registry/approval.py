"""That a person answers for a version of a model: recorded in its tags, for exactly its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_APPROVED_SHA256 = "approved_package_sha256"


@dataclass(frozen=True, kw_only=True)
class Approval:
    """That a person answers for a version."""

    by: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("by", "reason"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}: found nothing, expected who approves, and why")


def is_approved(version: ModelVersion, sha256: str) -> bool:
    """Whether somebody answers for exactly these bytes: who, why and when."""
    told = ("approved_by", "approval_rationale", "approved_at")
    return version.tags.get(_APPROVED_SHA256) == sha256 and all(
        version.tags.get(key, "").strip() for key in told
    )


def approve(client: MlflowClient, version: ModelVersion, approval: Approval) -> ModelVersion:
    """Record who answers for a version, for the bytes that were registered."""
    said = {
        "approved_by": approval.by,
        "approval_rationale": approval.reason,
        "approved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        _APPROVED_SHA256: version.tags.get("package_sha256", ""),
    }
    for key, value in said.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    return client.get_model_version(version.name, str(version.version))
