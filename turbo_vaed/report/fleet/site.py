"""The place that pages are published in: a folder, or a prefix of an S3 bucket.

An object is there whole or not at all, and is sent only where its content differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from turbo_vaed.errors import Unreachable, UserError
from turbo_vaed.runtime.files import atomic_file

_TYPES = {".html": "text/html; charset=utf-8", ".json": "application/json"}
_AT_ONCE = 16
"""Requests to S3: one takes tens of milliseconds, and there are several per customer."""
_CLIENT: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"total_max_attempts": 2},
    "max_pool_connections": _AT_ONCE,
}
"""Gives up early: a run that is over waits for it."""
_DIGEST = "sha256"
"""The name of an object's digest in its metadata; an ETag is none where the bucket encrypts."""


class Site(Protocol):
    """Named objects; a name has slashes, as in a URL."""

    @property
    def address(self) -> str:
        """Where the site's pages begin, for a person."""

    def names(self, prefix: str) -> dict[str, str]:
        """The objects below a prefix, each with what changes when its content does."""

    def read(self, name: str) -> bytes:
        """An object's content. `FileNotFoundError`: there is no such object."""

    def write(self, name: str, content: bytes) -> bool:
        """Add or replace an object; False where it has this content already."""

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""


def site_at(url: str) -> Site:
    """A folder, or `s3://BUCKET/PREFIX`.

    Raises:
        UserError: another scheme, or no bucket.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return Folder(Path(url))
    if scheme == "s3" and rest.strip("/"):
        bucket, _, prefix = rest.strip("/").partition("/")
        return Bucket(bucket, prefix)
    raise UserError(
        f"TURBO_VAED_SITE: pages cannot be published to {url!r}; give a folder or "
        "s3://BUCKET/PREFIX"
    )


def read_all(site: Site, names: Iterable[str]) -> dict[str, bytes]:
    """The content of objects, of those that are still there."""

    def read(name: str) -> tuple[str, bytes | None]:
        with suppress(FileNotFoundError):
            return name, site.read(name)
        return name, None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {name: content for name, content in pool.map(read, names) if content is not None}


class Folder:
    """Files below a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def address(self) -> str:
        return str(self._path)

    def names(self, prefix: str) -> dict[str, str]:
        found = {}
        for path in (self._path / prefix).rglob("*"):
            with suppress(FileNotFoundError):  # replaced meanwhile
                if path.is_file() and not path.name.startswith("."):
                    stat = path.stat()
                    name = path.relative_to(self._path).as_posix()
                    found[name] = f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"
        return found

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def write(self, name: str, content: bytes) -> bool:
        path = self._path / name
        try:
            with suppress(FileNotFoundError):
                if path.stat().st_size == len(content) and path.read_bytes() == content:
                    return False
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise Unreachable(f"{path} cannot be written: {error}") from error
        return True

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class Bucket:
    """Objects below a prefix of a bucket.

    Endpoint, region and credentials are found as every AWS client finds them (AWS_ENDPOINT_URL …).
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        try:
            self._s3 = boto3.client("s3", config=Config(**_CLIENT))
        except BotoCoreError as error:
            raise UserError(f"{self.address}: {error}") from error

    @property
    def address(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def names(self, prefix: str) -> dict[str, str]:
        with self._errors():
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return {
                one["Key"].removeprefix(self._prefix): one["ETag"]
                for page in pages
                for one in page.get("Contents", ())
            }

    def read(self, name: str) -> bytes:
        with self._errors():
            found = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
            content: bytes = found["Body"].read()
            return content

    def write(self, name: str, content: bytes) -> bool:
        key, digest = self._prefix + name, hashlib.sha256(content).hexdigest()
        with self._errors():
            with suppress(FileNotFoundError), self._errors():
                found = self._s3.head_object(Bucket=self._bucket, Key=key)
                if found["Metadata"].get(_DIGEST) == digest:
                    return False
            self._s3.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                ContentType=_TYPES.get(Path(name).suffix, "application/octet-stream"),
                CacheControl="no-cache",  # a browser asks whether there is a newer one
                Metadata={_DIGEST: digest},
            )
        return True

    def remove(self, name: str) -> None:
        with self._errors():
            self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """S3's errors as the project's own; that of an object that is not there passes."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
        )

        try:
            yield
        except NoCredentialsError as error:
            raise UserError(
                f"no credentials for {self.address}: give this machine a role, or set AWS_PROFILE, "
                "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except ParamValidationError as error:
            raise UserError(f"{self.address} is no S3 address: {error}") from error
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(str(error)) from error
            if code == "NoSuchBucket":
                raise UserError(
                    f"there is no bucket {self._bucket!r} at this endpoint: make it, or correct "
                    "TURBO_VAED_SITE or AWS_ENDPOINT_URL"
                ) from error
            if code in ("AccessDenied", "403"):
                raise UserError(
                    f"S3 does not let this machine at {self.address}: its role or credentials need "
                    "s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and "
                    "s3:DeleteObject on the objects"
                ) from error
            raise Unreachable(f"S3 failed at {self.address}: {error}") from error
        except BotoCoreError as error:
            raise Unreachable(f"S3 failed at {self.address}: {error}") from error
