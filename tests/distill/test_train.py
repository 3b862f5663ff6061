"""Which runs are complete and which go on, by the limits as they are now. Without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.distill.checkpoints import make_checkpoint
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Checkpoint, Store
from turbo_vaed.distill.job import Job, QualityTarget

FLAT = [{"step": n, "training_usd": f"{0.001 * n:.3f}", "val_psnr": 30.0, "val_ssim": 0.9}
        for n in range(1, 41)]  # fmt: skip


@dataclasses.dataclass
class Runs:
    """The checkpoints of runs, and how often workers were started."""

    storage: str
    fits: int = 0

    def save(self, job: Job, stopped: str) -> None:
        """A state at step 40 whose best student has 30 dB and whose curve is flat."""
        state = dataclasses.replace(
            make_checkpoint(40), stopped=stopped, reason="as it was", history=FLAT
        )
        Store(f"{self.storage}/{job.name}").write(state)

    def distill(self, job: Job) -> Checkpoint:
        return train.distill(job, storage=self.storage, on_event=lambda event: None).checkpoint


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Workers, where any are started, do all steps."""
    runs = Runs(str(tmp_path / "kept"))

    def fit(job: Job, store: Store, *_: Any) -> None:
        runs.fits += 1
        store.write(dataclasses.replace(make_checkpoint(job.params.steps), stopped="finished"))

    monkeypatch.setattr(train, "_fit", fit)
    return runs


def aimed(job: Job, psnr: float) -> Job:
    rationale, limits = f"{psnr:.2f} dB", {"ssim": 0.5}
    target = QualityTarget(psnr=psnr, rationale=rationale, limits=limits, worst_share=0.05)
    return dataclasses.replace(job, quality_target=target)


@pytest.mark.parametrize(
    ("psnr", "limit", "reason"),
    [
        (29.9, None, "required >= 29.90 dB"),
        (99.0, "0.01", "$0.01 per 0.1 dB"),
    ],
)  # fmt: skip
def test_a_run_that_meets_the_current_limits_is_complete(
    make_job, runs: Runs, psnr: float, limit: str | None, reason: str
) -> None:
    job = aimed(make_job(steps=50, stop_usd_per_tenth_db=limit), psnr)
    runs.save(job, "good enough")
    found = runs.distill(job)
    assert (found.stopped, found.step, runs.fits) == ("good enough", 40, 0)
    assert reason in found.reason  # by these limits, whatever they were


@pytest.mark.parametrize("psnr", [None, 30.1])
def test_a_run_below_the_current_limits_is_trained_further(
    make_job, runs: Runs, psnr: float | None
) -> None:
    job = make_job(steps=50) if psnr is None else aimed(make_job(steps=50), psnr)
    runs.save(job, "good enough")
    found = runs.distill(job)
    assert (found.stopped, found.step, runs.fits) == ("finished", 50, 1)


def test_a_finished_run_stays_finished_and_a_budget_stop_resumes(make_job, runs: Runs) -> None:
    """A budget may have grown: the workers look; all steps stay all steps."""
    job = aimed(make_job(steps=50), 29.9)
    runs.save(job, "finished")
    assert (runs.distill(job).reason, runs.fits) == ("as it was", 0)
    runs.save(job, "budget")
    runs.distill(job)
    assert runs.fits == 1
