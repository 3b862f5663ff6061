"""Which stages a new version would run again, and why: what it would write, compared with what DVC
recorded of the last run. Nothing is hashed but params, and nothing is written.

It is what `dvc status` finds once the new params are written, as far as videos and outputs are
those of the record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from turbo_vaed.config.load import leaves
from turbo_vaed.config.stages import STAGES
from turbo_vaed.config.yaml_file import dotted
from turbo_vaed.costs import ChargeGroup, total_usd
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.errors import CorruptFile
from turbo_vaed.planning.estimate import UNFORESEEN, CostRange

ABSENT = "absent"
"""In place of the value of a key that one of the two sides does not have."""
UNKNOWN = "unknown"
"""In place of a recorded value of which only a digest is left."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that decides a stage's output and is not as it was recorded."""

    key: str
    """Of the stage's section, `distill.steps` or `stage_version`; or what else of the pipeline."""
    recorded: Any
    now: Any
    of_params: bool = True
    """Whether it is of the stage's params, and not of the pipeline."""

    def __str__(self) -> str:
        return f"{self.key}: {self.recorded} -> {self.now}"


def recorded_stages(lock: str, where: str) -> Mapping[str, Any]:
    """What DVC has recorded of a customer's stages.

    Args:
        lock: the text of its dvc.lock; empty where there is none.
        where: names it for a message.

    Raises:
        CorruptFile: it is no lock of DVC.
    """
    try:
        found = yaml.load(lock, Loader=_Loader) or {}
        stages = found.get("stages") or {}
        assert isinstance(stages, dict)
    except (yaml.YAMLError, AttributeError, AssertionError):
        raise CorruptFile(
            f"{where} is no lock of DVC; take it from Git, or remove it to run every stage"
        ) from None
    return stages


def changes(
    recorded: Mapping[str, Any],
    pipeline: Mapping[str, Any],
    sections: Mapping[str, str],
    root: Path,
    params: Path,
) -> dict[str, tuple[Change, ...]]:
    """Why each stage that ran would run again; the others are left out.

    Args:
        recorded: DVC's record of the customer's stages.
        pipeline: the stages as the new version writes them.
        sections: the text of each stage's params, as the new version writes it.
        root: the checkout, from which DVC names paths.
        params: work/NAME/params, where the recorded params may still be.
    """
    found = {
        stage: (
            *_pipeline_changes(recorded[stage], pipeline[stage]),
            *_section_changes(recorded[stage], root, params / f"{stage}.yaml", sections[stage]),
        )
        for stage in STAGES
        if stage in recorded
    }
    return {stage: why for stage, why in found.items() if why}


def downstream(pipeline: Mapping[str, Any], stages: Collection[str]) -> tuple[str, ...]:
    """The stages that read what these make, or what comes of it: they run where that is different
    then."""
    reached = set(stages)
    for stage in STAGES:  # in order: each comes after what it reads
        made = [path for one in reached for path in _paths(pipeline[one].get("outs", ()))]
        if any(_overlap(dep, out) for dep in _paths(pipeline[stage]["deps"]) for out in made):
            reached.add(stage)
    return tuple(stage for stage in STAGES if stage in reached - set(stages))


def last_cost(groups: Iterable[ChargeGroup], stages: Collection[str]) -> CostRange | None:
    """What these stages cost in the last run in which each of them did not fail; None where one of
    them was never charged."""
    useful, each = [group for group in groups if group.useful == "useful"], []
    for stage in stages:
        of_stage = [group for group in useful if group.stage == stage]
        if not of_stage:
            return None
        run = max(of_stage, key=lambda group: group.last_at).run
        each.append(total_usd(group.amount_usd for group in of_stage if group.run == run))
    usd = total_usd(each)
    return CostRange(
        low_usd=usd,
        likely_usd=usd,
        high_usd=quantise_usd(usd * UNFORESEEN),
        seconds=0.0,
        basis="as these stages cost last",
    )


def total_cost(costs: Iterable[CostRange]) -> tuple[Decimal, Decimal, Decimal]:
    """USD of all of them: low, likely, high."""
    found = list(costs)
    return (
        total_usd(cost.low_usd for cost in found),
        total_usd(cost.likely_usd for cost in found),
        total_usd(cost.high_usd for cost in found),
    )


def _pipeline_changes(recorded: Mapping[str, Any], stage: Mapping[str, Any]) -> Iterator[Change]:
    if recorded.get("cmd") != stage["cmd"]:
        was = recorded.get("cmd", ABSENT)
        yield Change(key="command", recorded=was, now=stage["cmd"], of_params=False)
    for kind in ("deps", "outs"):
        had = {one["path"] for one in recorded.get(kind, ())}
        for path in _paths(stage.get(kind, ())):
            if path not in had:
                yield Change(key=f"{kind} {path}", recorded=ABSENT, now="new", of_params=False)


def _section_changes(
    recorded: Mapping[str, Any], root: Path, path: Path, text: str
) -> Iterator[Change]:
    """By DVC's digest of the section; which keys, by the file of that digest if it is there yet."""
    name = path.relative_to(root).as_posix()
    digests = (dep["md5"] for dep in recorded.get("deps", ()) if dep["path"] == name)
    digest = next(digests, None)
    if digest is None or digest == _md5(text.encode()):
        return  # without one the dependency is new
    before = path.read_bytes() if path.is_file() else b""
    if _md5(before) != digest:
        yield Change(key=f"params/{path.name}", recorded=UNKNOWN, now="other values")
        return
    old, new = (dict(_leaves(yaml.load(one, Loader=_Loader))) for one in (before, text))
    for key in sorted(old.keys() | new.keys()):
        if key not in old or key not in new or old[key] != new[key]:
            yield Change(key=key, recorded=old.get(key, ABSENT), now=new.get(key, ABSENT))
    if old == new:
        yield Change(key=f"params/{path.name}", recorded="its text", now="another form of it")


def _leaves(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((dotted(keys), value) for keys, value in leaves(section))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _paths(entries: Iterable[Any]) -> list[str]:
    """The paths of a stage's deps or outs, whose options DVC writes as a mapping of one key."""
    return [next(iter(one)) if isinstance(one, dict) else str(one) for one in entries]


def _overlap(one: str, other: str) -> bool:
    """Whether a path is the other, or lies in it."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first == second or first in second.parents or second in first.parents
