"""What a customer's earlier runs took: seconds per step, and USD and node-seconds per stage."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.config.sections import later_fields
from turbo_vaed.config.stages import AFTER_DISTILL, IDLE_STAGE
from turbo_vaed.config.yaml_file import read_yaml
from turbo_vaed.costs import ChargeGroup, Ledger, storage, total_usd, transfer
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.costs.run_context import DownstreamCost
from turbo_vaed.costs.statement import run_that_covers
from turbo_vaed.planning.ec2_costs import VOLUME
from turbo_vaed.runtime.files import read_json, write_json
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

PACE_FILE = "pace.json"
"""In the customer's folder: when the steps of the last run with a pace were done."""
_TENTHS = 10
_LAST_RUNS = 3
"""How many runs are looked at for the most that something took."""
_WITHOUT_EFFECT_ON_PACE = frozenset(
    ("steps", "learning_rate", "betas", "weight_decay", "warmup_share", "ema_decay", "seed",
     "min_workers", "keep_checkpoints", "stop_psnr_margin_db", "stop_usd_per_tenth_db")
)  # fmt: skip

_IN_EVERY_KEY = frozenset(("student_fraction",))
"""Keys that were added later and have been part of the key of a pace since, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds per step of a measured run, including validations and checkpoints, or seconds of work
    that is done once."""

    least: float
    mean: float
    most: float
    """Of the fastest and the slowest tenth of the steps."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a run takes on its workers."""

    pace: Pace
    """Seconds per step of the student."""
    once: Pace
    """Seconds of the teacher's work, which is done once: encoding, and the student's targets."""


NO_TIME = Pace(least=0, mean=0, most=0)


def pace(moments: Sequence[float]) -> Pace | None:
    """The pace by the moments (in seconds) at which steps were done, in order; None below ten.

    A gap of more than twenty times the median is a restart and is left out: the ledger has its cost
    as wasted.
    """
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    if len(gaps) < _TENTHS:
        return None
    limit = 20 * statistics.median(gaps)
    gaps = [gap for gap in gaps if 0 <= gap <= limit]
    size = len(gaps) / _TENTHS
    parts = [gaps[round(i * size) : round((i + 1) * size)] for i in range(_TENTHS)]
    means = [statistics.fmean(part) for part in parts if part]
    return Pace(least=min(means), mean=statistics.fmean(gaps), most=max(means))


def pace_key(params: DistillParams, settings: Settings) -> str:
    """Identifies what a pace was measured of, and where: a run with another key has another
    pace."""
    kind: Any = type(params)
    without = {
        name
        for name, default in later_fields(kind).items()
        if name not in _IN_EVERY_KEY and getattr(params, name) == default
    }
    how = {k: v for k, v in asdict(params).items() if k not in _WITHOUT_EFFECT_ON_PACE | without}
    key = {"params": how, "on_a_cluster": settings.on_a_cluster, "machine": platform.node()}
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_pace(workspace: Workspace, history: dict[str, Any]) -> None:
    """Save when the steps of a run were done, unless they are too few for a pace: a run that was
    stopped at once does not replace the pace of an earlier one."""
    if pace(_moments(history)) is not None:
        rows = [{"step": row["step"], "at": row["at"]} for row in history["steps"]]
        document = {"pace_key": history["pace_key"], "steps": rows}
        write_json(workspace.work / PACE_FILE, document, indent=None)


@dataclass(frozen=True, kw_only=True)
class PastRuns:
    """What is known of a customer's earlier runs."""

    customer: str
    groups: tuple[ChargeGroup, ...]
    """All charges of the customer."""
    histories: tuple[dict[str, Any], ...]
    """Of the last distillation, which may be another machine's, and the last saved pace."""
    pace_key: str
    """Of the run to come."""
    changed_stages: frozenset[str]
    """Stages whose parameters have changed since their last run."""

    @property
    def pace(self) -> Pace | None:
        """Seconds per step of the last distillation with the same student, losses and machines;
        None where too little was measured."""
        for history in self.histories:
            found = pace(_moments(history))
            if found is not None and history.get("pace_key") == self.pace_key:
                return found
        return None

    @property
    def downstream(self) -> DownstreamCost:
        """The most that each stage after distillation took in one of the last few runs in which it
        did not fail, and that one of them paid for disks, buckets and transfer."""
        return downstream(self.groups)

    @property
    def idle_usd(self) -> Decimal:
        """The most that one of the last few runs paid for idle nodes."""
        return _most((g for g in self.groups if g.stage == IDLE_STAGE), _usd)

    @property
    def devices_usd(self) -> Decimal:
        """The most that one of the last few runs paid for device minutes."""
        others = (UNIT, storage.UNIT, transfer.UNIT)
        return _most(
            (g for g in self.groups if g.stage != IDLE_STAGE and g.unit not in others), _usd
        )

    def node_seconds(self, stage: str) -> Decimal:
        """Of a stage in its last run that did not fail; 0 where it never ran."""
        return _node_seconds(_useful(self.groups), stage, runs=1)

    def other_usd(self, stages: Collection[str], measured: Pace) -> Decimal:
        """What a run of `stages` costs besides the steps of `distill`, by the last runs: its nodes,
        idle ones too, disks, buckets, transfer and devices."""
        stages_usd = self.stages_usd(stages, measured)
        return total_usd((stages_usd, self.downstream.usd, self.idle_usd, self.devices_usd))

    def downstream_usd(self, stages: Collection[str], measured: Pace) -> Decimal:
        """The part of that which is reserved: stages after distillation, disks, and devices."""
        later = [stage for stage in stages if stage in AFTER_DISTILL]
        later_usd = self.stages_usd(later, measured)
        return total_usd((later_usd, self.downstream.usd, self.devices_usd))

    def stages_usd(self, stages: Collection[str], measured: Pace) -> Decimal:
        """What the nodes of `stages` cost in their last runs, without the steps of `distill`."""
        groups = [g for g in self.groups if g.unit == UNIT]
        at = datetime.fromtimestamp(self._timed["steps"][-1]["at"], UTC)
        # The run whose steps the history has: a later one may have had none.
        trained = run_that_covers(groups, self.customer, at, at)
        found = []
        for stage in stages:
            of_run: dict[str, list[ChargeGroup]] = {}
            for group in groups:
                if group.stage == stage:
                    of_run.setdefault(group.run, []).append(group)
            if not of_run:
                continue
            last = max(of_run.values(), key=lambda its: max(group.last_at for group in its))
            if stage == "distill":
                last = of_run.get(trained or "", last)
            usd = total_usd(group.amount_usd for group in last)
            found.append(self._without_steps(last, usd, measured) if stage == "distill" else usd)
        return total_usd(found)

    def _without_steps(self, groups: list[ChargeGroup], usd: Decimal, measured: Pace) -> Decimal:
        """Of what `distill` cost, the share of the time in which no step was done."""
        node_seconds = float(total_usd(group.quantity for group in groups))
        began, ended = min(g.first_at for g in groups), max(g.last_at for g in groups)
        nodes = max(1, round(node_seconds / max(1.0, (ended - began).total_seconds())))
        rows = self._timed["steps"]
        in_steps = rows[-1].get("step", len(rows)) * measured.mean * nodes
        return quantise_usd(usd * Decimal(max(0.0, 1 - in_steps / max(node_seconds, 1e-9))))

    @property
    def _timed(self) -> dict[str, Any]:
        """The first history with steps enough for a pace."""
        for history in self.histories:
            if pace(_moments(history)) is not None:
                return history
        return self.histories[-1]


