"""What a worker is told: plain values, so that they travel to any node."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.costs import Budget, per_second
from turbo_vaed.distill.stopping import Target
from turbo_vaed.distill.targets import TargetPlan
from turbo_vaed.models import DecoderConfig

_HOW = frozenset(
    ("workers", "min_workers", "micro_batch", "teacher_targets", "compile", "checkpoint_every",
     "keep_checkpoints", "stop_psnr_margin_db", "stop_usd_per_tenth_db")
)  # fmt: skip
"""Params that say how, or for how long, a student is computed and not which: a run goes on when
they change."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What a run has cost, as its driver tells it while it goes on."""

    usd: Decimal
    usd_per_hour: Decimal
    """That its nodes can come to from now on."""
    now_usd_per_hour: Decimal
    """That they cost now."""
    may_spend_usd: Decimal
    """In all: less than at the start where other runs have used up a month's budget."""
    reserve_usd: Decimal
    """Of that, kept back for what must follow: more than at the start where machines joined."""
    checkpoint_seconds: float
    """Between two checkpoints, by what the run has seen up to now."""
    refusal: str = ""
    """Why the run must stop: what a node of it costs is not known."""
    age_seconds: float = 0.0
    """Since the driver said so."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One student to be distilled; the folders may be URLs that every worker reaches."""

    clips: str
    latents: str
    targets: str | None
    """The teacher's cached targets, where the plan says so."""
    plan: TargetPlan
    teacher_family: str
    teacher_weights: Path
    """For targets that are computed again in every step."""
    student: DecoderConfig
    params: DistillParams
    data_key: str
    """Of the clips and latents: their content, in a few letters."""
    budget: Budget
    usd_per_hour: Decimal
    """That all nodes of the run together can come to."""
    now_usd_per_hour: Decimal
    """That they cost now: what a step is said to have cost."""
    spent_usd: Decimal
    """By the run when the job was handed over, or when that was told last."""
    checkpoint_seconds: float
    """Between two checkpoints, where `checkpoint_every` is auto."""
    told_at: float
    """Unix seconds of that moment."""
    refusal: str = ""
    """As of `Paid`."""
    target: Target | None = None
    """What quality is enough; None where none is."""

    def spent_now(self) -> Decimal:
        """What the run has cost by now: what was told, and the time since at the highest price."""
        seconds = Decimal(str(max(0.0, time.time() - self.told_at)))
        return self.spent_usd + seconds * per_second(self.usd_per_hour)

    def told(self, paid: Paid) -> Job:
        """The job from now on, with what it has cost."""
        return replace(
            self,
            budget=replace(self.budget, run_usd=paid.may_spend_usd, reserve_usd=paid.reserve_usd),
            spent_usd=paid.usd,
            usd_per_hour=paid.usd_per_hour,
            now_usd_per_hour=paid.now_usd_per_hour,
            refusal=paid.refusal,
            checkpoint_seconds=paid.checkpoint_seconds,
            told_at=time.time() - paid.age_seconds,
        )

    @property
    def name(self) -> str:
        """The same for the same student of the same data, so that its checkpoints are found."""
        params = which_student(self.params)
        told = {"student": asdict(self.student), "params": params, "data": self.data_key}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        return f"distill-{digest.hexdigest()[:16]}"


def which_student(params: DistillParams) -> dict[str, Any]:
    """The params that say which student is computed: with others of them it begins anew."""
    return {name: value for name, value in asdict(params).items() if name not in _HOW}


def data_key(clips: Path, latents: Path) -> str:
    """Of a customer's clips and latents, by what describes them."""
    digest = hashlib.sha256()
    for path in (clips / "clips.json", latents / "latents.json"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
