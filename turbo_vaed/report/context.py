"""What a report is written from: plain values, so that any run, whole or failed, can be shown.

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
    """Where a run ended before its end, in the words of what ended it."""

    stage: str
    error: str
    by_budget: bool = False
    """The budget refused to go on, as opposed to something that broke."""
    is_begun: bool = True
    """Whether any stage of the run was begun."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What the registry knows of this run's package."""

    name: str
    version: int
    alias: str
    """`champion` or `candidate`."""
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
class ReportContext:
    """Everything on the page. A part whose stage was not reached is None or empty."""

    customer: str
    run_id: str
    started: datetime
    finished: datetime
    costs: CostSummary
    price: str = ""
    """What an hour costs and who says so, for people: `$0.08 per hour, local (params.yaml)`."""
    use_case: str = ""
    failure: Failure | None = None
    registration: Registration | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Name -> value, for instance git_revision, dvc_lock_sha256, python."""
    problems: Sequence[str] = ()
    """Outputs that are there and cannot be read."""
    estimate: Mapping[str, Any] | None = None
    """What was said before the run of what it would cost; None where no pace was known."""
    customer_usd: Decimal | None = None
    """Of all of the customer's runs, earlier ones whose stages this one found done among them."""

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
    """Why there is no return on investment, where one was asked for."""
    shots: Sequence[Shot] = ()
    worst: Shot | None = None
    """The test clip with the lowest PSNR on the phone."""

    @property
    def stopped_early(self) -> bool:
        """Distillation ended before its planned steps, for the budget."""
        return self.history is not None and self.history.get("stopped") == "budget"
