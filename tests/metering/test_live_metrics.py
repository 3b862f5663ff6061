"""Curves of a run in flight, in a real MLflow store; and no harm done where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from turbo_vaed.errors import Unreachable
from turbo_vaed.metering import live_metrics
from turbo_vaed.metering.live_metrics import AGAIN_SECONDS, LiveRun
from turbo_vaed.registry import client as mlflow_runs
from turbo_vaed.registry.client import Point, experiment_id

NOBODY = "http://127.0.0.1:9"
"""Nothing listens on the discard port."""


def live(uri: str, run_id: str = "acme-1", **options: Any) -> LiveRun:
    return LiveRun(uri, customer="acme", run_id=run_id, kind="distill", **options)


def runs(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([experiment_id(client, uri, "acme")]))


def curve(uri: str, run: Run, key: str) -> list[tuple[int, float]]:
    found = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return [(point.step, point.value) for point in found]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.mark.slow
def test_curves_and_pictures_are_in_the_run_of_the_customer(
    store: str, warnings: list[str]
) -> None:
    with live(store, warn=warnings.append) as run:
        for step in range(1, 301):
            run.log_metrics({"loss": 1 / step, "loss_source": 0.5, "workers": 2}, step)
        run.log_picture(b"\x89PNG one", "step-000100.png")
        run.log_picture(b"\x89PNG two", "step-000200.png")
    (found,) = runs(store)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "acme-1 distill"
    assert {"customer": "acme", "turbo_vaed.run_id": "acme-1", "kind": "distill"}.items() <= (
        found.data.tags.items()
    )
    assert curve(store, found, "loss") == [(step, 1 / step) for step in range(1, 301)]
    client = MlflowClient(tracking_uri=store)
    listed = [file.path for file in client.list_artifacts(found.info.run_id, "samples")]
    assert listed == ["samples/step-000100.png", "samples/step-000200.png"]
    fetched = client.download_artifacts(found.info.run_id, listed[1])
    assert Path(fetched).read_bytes() == b"\x89PNG two"
    assert warnings == []


@pytest.mark.parametrize(("error", "status"), [(OSError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_resumed_in_another_process_is_found_again(
    store: str, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), live(store) as run:
        run.log_metrics({"loss": 0.5}, 1)
        raise error
    assert [found.info.status for found in runs(store)] == [status]
    again = live(store)
    again.log_metrics({"loss": 0.4}, 2)
    again.deliver()
    assert [found.info.status for found in runs(store)] == ["RUNNING"]
    with again:
        pass
    with live(store, run_id="acme-2") as run:
        run.log_metrics({"loss": 0.3}, 1)
    by_name = {found.info.run_name: found for found in runs(store)}
    assert set(by_name) == {"acme-1 distill", "acme-2 distill"}
    assert {found.info.status for found in by_name.values()} == {"FINISHED"}
    assert curve(store, by_name["acme-1 distill"], "loss") == [(1, 0.5), (2, 0.4)]


def test_a_stage_that_logs_nothing_makes_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_metrics, "open_tracking", pytest.fail)
    with live(NOBODY):
        pass


def test_without_a_server_there_are_warnings_and_no_error(warnings: list[str]) -> None:
    run = live(NOBODY, warn=warnings.append)
    run.log_metrics({"loss": 0.5, "val_psnr": 30.0}, 1)
    run.deliver()
    with run:
        run.log_picture(b"png", "step-000001.png")
    assert len(warnings) == 2
    assert "curves" in warnings[0] and "http://127.0.0.1:9" in warnings[0]
    assert "lacks 3 " in warnings[1] and "acme-1 distill" in warnings[1]


class FakeClient:
    """Takes points, unless it is set to fail."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.is_down = True
        self.opened = 0

    def open(self, uri: str) -> FakeClient:
        self.opened += 1
        if self.is_down:
            raise Unreachable("nobody is there")
        return self

    def log(self, client: object, run: str, points: list[Point]) -> None:
        if self.is_down:
            raise OSError("connection lost")
        self.points += points

    def set_terminated(self, run: str, status: str) -> None:
        assert (run, status) == ("run", "FINISHED")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(live_metrics, "open_tracking", fake.open)
    monkeypatch.setattr(live_metrics, "log_points", fake.log)
    monkeypatch.setattr(live_metrics, "experiment_id", lambda *_: "0")
    monkeypatch.setattr(live_metrics, "find_or_create_run", lambda *_: "run")
    return fake


def test_a_server_that_comes_back_gets_every_point_and_few_calls_before(
    fake: FakeClient, warnings: list[str]
) -> None:
    now = 0.0
    run = live(NOBODY, warn=warnings.append, clock=lambda: now)
    run.log_metrics({"loss": 0.5}, 1)
    for now in (0.0, 1.0, AGAIN_SECONDS - 1):  # noqa: B007
        run.deliver()
    assert fake.opened == 1
    now = AGAIN_SECONDS
    run.deliver()
    assert fake.opened == 2
    fake.is_down = False
    run.log_metrics({"loss": 0.4}, 2)
    now = 2 * AGAIN_SECONDS
    run.deliver()
    assert [(point.step, point.value) for point in fake.points] == [(1, 0.5), (2, 0.4)]
    fake.is_down = True  # and lost once more, now between two deliveries
    run.log_metrics({"loss": 0.3}, 3)
    run.deliver()
    fake.is_down = False
    now = 3 * AGAIN_SECONDS
    run.deliver()
    assert [point.step for point in fake.points] == [1, 2, 3]
    assert fake.opened == 4  # a client that failed is not trusted again
    assert len(warnings) == 1


def test_the_queue_is_bounded_and_keeps_the_newest_points(
    fake: FakeClient, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_metrics, "MOST_POINTS", 3)
    run = live(NOBODY, warn=warnings.append)
    for step in range(5):
        run.log_metrics({"loss": 0.5}, step)
    run.deliver()
    fake.is_down = False
    with run:
        pass
    assert [point.step for point in fake.points] == [2, 3, 4]
    assert len(warnings) == 2 and "lacks 2 " in warnings[1]


def test_points_are_sent_in_as_few_calls_as_mlflow_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Client:
        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            calls.append(len(metrics))

    points = [Point("loss", 0.5, 0, step) for step in range(2001)]
    mlflow_runs.log_points(Client(), "run", points)  # type: ignore[arg-type]
    assert calls == [1000, 1000, 1]
