"""The input of a report: plain values, so that a run can be reported however far it came.

Shapes: T frames, H height, W width; videos are uint8 (T,H,W,3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from turbo_vaed.costs import CostSummary
    from turbo_vaed.roi.roi import Roi

Video = NDArray[np.uint8]
"""uint8 (T,H,W,3)."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Where a run ended before its end, and why."""

    stage: str
    error: str
    """The message of the error or refusal."""
    by_budget: bool = False
    """The budget refused to go on, as opposed to something that broke."""
    by_person: bool = False
    """Somebody stopped it: Ctrl-C, or a signal."""
    is_begun: bool = True
    """Whether any stage of the run was begun."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What the registry knows of this run's package."""

    name: str
    version: int
    alias: str
    """`champion` or `candidate`; empty where it is registered and not judged for promotion yet."""
    reasons: Sequence[str] = ()
    """Why it is no champion."""
    mlflow_run: str = ""
    mlflow_uri: str = ""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One test clip as the page shows it."""

    index: int
    """Its place in clips.zarr."""
    label: str
    path: str
    start_frame: int
    fps: float
    source: Video
    teacher: Video | None
    phone: Video | None
    """What the device put out."""
    teacher_psnr: float | None
    phone_psnr: float | None
    """dB, against the source."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The share of the teacher's PSNR that is left, and both PSNRs that it is the ratio of."""

    share: float
    is_packaged: bool
    """Of the package, on its device; otherwise of the student as it was trained."""
    psnr_db: float | None
    teacher_psnr_db: float | None
    """Of the same clips."""


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """Everything on the page. A part whose stage was not reached is None or empty."""

    customer: str
    run_id: str
    started: datetime
    finished: datetime
    costs: CostSummary
    price: str = ""
    """What an hour costs, and the source of that: `$0.08 per hour, local (params.yaml)`."""
    use_case: str = ""
    failure: Failure | None = None
    registration: Registration | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Name -> value, for instance git_revision, dvc_lock_sha256, python."""
    problems: Sequence[str] = ()
    """Outputs that are there and cannot be read."""
    estimate: Mapping[str, Any] | None = None
    """estimate.json, made before the run; None where no pace was known."""
    customer_usd: Decimal | None = None
    """Cost of all of the customer's runs: earlier ones may have paid for stages of this one."""

    validation: Mapping[str, Any] | None = None
    manifest: Sequence[Mapping[str, Any]] = ()
    clips: Mapping[str, Any] | None = None
    latents: Mapping[str, Any] | None = None
    history: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    package: Mapping[str, Any] | None = None
    measurement: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    choice: Mapping[str, Any] | None = None
    """The packages that were judged, and which of them ships."""
    roi: Roi | None = None
    no_roi: str = ""
    """Why there is no return on investment, although there are assumptions."""
    shots: Sequence[Shot] = ()
    worst: Shot | None = None
    """The test clip with the lowest PSNR on the phone."""

    @property
    def stopped_early(self) -> bool:
        """Distillation ended before its planned steps, for the budget."""
        return self.history is not None and self.history.get("stopped") == "budget"

    def check(self, name: str) -> Mapping[str, Any] | None:
        """A check of the verdict, or None."""
        checks = (self.verdict or {}).get("checks", ())
        return next((check for check in checks if check["name"] == name), None)

    def measured(self, check: str) -> float | None:
        """The measured value of a check, or None."""
        found = self.check(check)
        return None if found is None or found["measured"] is None else float(found["measured"])

    @property
    def retention(self) -> Retention | None:
        """As the gate judged the package; the student's where no package was measured."""
        evaluation = self.evaluation
        teacher = None if evaluation is None else float(evaluation["teacher"]["psnr"]["mean"])
        share = self.measured("psnr_retention")
        if share is not None:
            psnr = self.measured("psnr")
            return Retention(share=share, is_packaged=True, psnr_db=psnr, teacher_psnr_db=teacher)
        if evaluation is None or evaluation["retention"]["psnr"] is None:
            return None
        return Retention(
            share=float(evaluation["retention"]["psnr"]),
            is_packaged=False,
            psnr_db=float(evaluation["student"]["psnr"]["mean"]),
            teacher_psnr_db=teacher,
        )

    @property
    def parameter_share(self) -> float | None:
        """Parameters of the student over those of the teacher's decoder."""
        history = self.history
        if history is None:
            return None
        return float(history["student_parameters"]) / float(history["teacher_decoder_parameters"])
