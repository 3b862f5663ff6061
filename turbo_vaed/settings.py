"""Endpoints and secrets from the environment: the one place that reads it.

| variable | what | default |
|---|---|---|
| `TURBO_VAED_ROOT` | the checkout with params.yaml and dvc.yaml | the nearest upwards |
| `TURBO_VAED_LEDGER_URL` | URL of SQLite or PostgreSQL | `sqlite:///<root>/state/ledger.db` |
| `MLFLOW_TRACKING_URI` | MLflow server or store | `sqlite:///<root>/state/mlflow.db` |
| `TURBO_VAED_RUN_ID` | the PoC run that a stage belongs to | a fresh one per command |
| `TURBO_VAED_TOKEN` | the token with which that run holds its customer | none |
| `TURBO_VAED_CHECKPOINTS` | checkpoints: folder or s3://BUCKET/PREFIX | `work/NAME/checkpoints` |
| `TURBO_VAED_ARRAYS` | what a cluster's workers read: folder, s3://BUCKET/PREFIX | `work/` |
| `TURBO_VAED_ARRAY_CACHE` | a machine's cache of what it has read from S3 | in `~/.cache` |
| `TURBO_VAED_ARRAY_CACHE_GB` | its bound, in 1e9 bytes | 50, at most half of the free disk |
| `TURBO_VAED_SITE` | where pages are published: folder or s3://BUCKET/PREFIX | `state/site` |
| `TURBO_VAED_METRICS` | a file for Prometheus' textfile collector | none is written |
| `TURBO_VAED_LOGS` | `json`: logs and progress as JSON, an object a line | `text` |
| `RAY_ADDRESS` | the Ray cluster to join | a local one is started |
| `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN_PATH` | `token`, and a file with the cluster's | Ray's own |
| `TURBO_VAED_MACHINE` | this machine's labels (`turbo-vaed node labels`): its price | a local one |
| `TURBO_VAED_LITERT` | the environment of LiteRT's converter | `.venv-litert` next to this code |
| `ANDROID_SERIAL` | the phone of an `adb` profile without a serial | the only one |
| `TURBO_VAED_ALARM_WEBHOOK` | the URL that alarms of scheduled runs are sent to, a secret | none |
| `TURBO_VAED_ALARM_HOURS` | a run that has not ended so long after it was due is an alarm | 26 |
| `AWS_EC2_METADATA_SERVICE_ENDPOINT` | where `node watch` reads notices | EC2's own address |
"""

from __future__ import annotations

import functools
import math
import os
import uuid
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

from turbo_vaed.errors import UserError

_MACHINE = "TURBO_VAED_MACHINE"
_ARRAYS, _CACHE, _CACHE_GB = (
    "TURBO_VAED_ARRAYS",
    "TURBO_VAED_ARRAY_CACHE",
    "TURBO_VAED_ARRAY_CACHE_GB",
)
_LOGS = "TURBO_VAED_LOGS"
_WEBHOOK, _HOURS = "TURBO_VAED_ALARM_WEBHOOK", "TURBO_VAED_ALARM_HOURS"
_METADATA = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_worker_niceness": "0",
}
"""Set for the command line, flows and their children where not set already: nothing phones home, no
client tries for minutes, a slow machine may take its time to start Prefect's own server, and Ray
Train looks often whether a worker is lost and waits shortly for one that will not come back (that
is the time to find room for it, not the time that it takes to start). At Ray's own niceness of 15
its workers starve next to anything else that runs."""


