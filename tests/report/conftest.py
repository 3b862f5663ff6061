"""What tests of reports share: work folders, a run's context, a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import Page, open_browser
from tests.report.work_folder import (
    FINISHED,
    STARTED,
    build_work,
    cost_summary,
    moving,
    noisy,
)
from turbo_vaed.report.collect import collect
from turbo_vaed.report.context import ReportContext


@pytest.fixture(scope="session")
def make_work() -> Callable[..., Path]:
    """`make_work(folder, **options)`: a full work folder of twelve small clips of two videos."""

    def make(folder: Path, **options: Any) -> Path:
        videos = [moving(64, 9, i) for i in range(12)]
        paths = [("bikes.mp4", "lectures/optics.mp4")[i % 2] for i in range(12)]
        teacher = [noisy(video, 6 + i % 4, 100 + i) for i, video in enumerate(videos)]
        phone = [noisy(video, 7 + i % 5, 200 + i) for i, video in enumerate(videos)]
        return build_work(folder, videos, teacher, phone, options.pop("paths", paths), **options)

    return make


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, make_work: Callable[..., Path]) -> Path:
    """A run that passed, after some trouble; tests only read it."""
    return make_work(
        tmp_path_factory.mktemp("work") / "demo",
        losses={"perceptual": 0.2, "feature": 1.5, "adversarial": -0.1, "discriminator": 1.9},
        warnings=[{"step": 120, "kind": "flicker", "text": "the error changes by 3.1 of 255"}],
        restarts=[
            {
                "step": 47,
                "lost_steps": 7,
                "seconds": 72.3,
                "usd": "0.0016",
                "reason": "worker lost",
            },
            {"step": 90, "lost_steps": 0, "seconds": 20.0, "usd": "0.0004", "reason": "notice"},
        ],
    )


@pytest.fixture(scope="session")
def gather() -> Callable[..., ReportContext]:
    """`collect` with the plain values of a run filled in."""

    def make(work: Path, **options: Any) -> ReportContext:
        stages = ("validate", "clip", "encode", "distill", "evaluate", "export", "gate")
        values: dict[str, Any] = {
            "run_id": "demo-3f9c2a71b04d",
            "started": STARTED,
            "finished": FINISHED,
            "costs": cost_summary(stages),
            "price": "$0.08 per hour, local (params.yaml)",
            "shots": 2,
        }
        return collect(work, **(values | options))

    return make


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a headless Chromium."""
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page
