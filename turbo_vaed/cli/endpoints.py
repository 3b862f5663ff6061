"""What the environment names, asked in seconds: who answers, whether it takes our credentials, and
what to do where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from turbo_vaed.errors import Fault, TurboVaedError, Unreachable, UserError
from turbo_vaed.settings import Settings

ASK_SECONDS = 5
"""How long an endpoint may take to answer."""


class Warned(TurboVaedError):
    """It answers, and something about it should not stay so."""


def ledger(settings: Settings) -> str:
    """The ledger's database, and on PostgreSQL what its role may do.

    Raises:
        UserError, Unreachable: it cannot be used, or the role lacks something.
        Warned: the role may more than a run needs.
    """
    from turbo_vaed.costs.db.engine import translated_errors
    from turbo_vaed.costs.db.migrate import REVISION, open_database
    from turbo_vaed.costs.db.roles import role_faults

    engine = open_database(settings.ledger_url)
    try:
        if engine.dialect.name == "sqlite":
            return f"SQLite, revision {REVISION}"
        role = engine.url.username
        with translated_errors(engine.url), engine.connect() as connection:
            missing, excess = role_faults(connection)
    finally:
        engine.dispose()
    todo = f"the tables' owner runs: turbo-vaed ledger migrate --role {role}"
    if missing:
        raise UserError(f"the role {role} lacks {', '.join(missing)}; {todo}")
    if excess:
        raise Warned(
            f"the role {role} has {', '.join(excess)}, with which a run could change what was "
            "charged; set TURBO_VAED_LEDGER_URL to a role of its own, for which "
            f"{todo.replace(str(role), 'ROLE')}"
        )
    return f"PostgreSQL, revision {REVISION}, as {role}"


def mlflow(settings: Settings) -> str:
    """MLflow's store, and through a server its artifacts.

    Raises:
        UserError, Fault: nothing answers, it wants a login, or it does not reach its artifacts.
    """
    from mlflow.exceptions import MlflowException

    from turbo_vaed.registry.client import open_tracking

    uri = settings.mlflow_tracking_uri
    try:
        open_tracking(uri)
    except Fault as error:
        if _denied(str(error.__cause__ or "")):
            raise UserError(
                f"the MLflow server at {_shown(uri)} does not let us in; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user of it"
            ) from None
        raise
    if not uri.startswith("http"):
        return "a store without a server"
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    artifacts = MlflowArtifactsRepository("mlflow-artifacts:/", tracking_uri=uri)
    try:
        artifacts.list_artifacts()  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise Fault(
            f"the MLflow server at {_shown(uri)} does not reach its artifacts: "
            f"{_first_line(error)}; look at its --artifacts-destination and its log"
        ) from None
    return "a server, with its artifacts"


def prefect(settings: Settings) -> str:
    """Prefect's server, its pool of work and who works on it.

    Raises:
        UserError: it wants a login.
        Unreachable: it does not answer.
        Warned: it has no pool, or nobody works on it.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    url = PREFECT_API_URL.value()
    if not url:
        return "a server of each run's own; no schedules"
    pool = "turbo-vaed"
    quick = {PREFECT_API_REQUEST_TIMEOUT: ASK_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with temporary_settings(quick), get_client(sync_client=True) as client:
            client.read_work_pool(pool)
            answer = client.request(
                "POST",
                "/work_pools/{work_pool_name}/workers/filter",
                path_params={"work_pool_name": pool},
                json={},
            )
            online = [one["name"] for one in answer.json() if one["status"] == "ONLINE"]
    except ObjectNotFound:
        raise Warned(
            f"the Prefect server has no work pool {pool}; run: turbo-vaed schedule sync"
        ) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"the Prefect server at {_shown(url)} does not let us in; set "
                "PREFECT_API_AUTH_STRING to the USER:PASSWORD of its PREFECT_SERVER_API_AUTH_STRING"
            ) from None
        raise Unreachable(
            f"{_shown(url)} answers {error.response.status_code}; is it a Prefect server's API? "
            "PREFECT_API_URL ends with /api"
        ) from None
    except (httpx.HTTPError, ValueError) as error:
        raise Unreachable(
            f"no Prefect server answers at {_shown(url)} ({type(error).__name__}); start it, or "
            "correct or unset PREFECT_API_URL"
        ) from None
    if not online:
        raise Warned(f"nobody works on the pool {pool}; run: prefect worker start --pool {pool}")
    return f"a server; at work: {', '.join(online)}"


