"""Whether a Ray head answers and takes our token: in seconds, where joining it takes a minute and
then says no more than that it failed.

In a process of its own: Ray's client aborts its process where a token is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from turbo_vaed.errors import Unreachable, UserError
from turbo_vaed.settings import ray_authentication

PROBE_SECONDS = 20.0
_DENIED = 42
"""Exit code: the head wants another token."""


def probe(address: str, authentication: Mapping[str, str] | None = None) -> int:
    """Ask the head at `host:port` for its nodes; returns how many live.

    Args:
        authentication: which token is sent, as Ray's variables say it; those of this process by
            default.

    Raises:
        UserError: the head wants another token than ours, or none was found.
        Unreachable: no Ray answers there.
    """
    own = ray_authentication()
    authentication = own if authentication is None else authentication
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    try:
        found = subprocess.run(
            [sys.executable, "-m", __name__, address],
            env={**inherited, **authentication},
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(_no_answer(address)) from None
    if found.returncode == 0:
        return int(found.stdout)
    token = token_fault(authentication)
    if token is not None:
        raise UserError(token)
    if found.returncode == _DENIED:
        raise UserError(
            f"Ray at {address} (RAY_ADDRESS) refuses {_token_source(authentication)}; it wants the "
            "one that its head was started with: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
            "to a file with it"
        )
    raise Unreachable(_no_answer(address))


def token_fault(authentication: Mapping[str, str]) -> str | None:
    """What is wrong with the token that is set; None where nothing is, or where none is wanted."""
    if authentication.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if authentication.get("RAY_AUTH_TOKEN"):
        return None
    path = _token_path(authentication)
    try:
        if path.read_text(encoding="utf-8").strip():
            return None
        why = "is empty"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    return (
        f"RAY_AUTH_MODE is token, but {path} {why}; put the cluster's token there, or set "
        "RAY_AUTH_TOKEN_PATH to a file that has it"
    )


def _no_answer(address: str) -> str:
    return (
        f"no Ray answers at {address} (RAY_ADDRESS); start the cluster, or unset RAY_ADDRESS for a "
        "local one"
    )


def _token_path(authentication: Mapping[str, str]) -> Path:
    given = authentication.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def _token_source(authentication: Mapping[str, str]) -> str:
    if authentication.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return "clients without a token (RAY_AUTH_MODE=disabled)"
    if authentication.get("RAY_AUTH_TOKEN"):
        return "the token in RAY_AUTH_TOKEN"
    path = _token_path(authentication)
    return f"the token in {path}" if path.is_file() else "clients without a token"


def _ask(address: str) -> int:
    """What the child does."""
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does
    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=5)
    except AuthenticationError:
        return _DENIED
    print(sum(node.state == 0 for node in nodes.values()))  # GcsNodeInfo.ALIVE
    return 0


if __name__ == "__main__":
    sys.exit(_ask(sys.argv[1]))
