from __future__ import annotations

import pytest
import ray

from tests.loopback import free_port
from turbo_vaed.cluster.session import START_ATTEMPTS, ray_session
from turbo_vaed.errors import Fault, Unreachable

pytestmark = pytest.mark.slow


def test_an_address_where_nothing_listens_is_unreachable() -> None:
    port = free_port()
    assert not ray.is_initialized()
    with (
        pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port}\b"),
        ray_session(f"127.0.0.1:{port}"),
    ):
        pass


def test_a_start_that_fails_three_times_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def too_slow(**_: object) -> None:
        attempts.append(1)
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(Fault, match=r"3 attempts.*timed out"), ray_session():
        pass
    assert len(attempts) == START_ATTEMPTS == 3
