"""A person's approval of a model version, recorded in its tags for exactly its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_APPROVED_SHA256 = "approved_package_sha256"
_RATIONALE, _EARLIER_RATIONALE = "approval_rationale", "approved_because"
"""The tag of the reason, and its name in approvals of earlier versions, which still count."""


@dataclass(frozen=True, kw_only=True)
class Approval:
    """Who approves a version, and why."""

    by: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("by", "reason"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; expected who approves, and why")


def is_approved(version: ModelVersion, sha256: str) -> bool:
    """Whether somebody approved exactly these bytes, with a name, a reason and a time."""
    tags = version.tags
    required = (tags.get("approved_by", ""), rationale_of(version), tags.get("approved_at", ""))
    return tags.get(_APPROVED_SHA256) == sha256 and all(text.strip() for text in required)


def rationale_of(version: ModelVersion) -> str:
    """Why a version was approved; empty where it was not."""
    tags = version.tags
    return str(tags.get(_RATIONALE) or tags.get(_EARLIER_RATIONALE, ""))


def approve(client: MlflowClient, version: ModelVersion, approval: Approval) -> ModelVersion:
    """Record an approval of a version, for the bytes that were registered."""
    tags = {
        "approved_by": approval.by,
        _RATIONALE: approval.reason,
        "approved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        _APPROVED_SHA256: version.tags.get("package_sha256", ""),
    }
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    return client.get_model_version(version.name, str(version.version))
