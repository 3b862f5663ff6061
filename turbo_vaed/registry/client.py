"""An MLflow client that is known to answer, and runs in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from turbo_vaed.errors import Fault, Unreachable, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEALTH_SECONDS = 5.0
"""How long a server may take to answer; MLflow's own client retries for minutes."""
_BATCH = 100
_MOST_METRICS = 1000
"""The most in one call that MLflow takes."""


class Point(NamedTuple):
    """A value of a curve."""

    key: str
    value: float
    at_milliseconds: int
    """Unix time."""
    step: int


def open_tracking(uri: str) -> MlflowClient:
    """A client of the MLflow server or store at `uri` that is known to answer.

    Raises:
        UserError: not a URI that can be used.
        Unreachable: nothing answers there; the password is not shown.
    """
    shown = _shown(uri)
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        _check_server(uri, shown)
    elif scheme == "sqlite":
        _check_store_folder(uri)
    elif not scheme.startswith("postgresql"):
        raise UserError(
            f"MLFLOW_TRACKING_URI: found {shown!r}; expected http://…, https://…, "
            "sqlite:////path/mlflow.db or postgresql://…"
        )
    from mlflow import MlflowClient

    with translated_errors(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment_id(client: MlflowClient, uri: str, customer: str) -> str:
    """The id of `turbo-vaed/CUSTOMER`, made if it is missing.

    A store without a server keeps the artifacts next to it. Raises UserError where it is deleted.
    """
    import sqlalchemy as sa

    name, location = f"turbo-vaed/{customer}", None
    if uri.startswith("sqlite:"):
        folder = Path(sa.make_url(uri).database or "").resolve().parent
        location = (folder / "mlartifacts" / customer).as_uri()
    with ignoring_existing():
        client.create_experiment(name, artifact_location=location)
    found = client.get_experiment_by_name(name)
    assert found is not None, "it exists or was just made"
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name} is deleted; bring it back with: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


@contextmanager
def running(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]
) -> Iterator[str]:
    """A run that ends as finished or failed, as its block does."""
    run = client.create_run(experiment, tags=dict(tags), run_name=name)
    status = "FAILED"
    try:
        yield run.info.run_id
        status = "FINISHED"
    finally:
        client.set_terminated(run.info.run_id, status)


def find_or_create_run(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]
) -> str:
    """The run with these tags, running again, or a new one."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], wanted, max_results=1)
    if not found:
        return str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)
    client.update_run(found[0].info.run_id, status="RUNNING")
    return str(found[0].info.run_id)


def end_runs(uri: str, customer: str, run_id: str, *, stages: str = "KILLED") -> None:
    """End what is still running of a PoC run: its process has died, or MLflow was away when a stage
    or a registration ended.

    Args:
        stages: the status of its stages; a registration that did not end was killed.

    Raises:
        Unreachable: MLflow does not answer.
    """
    with translated_errors(uri):
        client = open_tracking(uri)
        experiment = experiment_id(client, uri, customer)
        for tag, status in (("turbo_vaed.run_id", stages), ("turbo_vaed_run_id", "KILLED")):
            wanted = f"tags.`{tag}` = '{run_id}' and attributes.status = 'RUNNING'"
            for found in client.search_runs([experiment], wanted):
                client.set_terminated(found.info.run_id, status)


def log_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Points of a run's curves, in as few calls as MLflow takes; sending one again adds none."""
    from mlflow.entities import Metric

    metrics = [Metric(*point) for point in points]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])


def log_values(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], params: Mapping[str, object]
) -> None:
    """Metrics (at step 0) and params of a run, in as few calls as MLflow takes."""
    from mlflow.entities import Metric, Param

    now = round(datetime.now(UTC).timestamp() * 1000)
    values = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
    texts = [Param(key, str(value)) for key, value in params.items()]
    for start in range(0, max(len(values), len(texts)), _BATCH):
        part = slice(start, start + _BATCH)
        client.log_batch(run_id, metrics=values[part], params=texts[part])


def _shown(uri: str) -> str:
    import sqlalchemy as sa

    try:
        return sa.make_url(uri).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return uri


def _check_server(uri: str, shown: str) -> None:
    import requests

    todo = "start it (mlflow server), or correct or unset MLFLOW_TRACKING_URI"
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_SECONDS)
    except requests.RequestException as error:
        kind = type(error).__name__  # its text repeats the URL, password and all
        raise Unreachable(f"no MLflow server answers at {shown} ({kind}); {todo}") from None
    if answer.status_code not in (200, 401, 403):  # 401: up, and the client may log in
        raise Unreachable(
            f"{shown} answers {answer.status_code} to /health; is it an MLflow server? {todo}"
        )


def _check_store_folder(uri: str) -> None:
    import sqlalchemy as sa

    folder = Path(sa.make_url(uri).database or "").resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unreachable(
            f"the folder {folder} of MLflow's store cannot be made: {error}"
        ) from None


@contextmanager
def ignoring_existing() -> Iterator[None]:
    """Ignore that another process has created the same in the same moment."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Raise MLflow's own errors as `Fault`."""
    import sqlalchemy as sa
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, sa.exc.SQLAlchemyError, OSError) as error:
        message = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Fault(f"MLflow at {_shown(uri)} failed: {message}") from error