def past_runs(workspace: Workspace, settings: Settings, ledger: Ledger) -> PastRuns:
    """Read what is known of a customer's earlier runs.

    Raises:
        Unreachable: the ledger cannot be read.
        CorruptFile: a history is damaged.
    """
    files = (workspace.folder("distill") / "history.json", workspace.work / PACE_FILE)
    return PastRuns(
        customer=workspace.customer,
        groups=ledger.grouped(customer=workspace.customer),
        histories=tuple(read_json(path) for path in files if path.is_file()),
        pace_key=pace_key(workspace.params.distill, settings),
        changed_stages=_changed_stages(
            workspace.root, workspace.work / "params", workspace.dvc_lock
        ),
    )


def _moments(history: dict[str, Any]) -> list[float]:
    """When the last steps of a run were done, as far back as a row follows the one before: of a
    long run the earlier rows are thinned."""
    rows = history["steps"]
    steps = [row.get("step", i) for i, row in enumerate(rows)]
    gaps = (i for i in range(len(rows) - 1, 0, -1) if steps[i] != steps[i - 1] + 1)
    return [row["at"] for row in rows[next(gaps, 0) :]]


def _changed_stages(root: Path, params: Path, lock: Path) -> frozenset[str]:
    """Stages whose resolved params are not those of their last run, by DVC's record."""
    stages = read_yaml(lock).get("stages", {}) if lock.is_file() else {}
    changed = set()
    for path in params.glob("*.yaml"):
        name = str(path.relative_to(root))
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        deps = stages.get(path.stem, {}).get("deps", [])
        if any(dep["path"] == name and dep["md5"] != md5 for dep in deps):
            changed.add(path.stem)
    return frozenset(changed)


def downstream(groups: Iterable[ChargeGroup]) -> DownstreamCost:
    """As `PastRuns.downstream`, by the charges of a customer."""
    useful = _useful(groups)
    seconds = [_node_seconds(useful, stage) for stage in AFTER_DISTILL]
    # A machine's volume is reserved by whoever starts the machine (`planning/ec2_costs.py`).
    stored = (g for g in useful if g.unit in (storage.UNIT, transfer.UNIT) and g.resource != VOLUME)
    return DownstreamCost(seconds=float(total_usd(seconds)), usd=_most(stored, _usd))


def _useful(groups: Iterable[ChargeGroup]) -> list[ChargeGroup]:
    return [group for group in groups if group.useful == "useful"]


def _node_seconds(groups: Iterable[ChargeGroup], stage: str, runs: int = _LAST_RUNS) -> Decimal:
    """The most node-seconds that a stage took in one of the last `runs`; 0 where none has it."""
    of_stage = (g for g in groups if g.unit == UNIT and g.stage == stage)
    return _most(of_stage, lambda group: group.quantity, runs)


def _usd(group: ChargeGroup) -> Decimal:
    return group.amount_usd


def _most(
    groups: Iterable[ChargeGroup], amount: Callable[[ChargeGroup], Decimal], runs: int = _LAST_RUNS
) -> Decimal:
    """The largest sum of a run, of the last `runs` that have one; 0 where none has."""
    by_run: dict[str, list[ChargeGroup]] = {}
    for group in groups:
        by_run.setdefault(group.run, []).append(group)
    sums = [
        (max(group.last_at for group in its), total_usd(amount(group) for group in its))
        for its in by_run.values()
    ]
    last = sorted((one for one in sums if one[1] > 0), reverse=True)[:runs]
    return max((found for _, found in last), default=Decimal(0))