def set_environment_defaults() -> None:
    """Set `ENVIRONMENT` for this process and its children."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings from the environment."""

    root: Path
    ledger_url: str
    mlflow_tracking_uri: str
    run_id: str | None
    token: int | None
    """With which the flow that runs a stage holds the customer; None for a stage by hand."""
    checkpoints_url: str | None
    """Without a slash at its end; None for the customer's own folder."""
    arrays_url: str | None
    """Likewise; None: workers read what a stage needs from this machine's disk."""
    site_url: str
    """Without a slash at its end."""
    metrics_file: Path | None
    ray_address: str | None
    own_ray_address: str | None
    """Of a local Ray that the flow started for its stages."""
    machine: dict[str, str]
    """Labels of this machine where it is one of EC2: what it costs. Empty for a local one."""
    alarm_webhook: str | None
    """Where alarms of scheduled runs are sent; None: nobody is notified."""
    alarm_hours: float
    """A scheduled run that has not ended so long after it was due is an alarm."""

    @property
    def outbox_folder(self) -> Path:
        """Where charges wait that the ledger has not taken."""
        return self.root / "state" / "due"

    @property
    def on_a_cluster(self) -> bool:
        """Whether Ray is somebody's cluster, which costs more than this machine."""
        return self.ray_address not in (None, "local", self.own_ray_address)

    def shared_prefix(self, customer: str) -> str | None:
        """Where a stage puts what its workers read of a customer; None where they read it from this
        machine's disk."""
        if self.arrays_url is None or not self.on_a_cluster:
            return None
        return f"{self.arrays_url}/{customer}"

    def shared_checkpoints(self, customer: str) -> str | None:
        """Where a customer's checkpoints lie for every checkout; None where they lie in the
        customer's own folder."""
        return None if self.checkpoints_url is None else f"{self.checkpoints_url}/{customer}"

    @classmethod
    def from_environment(cls, root: Path | None = None) -> Settings:
        """Read the environment; `root` overrides the search for the checkout.

        Raises:
            UserError: no params.yaml in this folder or any above it; labels that are none.
        """
        root, found = root or find_root(), _read()
        state = root / "state"
        return cls(
            root=root,
            ledger_url=found.ledger_url or f"sqlite:///{state}/ledger.db",
            mlflow_tracking_uri=_with_driver(found.mlflow_tracking_uri)
            or f"sqlite:///{state}/mlflow.db",
            run_id=found.run_id,
            token=found.token,
            checkpoints_url=found.checkpoints_url,
            arrays_url=found.arrays_url,
            site_url=found.site_url or str(state / "site"),
            metrics_file=found.metrics_file,
            ray_address=found.ray_address,
            own_ray_address=found.own_ray_address,
            machine=found.machine,
            alarm_webhook=found.alarm_webhook,
            alarm_hours=found.alarm_hours,
        )

    def origins(self) -> dict[str, tuple[object, str]]:
        """Each setting with its value and where that comes from: a variable, or a default."""
        variables = {
            name: str(field.validation_alias) for name, field in _environment().model_fields.items()
        } | {"root": "TURBO_VAED_ROOT"}
        return {
            name: (
                "…" if name == "alarm_webhook" and value else value,  # who has it may write there
                f"environment {variables[name]}"
                if os.environ.get(variables[name])
                else "built-in default",
            )
            for name, value in vars(self).items()
        }


@functools.cache
def _environment() -> type[Any]:
    """The variables that are read, typed. Made late: a shell that completes a name pays for no
    import of pydantic."""
    from pydantic import BeforeValidator, Field
    from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

    def of(variable: str, default: Any = None) -> Any:
        return Field(default, validation_alias=variable)

    class Environment(BaseSettings):
        model_config = SettingsConfigDict(
            env_ignore_empty=True,
            validate_default=False,
            case_sensitive=True,
            extra="ignore",
            frozen=True,
        )
        ledger_url: str | None = of("TURBO_VAED_LEDGER_URL")
        mlflow_tracking_uri: str | None = of("MLFLOW_TRACKING_URI")
        run_id: str | None = of("TURBO_VAED_RUN_ID")
        token: int | None = of("TURBO_VAED_TOKEN")
        checkpoints_url: Annotated[
            str | None, BeforeValidator(lambda found: found.rstrip("/") or None)
        ] = of("TURBO_VAED_CHECKPOINTS")
        arrays_url: Annotated[str | None, BeforeValidator(_arrays_url)] = of(_ARRAYS)
        site_url: Annotated[
            str | None, BeforeValidator(lambda found: found.rstrip("/") or None)
        ] = of("TURBO_VAED_SITE")
        metrics_file: Path | None = of("TURBO_VAED_METRICS")
        ray_address: str | None = of("RAY_ADDRESS")
        own_ray_address: str | None = of("TURBO_VAED_OWN_RAY")
        machine: Annotated[dict[str, str], NoDecode, BeforeValidator(_labels)] = of(_MACHINE, {})
        alarm_webhook: Annotated[str | None, BeforeValidator(_webhook)] = of(_WEBHOOK)
        alarm_hours: Annotated[float, BeforeValidator(_hours)] = of(_HOURS, 26.0)

    return Environment


def _read() -> Any:
    """The variables as they are now.

    Raises:
        UserError: one of them is invalid.
    """
    from pydantic import ValidationError

    try:
        return _environment()()
    except ValidationError as error:  # pydantic wraps what a validator raises
        first = error.errors()[0]
        raise UserError(str(first.get("ctx", {}).get("error", first["msg"]))) from None