def ray(settings: Settings) -> str:
    """Ray's head, and whether it asks for a token.

    Raises:
        UserError: it wants another token, or the address is of a form that we do not take.
        Unreachable: it does not answer.
        Warned: it answers whoever asks.
    """
    from turbo_vaed.cluster.probe import probe, token_fault
    from turbo_vaed.cluster.session import knock, refuse_client
    from turbo_vaed.settings import ray_authentication

    address = settings.ray_address
    if address in (None, "local"):
        return "a local Ray of each run's own"
    refuse_client(address)
    if address == "auto":
        return "auto: whichever runs here; not asked"
    fault = token_fault(ray_authentication())
    if fault is not None:
        raise UserError(fault)
    knock(address)
    nodes = probe(address)
    try:
        probe(address, {"RAY_AUTH_MODE": "disabled"})
    except UserError:
        return f"{nodes} nodes, with a token"
    raise Warned(
        f"Ray at {address} asks nobody for a token: whoever reaches it runs code on it; start its "
        "nodes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    )


def checkpoints(settings: Settings) -> str:
    """The bucket of TURBO_VAED_CHECKPOINTS.

    Raises:
        UserError: no such bucket, or its keys are refused.
        Unreachable: the endpoint does not answer.
    """
    url = settings.checkpoints_url
    if url is None or not url.startswith("s3://"):
        return f"a folder: {url or 'work/NAME/checkpoints'}"
    _ask_bucket(url, {}, "TURBO_VAED_CHECKPOINTS")
    return url


def dvc_remote(settings: Settings) -> str:
    """Where `dvc push` puts what the stages made.

    Raises:
        UserError: no remote, no such bucket, or its keys are refused.
        Unreachable: the endpoint does not answer.
    """
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(settings.root / ".dvc"))
    except ConfigError as error:
        raise UserError(f"DVC's config cannot be read: {_first_line(error)}") from None
    name = config["core"].get("remote")
    if not name or name not in config["remote"]:
        raise UserError(
            "DVC has no default remote, so that what stages made is on this disk only; "
            "run: dvc remote add --default NAME s3://BUCKET/PREFIX"
        )
    remote: Mapping[str, Any] = config["remote"][name]
    url = str(remote["url"])
    if url.startswith("s3://"):
        _ask_bucket(url, remote, f"the remote {name} of DVC")
    elif "://" not in url and not _nearest(Path(url)).is_dir():
        raise UserError(f"the remote {name} of DVC is {url}, whose folder cannot be made")
    return f"{name}: {url}" + ("" if url.startswith("s3://") or "://" not in url else "; not asked")


def _ask_bucket(url: str, given: Mapping[str, Any], setting: str) -> None:
    """List a prefix of a bucket, as whoever reads from it must be able to."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    parts = urlsplit(url)
    session = boto3.Session(
        profile_name=given.get("profile"),
        aws_access_key_id=given.get("access_key_id"),
        aws_secret_access_key=given.get("secret_access_key"),
        region_name=given.get("region"),
    )
    client = session.client(
        "s3",
        endpoint_url=given.get("endpointurl"),
        config=Config(
            connect_timeout=ASK_SECONDS, read_timeout=ASK_SECONDS, retries={"max_attempts": 1}
        ),
    )
    endpoint = client.meta.endpoint_url
    try:
        client.list_objects_v2(Bucket=parts.netloc, Prefix=parts.path.strip("/"), MaxKeys=1)
    except NoCredentialsError:
        raise UserError(
            f"{setting} is {url}, and there are no keys for it; set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        if code in ("NoSuchBucket", "404"):
            raise UserError(
                f"{endpoint} has no bucket {parts.netloc}; create it, or correct {setting}"
            ) from None
        raise UserError(
            f"{endpoint} does not let us list {url}: {code}; correct the keys or what they may do"
        ) from None
    except BotoCoreError as error:
        raise Unreachable(
            f"no S3 answers at {endpoint} ({type(error).__name__}); start it, or correct "
            f"AWS_ENDPOINT_URL or {setting}"
        ) from None


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.resolve().parents) if folder.exists())


def _denied(text: str) -> bool:
    return any(part in text for part in ("401", "403", "not authenticated", "Permission denied"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _shown(url: str) -> str:
    """Without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


CHECKS = {
    "ledger": ledger,
    "MLflow's store": mlflow,
    "Prefect's server": prefect,
    "Ray cluster": ray,
    "DVC remote": dvc_remote,
    "checkpoints": checkpoints,
}
