"""Connects to Ray: to the cluster that is named, the session that is open, or a local Ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from turbo_vaed.cluster.probe import probe
from turbo_vaed.errors import Fault, Unreachable, UserError
from turbo_vaed.runtime.interrupts import keeping_handlers, shielded
from turbo_vaed.settings import Settings, for_workers

OBJECT_STORE_BYTES = 300_000_000
CONNECT_SECONDS = 5.0
START_ATTEMPTS = 3
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def ray_session(
    address: str | None = None,
    *,
    cpus: int | None = None,
    runtime_env: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Connect to Ray for the block; afterwards leave or stop what this call joined or started.

    Args:
        address: a cluster (`host:port`, `auto`), of which this machine is a node; None or "local"
            starts a local Ray, unless this process is connected already.
        cpus: of a local Ray; as many as the machine has by default.
        runtime_env: of the workers of a cluster.

    Raises:
        UserError: the cluster wants another token, or the address is a Ray client's.
        Unreachable: nothing answers at the address.
        Fault: a local Ray does not start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with keeping_handlers():
        if address and address != "local":
            _join(address, runtime_env)
        else:
            _start(cpus or os.cpu_count() or 1)
    try:
        yield
    finally:
        ray.shutdown()


def worker_session(settings: Settings) -> AbstractContextManager[None]:
    """A `ray_session` for a stage's workers. With `TURBO_VAED_ARRAYS` those of a cluster get this
    machine's package turbo_vaed, so that nodes need its dependencies alone, and what `for_workers`
    finds in its environment.

    Raises: as `ray_session`.
    """
    if settings.arrays_url is None or not settings.on_a_cluster:
        return ray_session(settings.ray_address)
    # Before `py_modules` Ray puts this process's folder on the workers' path, where a node may have
    # an older checkout.
    shipped = {
        "working_dir": str(Path(__file__).resolve().parents[2]),
        "excludes": ["/*", "!/.", "!/turbo_vaed", "__pycache__"],
        "env_vars": for_workers(),
    }
    return ray_session(settings.ray_address, runtime_env=shipped)


def refuse_client(address: str) -> None:
    """Refuse `ray://`: Ray Data, which encodes, does not run through Ray's client.

    Raises:
        UserError: the address is of that form.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS is {address}, the form of Ray's client, through which Ray Data does not "
            "run; start the run on a node of the cluster and give its head as HOST:PORT"
        )


def _join(address: str, runtime_env: dict[str, Any] | None) -> None:
    import ray

    refuse_client(address)
    knock(address)
    try:
        ray.init(address=address, runtime_env=runtime_env, **QUIET)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        if address != "auto":
            probe(address)  # says why, where that is the token
        raise Unreachable(f"no Ray answers at {address} (RAY_ADDRESS): {error}") from None


def _start(cpus: int) -> None:
    """Start a local Ray, with retries: Ray allows its start 30 s, and a busy machine needs more.

    What a failed attempt leaves behind ends with this process.
    """
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with shielded(signal.SIGHUP):  # Ctrl-C Ray keeps from its processes itself
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    **QUIET,
                )
            return
        except Exception as error:  # Ray raises a plain Exception here
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise Fault(
                    f"a local Ray did not start in {attempt} attempts: {error}; "
                    "the machine may be too busy, run again"
                ) from error


def knock(address: str) -> None:
    """Check first whether anything listens, since Ray itself waits for minutes.

    Raises:
        Unreachable: nothing does.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise Unreachable(
            f"no Ray answers at {address} (RAY_ADDRESS): {error}; start the cluster, "
            "or unset RAY_ADDRESS for a local one"
        ) from None
