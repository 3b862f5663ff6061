"""A Prefect server that stays, for the tests of schedules, alarms and logs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.e2e.checkout import prefect_server


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's URL; its process is this test process's own."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as found:
        yield found["PREFECT_API_URL"]


@pytest.fixture
def server(prefect_url: str) -> Iterator[None]:
    """Prefect's clients in this test use the server."""
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        yield
