"""Which runs are complete and which go on, by the limits as they are now. Without Ray."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.distill.checkpoints import make_checkpoint
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.job import Job, QualityTarget
from turbo_vaed.distill.store import Store
from turbo_vaed.distill.student import Student

FLAT = [{"step": n, "step_usd": "0.001", "val_psnr": 30.0, "val_ssim": 0.9}
        for n in range(1, 41)]  # fmt: skip


@dataclasses.dataclass
class Place:
    """Where a run's checkpoints are, and how often its workers were started."""

    storage: str
    fits: int = 0

    def keep(self, job: Job, stopped: str) -> None:
        """A state at step 40 whose best student has 30 dB and whose curve is flat."""
        state = dataclasses.replace(
            make_checkpoint(40), stopped=stopped, reason="as it was", history=FLAT
        )
        Store(f"{self.storage}/{job.name}").write(state)

    def distill(self, job: Job) -> Checkpoint:
        return train.distill(job, storage=self.storage, take=lambda event: None).checkpoint


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Workers, where any are started, do all steps."""
    place = Place(str(tmp_path / "kept"))

    def fit(job: Job, store: Store, *_: Any) -> None:
        place.fits += 1
        store.write(dataclasses.replace(make_checkpoint(job.params.steps), stopped="finished"))

    monkeypatch.setattr(train, "_fit", fit)
    return place


def aimed(job: Job, psnr: float) -> Job:
    said, limits = f"{psnr:.2f} dB", {"ssim": 0.5}
    target = QualityTarget(psnr=psnr, rationale=said, limits=limits, worst_share=0.05)
    return dataclasses.replace(job, quality_target=target)


@pytest.mark.parametrize(
    ("psnr", "limit", "said"),
    [
        (29.9, None, "validation PSNR 30.00 dB reaches 29.90 dB; SSIM 0.9 reaches 0.5"),
        (99.0, "0.01", "by the trend of the last 11 validations more dollars bring nothing; the "
         "limit is $0.01 per 0.1 dB"),
    ],
)  # fmt: skip
def test_a_run_that_is_good_enough_by_todays_limits_is_complete(
    make_job, place: Place, psnr: float, limit: str | None, said: str
) -> None:
    job = aimed(make_job(steps=50, stop_usd_per_tenth_db=limit), psnr)
    place.keep(job, "good enough")
    found = place.distill(job)
    assert (found.stopped, found.step, place.fits) == ("good enough", 40, 0)
    assert found.reason == said  # by these limits, whatever they were


@pytest.mark.parametrize("psnr", [None, 30.1])
def test_with_looser_limits_it_goes_on(make_job, place: Place, psnr: float | None) -> None:
    job = make_job(steps=50) if psnr is None else aimed(make_job(steps=50), psnr)
    place.keep(job, "good enough")
    found = place.distill(job)
    assert (found.stopped, found.step, place.fits) == ("finished", 50, 1)


def test_other_ends_are_what_they_were(make_job, place: Place) -> None:
    """A budget may have grown: the workers look; all steps stay all steps."""
    job = aimed(make_job(steps=50), 29.9)
    place.keep(job, "finished")
    assert (place.distill(job).reason, place.fits) == ("as it was", 0)
    place.keep(job, "budget")
    place.distill(job)
    assert place.fits == 1


@pytest.mark.parametrize("limit", [None, "0.010"])
def test_the_history_tells_of_the_end_and_its_limits(
    make_job, place: Place, tmp_path: Path, limit: str | None
) -> None:
    job = aimed(make_job(steps=50, stop_usd_per_tenth_db=limit), 29.9)
    weights = Student(job.student, with_heads=False).decoder.state_dict()
    state = dataclasses.replace(
        make_checkpoint(40), best=weights, stopped="good enough", reason="it is"
    )
    done = train.Distilled(checkpoint=state, store=Store(place.storage))
    (tmp_path / "out").mkdir()
    train.write_student(done, job, tmp_path / "out", {})
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert (history["stopped"], history["reason"]) == ("good enough", "it is")
    assert history["target_psnr"] == 29.9
    known = history["limit_usd_per_tenth_db"]
    assert known == (None if limit is None else "0.01")
    assert limit is None or Decimal(known) == Decimal(limit)
