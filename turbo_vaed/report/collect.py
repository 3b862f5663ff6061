"""A customer's work folder, whole or half done -> the context of its report.

Shapes: N clips, T frames, H height, W width; videos are uint8 (T,H,W,3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from turbo_vaed.config.stages import STAGES
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.gate.verdict import VERDICT_NAME, read_verdict, result_as_now
from turbo_vaed.report.context import Failure, Registration, ReportContext, Shot
from turbo_vaed.report.shots import pick
from turbo_vaed.roi.measured import roi_of_run
from turbo_vaed.runtime.files import read_json

if TYPE_CHECKING:
    from turbo_vaed.config.schema import RoiParams
    from turbo_vaed.costs import CostSummary
    from turbo_vaed.roi.inputs import Input
    from turbo_vaed.roi.roi import Roi

_T = TypeVar("_T")


def collect(
    work: Path,
    *,
    run_id: str,
    started: datetime,
    finished: datetime,
    costs: CostSummary,
    price: str = "",
    lineage: Mapping[str, str] | None = None,
    registration: Registration | None = None,
    failure: Failure | None = None,
    customer: str | None = None,
    use_case: str = "",
    assumptions: RoiParams | None = None,
    cost_of_poc: Input | None = None,
    shots: int = 5,
) -> ReportContext:
    """Read what the stages left in `work` (work/CUSTOMER).

    Of a run that failed at a stage, outputs of that stage and of later ones belong to an older
    run and are left out, but for validate's rejected data, which say why. An output that is there
    and cannot be read is named in `problems`.

    Args:
        customer: the folder's name where not given.
        assumptions: of the return on investment; without them the page has none.
        cost_of_poc: the investment; None where it is unknown.
        shots: how many test clips the page shows at most.
    """
    reader = _Reader(work=work, failed=None if failure is None else failure.stage)
    clips = reader.json("clip", "clips.json")
    evaluation = reader.json("evaluate", "evaluation.json")
    verdict = reader.read("gate", VERDICT_NAME, lambda path: read_verdict(path).to_json())
    choice = reader.read("gate", "choice.json", _choice)
    package = reader.json("gate", "package/package.json")
    measurement = reader.json("gate", "measurement.json")
    latents = reader.json("encode", "latents.json")
    roi, no_roi = _roi(clips, latents, package, measurement, cost_of_poc, assumptions)
    chosen = reader.attempt("clips", lambda: _shots(reader, clips, evaluation, shots)) or ((), None)
    return ReportContext(
        customer=customer or work.name,
        run_id=run_id,
        started=started,
        finished=finished,
        costs=costs,
        price=price,
        use_case=use_case or (verdict or {}).get("use_case", ""),
        failure=failure,
        registration=registration,
        lineage=dict(lineage or {}),
        validation=reader.json("validate", "validation.json"),
        manifest=reader.manifest() or (),
        clips=clips,
        latents=latents,
        history=reader.json("distill", "history.json"),
        evaluation=evaluation,
        package=package,
        measurement=measurement,
        verdict=verdict,
        choice=choice,
        roi=roi,
        no_roi=no_roi,
        shots=chosen[0],
        worst=chosen[1],
        estimate=reader.estimate(),
        customer_usd=None if cost_of_poc is None else cost_of_poc.likely,
        problems=tuple(reader.problems),
    )


@dataclass(kw_only=True)
class _Reader:
    """Reads outputs of the stages that were reached; what cannot be read is noted, not fatal."""

    work: Path
    failed: str | None
    problems: list[str] = field(default_factory=list)

    def folder(self, stage: str) -> Path | None:
        """A stage's outputs in this run, or what it rejected, or None."""
        folder = self.work / stage
        if self.failed in STAGES and STAGES.index(stage) >= STAGES.index(self.failed):
            folder = self.work / f"{stage}.rejected"
            if stage != self.failed:
                return None
        return folder if folder.is_dir() else None

    def attempt(self, what: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except (CorruptFile, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            found = f"{type(error).__name__}: {error}"
            self.problems.append(f"{what} could not be read ({found}); run its stage again")
            return None

    def json(self, stage: str, name: str) -> dict[str, Any] | None:
        return self.read(stage, name, read_json)

    def read(self, stage: str, name: str, read: Callable[[Path], _T]) -> _T | None:
        folder = self.folder(stage)
        if folder is None:
            return None
        return self.attempt(f"{stage}/{name}", lambda: read(folder / name))

    def estimate(self) -> dict[str, Any] | None:
        path = self.work / "estimate.json"
        return self.attempt("estimate.json", lambda: read_json(path)) if path.is_file() else None

    def manifest(self) -> list[dict[str, Any]] | None:
        folder = self.folder("validate")
        if folder is None:
            return None
        import pyarrow.parquet

        path = folder / "manifest.parquet"
        return self.attempt(
            "validate/manifest.parquet",
            lambda: [_known(row) for row in pyarrow.parquet.read_table(path).to_pylist()],
        )

    def array(self, stage: str, store: str, name: str) -> tuple[Any, dict[str, Any]] | None:
        """A Zarr array and the attributes of it and its group, or None."""
        folder = self.folder(stage)
        if folder is None:
            return None
        import zarr

        from turbo_vaed.dataset.clip_arrays import ClipArray

        group = zarr.open_group(folder / store, mode="r")
        array = ClipArray(str(folder / store), name, remedy=f"run the stage `{stage}` again")
        return array, dict(group.attrs) | dict(group[name].attrs)


def _choice(path: Path) -> dict[str, Any]:
    """choice.json in today's words: a run that is refused reports what an earlier version left."""
    document = read_json(path)
    for candidate in document["candidates"]:
        candidate["result"] = result_as_now(candidate["result"])
        candidate.setdefault("unreliable_reason", candidate.get("distrust", ""))
    return document


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with None for NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _roi(
    clips: Mapping[str, Any] | None,
    latents: Mapping[str, Any] | None,
    package: Mapping[str, Any] | None,
    measurement: Mapping[str, Any] | None,
    cost: Input | None,
    assumptions: RoiParams | None,
) -> tuple[Roi | None, str]:
    """The return on investment, or why there is none; neither without assumptions."""
    if assumptions is None:
        return None, ""
    try:
        found = roi_of_run(
            clips=clips,
            package=package,
            measurement=measurement,
            cost=cost,
            assumptions=assumptions,
            latents=latents,
        )
    except (UserError, CorruptFile) as error:
        return None, str(error)
    return found, ""


def _shots(
    reader: _Reader,
    clips: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    most: int,
) -> tuple[tuple[Shot, ...], Shot | None]:
    source = reader.array("clip", "clips.zarr", "video")
    if clips is None or source is None:
        return (), None
    return pick(
        tests=[clip for clip in clips["clips"] if clip["split"] == "test"],
        scores={clip["index"]: clip for clip in (evaluation or {}).get("clips", ())},
        source=source[0],
        teacher=reader.array("encode", "latents.zarr", "reconstruction"),
        phone=reader.array("gate", "frames.zarr", "video"),
        most=most,
    )
