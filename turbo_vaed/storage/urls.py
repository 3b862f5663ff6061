"""Folders and S3 prefixes by URL, and what goes wrong with them in the project's own errors.

Endpoint, region and credentials of S3 are found as every AWS client finds them (AWS_ENDPOINT_URL
…); botocore and s3fs try again on 5xx, throttling, timeouts and broken connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from turbo_vaed.errors import Fault, Unreachable, UserError

S3 = "s3://"


def is_remote(place: object) -> bool:
    """Whether a place is an S3 URL, and no path of this machine."""
    return str(place).startswith(S3)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a path or URL, and the path in it.

    Listings of a bucket are never cached: other machines write what this one lists.
    """
    from fsspec.core import url_to_fs

    options = {"use_listings_cache": False} if is_remote(url) else {"auto_mkdir": True}
    files, root = url_to_fs(url.rstrip("/"), **options)
    return files, root


def s3_failures() -> tuple[type[BaseException], ...]:
    """What s3fs raises of its own, of botocore and of the connection."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


@contextmanager
def s3_errors(path: str) -> Iterator[None]:
    """Errors of S3 as the project's own; FileNotFoundError of an object passes.

    Args:
        path: BUCKET/PREFIX, for the message.
    """
    from botocore.exceptions import NoCredentialsError, ParamValidationError

    bucket = path.partition("/")[0]
    try:
        yield
    except FileNotFoundError as error:
        if error.__cause__ is None or "NoSuchKey" in str(error.__cause__):
            raise
        raise UserError(
            f"there is no bucket {bucket!r} at this endpoint: make it, or correct its URL in the "
            "environment or AWS_ENDPOINT_URL"
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
    except s3_failures() as error:
        raise Unreachable(f"S3 failed at s3://{path}: {error or type(error).__name__}") from error


@contextmanager
def errors_of(url: str) -> Iterator[None]:
    """As `s3_errors` where the URL is one of S3; a disk's errors pass."""
    if not is_remote(url):
        yield
        return
    with s3_errors(url.removeprefix(S3)):
        yield


@contextmanager
def worker_errors(url: str) -> Iterator[None]:
    """As `errors_of`, but an S3 that does not answer is a Fault: training starts again for those,
    from its last checkpoint, and ends for others."""
    try:
        with errors_of(url):
            yield
    except Unreachable as error:
        raise Fault(str(error)) from error
