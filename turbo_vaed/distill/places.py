"""Where checkpoints lie: a folder or a prefix of an S3 bucket. An object is there whole or not.

Both places name an object by the hash of its bytes (`name_of(sha256)`), which is known only once
they are all serialised, and both are left without a trace of an object whose writing failed.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from turbo_vaed.errors import Unreachable, UserError

_PARTIAL = ".partial"
_CLIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 2}}
"""The client gives up early: who calls knows how long it is worth trying, and tells of it."""

Reader = io.BufferedReader | io.BytesIO
Serialise = Callable[[Any], None]
"""Writes the bytes of one object, the same ones at every call, to what has a `write`."""


class Place(Protocol):
    """What a `Store` asks of where its objects lie. `FileNotFoundError`: no such object."""

    def names(self) -> list[str]:
        """Of all objects, in no order, foreign ones among them; none where nothing is yet."""

    def write(self, serialise: Serialise, name_of: Callable[[str], str]) -> tuple[str, int]:
        """Add an object, or replace that of the same name; returns its name and size in bytes."""

    def open(self, name: str) -> Reader:
        """An object, to be read and sought in."""

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""


def place_at(url: str) -> Place:
    """The place of a folder or of `s3://BUCKET/PREFIX`.

    Raises:
        UserError: another scheme, or no bucket.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return Folder(Path(url))
    if scheme == "file":
        return Folder(Path(rest))
    if scheme == "s3" and rest.strip("/"):
        return Bucket(rest.strip("/"))
    raise UserError(f"checkpoints cannot lie at {url!r}: give a folder or s3://BUCKET/PREFIX")


class Hashing:
    """Passes bytes on to `file`, if there is one, and keeps their sha256 and number."""

    def __init__(self, file: Any = None) -> None:
        self._file, self._sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        if self._file is not None:
            self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Asked for by `torch.save`; what is behind is flushed by its owner."""

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()


class Folder:
    """Partial file, fsync, rename, fsync of the folder: what has its name survives a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []

    def write(self, serialise: Serialise, name_of: Callable[[str], str]) -> tuple[str, int]:
        """As `Place.write`; a full disk is told as OSError, ENOSPC or EDQUOT."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._remove_partials()
        partial = self._path / f".{uuid.uuid4().hex}{_PARTIAL}"
        try:
            with open(partial, "xb") as file:
                hashing = Hashing(file)
                serialise(hashing)
                file.flush()
                os.fsync(file.fileno())
            name = name_of(hashing.digest)
            os.replace(partial, self._path / name)
        finally:
            partial.unlink(missing_ok=True)
        self._sync()
        return name, hashing.size

    def open(self, name: str) -> Reader:
        return open(self._path / name, "rb")

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def _remove_partials(self) -> None:
        """A store has one writer: what another one was writing when it died is of no use."""
        for name in self.names():
            if name.startswith(".") and name.endswith(_PARTIAL):
                self.remove(name)

    def _sync(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Bucket:
    """One put, or a multipart upload, which S3 shows when it is complete and not before.

    Endpoint, region and credentials are found as every AWS client finds them (AWS_ENDPOINT_URL …).
    """

    def __init__(self, path: str) -> None:
        import s3fs

        self._path = path
        # Listings are never cached: another process writes what this one reads.
        self._files = s3fs.S3FileSystem(
            use_listings_cache=False, skip_instance_cache=True, config_kwargs=_CLIENT
        )

    def names(self) -> list[str]:
        with _told(self._path):
            try:
                found = self._files.ls(self._path, detail=False)
            except FileNotFoundError as error:
                if error.__cause__ is not None:  # NoSuchBucket; an empty prefix has no cause
                    raise
                return []
        return [path.rpartition("/")[2] for path in found]

    def write(self, serialise: Serialise, name_of: Callable[[str], str]) -> tuple[str, int]:
        """As `Place.write`. Serialises twice, since the name stands before the first byte is sent:
        that takes a second per GB; a copy of the bytes would take as much memory again."""
        hashing = Hashing()
        serialise(hashing)
        name = name_of(hashing.digest)
        with _told(self._path):
            # Without autocommit, a file that is closed by an error, or by the garbage collector,
            # is not taken for a complete one.
            file = self._files.open(f"{self._path}/{name}", "wb", autocommit=False)
            try:
                serialise(file)
                file.close()
                file.commit()
            except BaseException:
                file.closed = True
                with suppress(*_failures()):  # S3 keeps the parts, unseen, where this fails too
                    file.discard()
                raise
        return name, hashing.size

    def open(self, name: str) -> Reader:
        with _told(self._path):
            return io.BytesIO(self._files.cat_file(f"{self._path}/{name}"))

    def remove(self, name: str) -> None:
        with _told(self._path):
            self._files.rm_file(f"{self._path}/{name}")


def _failures() -> tuple[type[BaseException], ...]:
    """What s3fs raises of its own, of botocore and of the connection."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Errors of S3 as the project's own; FileNotFoundError of an object passes."""
    from botocore.exceptions import NoCredentialsError, ParamValidationError

    bucket = path.partition("/")[0]
    try:
        yield
    except FileNotFoundError as error:
        if error.__cause__ is None or "NoSuchKey" in str(error.__cause__):
            raise
        raise UserError(
            f"there is no bucket {bucket!r} at this endpoint: make it, or correct the URL of the "
            "checkpoints or AWS_ENDPOINT_URL"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"S3 does not let this machine at s3://{path} ({error}): its role or credentials need "
            "s3:ListBucket on the bucket; s3:GetObject, s3:PutObject, s3:DeleteObject and "
            "s3:AbortMultipartUpload on the objects"
        ) from error
    except NoCredentialsError as error:
        raise UserError(
            f"no credentials for s3://{path}: give this machine a role, or set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except ParamValidationError as error:
        raise UserError(f"s3://{path} is no S3 address: {error}") from error
    except _failures() as error:
        raise Unreachable(f"S3 failed at s3://{path}: {error or type(error).__name__}") from error