def _with_driver(uri: str | None) -> str | None:
    """A URI of PostgreSQL with the driver that we install: SQLAlchemy's own default is another."""
    scheme, separator, rest = (uri or "").partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme == "postgresql" else uri


def _labels(found: str) -> dict[str, str]:
    """Labels as `ray start --labels` takes them: NAME=VALUE,…"""
    pairs = [pair.partition("=") for pair in found.strip().split(",") if found.strip()]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise UserError(
            f"{_MACHINE} is {found!r}; expected NAME=VALUE,… of `turbo-vaed node labels`"
        )
    return {name.strip(): value.strip() for name, _, value in pairs}


def _arrays_url(found: str) -> str | None:
    scheme, is_url, rest = found.rstrip("/").partition("://")
    if is_url and scheme == "file":
        return rest
    if is_url and not (scheme == "s3" and rest):
        raise UserError(f"{_ARRAYS} is {found!r}; expected a folder or s3://BUCKET/PREFIX")
    if not is_url and found.strip() and not Path(found).is_absolute():
        raise UserError(f"{_ARRAYS} is {found!r}, which other machines read: give an absolute path")
    return found.rstrip("/") or None


@dataclass(frozen=True, kw_only=True)
class ArrayCache:
    """Where a machine keeps what it has read from a bucket, and how much of it."""

    folder: Path
    size_bytes: int


def array_cache() -> ArrayCache:
    """This machine's.

    Raises:
        UserError: its size is none.
    """
    found = os.environ.get(_CACHE_GB) or "50"
    try:
        size_bytes = int(Decimal(found) * 10**9)
    except (InvalidOperation, ValueError, OverflowError):
        size_bytes = 0
    if size_bytes <= 0:
        raise UserError(f"{_CACHE_GB} is {found!r}; expected gigabytes above 0, such as 50")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get(_CACHE) or home / "turbo-vaed" / "arrays")
    return ArrayCache(folder=folder, size_bytes=size_bytes)


def for_workers() -> dict[str, str]:
    """What of this environment holds for a cluster's workers as well: where S3 answers, and the
    cache, where they are set here. Credentials are each machine's own."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION",
             _CACHE, _CACHE_GB)  # fmt: skip
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _webhook(found: str) -> str:
    if not found.startswith(("http://", "https://")):
        raise UserError(f"{_WEBHOOK} is no URL: expected https://…")  # it may be a secret
    return found


def _hours(found: str) -> float:
    try:
        hours = float(found)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= 8760:
        raise UserError(f"{_HOURS} is {found!r}; expected hours above 0, for instance 26")
    return hours


def find_root() -> Path:
    """The checkout: `TURBO_VAED_ROOT`, or the nearest folder upwards with params.yaml."""
    named = os.environ.get("TURBO_VAED_ROOT")
    if named:
        return Path(named).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(
        f"no params.yaml and dvc.yaml in {here} or above it; "
        "run inside the checkout or set TURBO_VAED_ROOT"
    )


def logs_are_json() -> bool:
    """Whether what a person would read of a run is wanted as JSON, an object a line.

    Raises:
        UserError: the variable says neither `text` nor `json`.
    """
    found = os.environ.get(_LOGS) or "text"
    if found not in ("text", "json"):
        raise UserError(f"{_LOGS} is {found!r}; expected text or json")
    return found == "json"


def litert_environment() -> Path:
    """The virtual environment that LiteRT's converter runs in; `make litert` makes it."""
    default = Path(__file__).resolve().parents[1] / ".venv-litert"
    return Path(os.environ.get("TURBO_VAED_LITERT") or default)


def android_serial() -> str | None:
    """The phone that `adb` takes where nobody names one, by its own variable; None: not set."""
    return os.environ.get("ANDROID_SERIAL") or None


def ray_authentication() -> dict[str, str]:
    """What Ray itself reads of the token that a cluster wants; what is not set is left out."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def metadata_endpoint() -> str:
    """The address of the instance metadata, by the variable that all AWS clients read.

    Raises:
        UserError: it is set to what is no URL.
    """
    found = os.environ.get(_METADATA) or "http://169.254.169.254"
    if not found.startswith(("http://", "https://")):
        raise UserError(f"{_METADATA} is {found!r}, not a URL: give http://ADDRESS")
    return found


def new_run_id(customer: str) -> str:
    """A fresh, unique run id, for instance `demo-3f9c2a71b04d`."""
    return f"{customer}-{uuid.uuid4().hex[:12]}"
