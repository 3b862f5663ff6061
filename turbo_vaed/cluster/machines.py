"""Starts Ray on machines of a cluster: its head on the controller, and workers that join it.

Ray takes commands of anyone who reaches it and knows its token: each machine reads that from the
secret which the environment names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from turbo_vaed.cluster.autoscaler import HEAD
from turbo_vaed.cluster.drain import watch
from turbo_vaed.cluster.environment import HEAD_PORT, Environment
from turbo_vaed.cluster.metadata import Metadata, labels
from turbo_vaed.cluster.nodes import REGION
from turbo_vaed.errors import Fault, Unreachable
from turbo_vaed.settings import metadata_endpoint

TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray looks for its token by default."""
HEAD_ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",  # the first one has no priorities
    "BOTO_CREATE_MAX_RETRIES": "1",  # each zone once, and then the next type
    # By default a machine that vanished is missed after 20 s, and one that does not join after an
    # hour.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": "1200",
    "RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S": "120",
}


def start_head(environment: Environment, config: Path) -> dict[str, str]:
    """Start Ray's head on this machine, with its autoscaler.

    Args:
        config: the autoscaler's configuration.

    Returns:
        The variables by which a process on this machine joins it.

    Raises:
        Unreachable: no instance metadata, or the token cannot be read.
        Fault: Ray does not start.
    """
    instance_id, address = Metadata(metadata_endpoint()).address()
    variables = _identity(environment.region, environment.token_secret, instance_id, HEAD)
    code = _ray(
        [
            "start",
            "--head",
            f"--node-ip-address={address}",
            f"--port={HEAD_PORT}",
            "--num-cpus=0",  # the driver's machine computes nothing of a run's
            "--num-gpus=0",
            f"--labels={labels()}",
            f"--autoscaling-config={config}",
            "--disable-usage-stats",
        ],
        variables | HEAD_ENVIRONMENT,
    )
    if code != 0:
        raise Fault("Ray's head did not start; Ray says why above")
    joined_by = {name: variables[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    return joined_by | {"RAY_ADDRESS": f"{address}:{HEAD_PORT}", "TURBO_VAED_MACHINE": labels()}


def join(head: str, *, token_secret: str, node_type: str) -> int:
    """Join a cluster as a worker and watch for notices of EC2, until this machine is drained, or
    its head is gone; returns Ray's exit code.

    Raises:
        Unreachable: no instance metadata, or the token cannot be read.
    """
    metadata = Metadata(metadata_endpoint())
    instance_id, _ = metadata.address()
    machine = metadata.machine()
    variables = _identity(machine[REGION], token_secret, instance_id, node_type)
    os.environ |= variables  # the watch drains by Ray's command
    threading.Thread(target=watch, name="node-watch", daemon=True).start()
    return _ray(
        [
            "start",
            f"--address={head}",
            f"--labels={labels()}",
            "--disable-usage-stats",
            "--block",
        ],
        variables,
    )


def _identity(region: str, secret: str, instance_id: str, node_type: str) -> dict[str, str]:
    """By which the autoscaler knows a machine's Ray, and Ray its own."""
    path = TOKEN_FILE.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)  # `touch` leaves the mode of a file that exists
    path.write_text(read_token(region, secret))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(path),
        "RAY_CLOUD_INSTANCE_ID": instance_id,
        "RAY_NODE_TYPE_NAME": node_type,
    }


def read_token(region: str, secret: str) -> str:
    """Ray's token, from AWS Secrets Manager.

    Raises:
        Unreachable: AWS does not answer or refuses, or the secret is empty.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("secretsmanager", region_name=region)
        token = str(client.get_secret_value(SecretId=secret).get("SecretString") or "").strip()
    except (BotoCoreError, ClientError) as error:
        raise Unreachable(f"Ray's token (secret {secret} in {region}): {error}") from error
    if not token:
        raise Unreachable(f"Ray's token (secret {secret} in {region}) is empty")
    return token


def _ray(arguments: list[str], variables: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
