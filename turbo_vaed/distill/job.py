"""A training job: plain values, so that they travel to any node."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Budget, per_second
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan
from turbo_vaed.models import DecoderConfig
from turbo_vaed.runtime.files import sha256_json

_HOW = frozenset(
    ("workers", "min_workers", "micro_batch", "teacher_targets", "compile", "checkpoint_every",
     "keep_checkpoints", "stop_psnr_margin_db", "stop_usd_per_tenth_db")
)  # fmt: skip
"""Params that affect how, or for how long, a student is trained, not which one: changing them keeps
its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class QualityTarget:
    """The quality on the validation clips at which a student is good enough."""

    psnr: float
    """dB, the margin included."""
    rationale: str
    """How the PSNR comes about, in words with figures."""
    limits: Mapping[str, float]
    """Of further figures: any of `ssim`, `ms_ssim`, `worst_psnr`, `detail` (at least) and
    `flicker` (at most)."""
    worst_share: float
    """Of the clips: `worst_psnr` is the mean PSNR of so many."""


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """What a run has cost and may cost, as its driver reports it while the run goes on."""

    budget: Budget
    """`run_usd` falls where other runs use up a month's budget, and `reserve_usd` grows where
    machines join."""
    spent_usd: Decimal
    """By the run, up to `at`."""
    usd_per_hour: Decimal
    """The most that its nodes can come to from now on."""
    now_usd_per_hour: Decimal
    """What they cost now."""
    checkpoint_seconds: float
    """Between two checkpoints where `checkpoint_every` is auto, by what the run has seen so far."""
    at: float
    """Unix seconds, by the clock of the reader."""
    refusal: str = ""
    """Why the run must stop: the price of one of its nodes is unknown."""

    def spent_by_now(self) -> Decimal:
        """USD: what was reported, and the time since then at the highest price."""
        seconds = Decimal(str(max(0.0, time.time() - self.at)))
        return self.spent_usd + seconds * per_second(self.usd_per_hour)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One student to be distilled; the folders may be URLs that every worker reaches."""

    clips: str
    latents: str
    targets: str | None
    """The teacher's cached targets, where the plan says so."""
    plan: TeacherTargetsPlan
    teacher_family: str
    teacher_weights: str | Path
    """For targets that are computed again in every step."""
    student: DecoderConfig
    params: DistillParams
    data_key: str
    """Identifies the content of the clips and latents."""
    costs: RunCosts
    """When the job was handed over."""
    quality_target: QualityTarget | None = None
    """None: no quality ends the run early."""
    perceptual_weights: str | None = None
    """Where workers read those that the params name; None: there."""

    @property
    def name(self) -> str:
        """The same for the same student of the same data, so that its checkpoints are found."""
        params = which_student(self.params)
        identity = {"student": asdict(self.student), "params": params, "data": self.data_key}
        return f"distill-{sha256_json(identity)[:16]}"


def which_student(params: DistillParams) -> dict[str, Any]:
    """The params that say which student is computed: with others training starts from scratch."""
    return {name: value for name, value in asdict(params).items() if name not in _HOW}


def data_key(clips: Path, latents: Path) -> str:
    """A digest of what describes a customer's clips and latents."""
    digest = hashlib.sha256()
    for path in (clips / "clips.json", latents / "latents.json"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
