"""What tests of reports share: work folders, a run's context, a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.report import work_folder
from tests.report.browser import Page, open_browser
from turbo_vaed.report.context import ReportContext


@pytest.fixture(scope="session")
def make_work() -> Callable[..., Path]:
    """`work_folder.make_work`."""
    return work_folder.make_work


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
    """`work_folder.gather`."""
    return work_folder.gather


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The one tab of a headless Chromium."""
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def browser(chromium: Page) -> Iterator[Page]:
    """A tab; what it shows ends with the test, for videos that play take CPU time from all."""
    yield chromium
    chromium.call("Page.navigate", url="about:blank")
