"""Files that are whole or not there: atomic writes, JSON documents and lines, digests.

A reader never sees half of what these write, whatever kills the writer, and threads and processes
may write the same path at once: the last one wins, with all of its own content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from turbo_vaed.errors import CorruptFile


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` to write to; it takes the place of `path`, flushed to disk,
    when the block ends well, and is gone otherwise. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder next to `path`, which takes the place of `path` when the block ends
    well and is gone otherwise. What was at `path` stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    marker = uuid4().hex
    temporary = path.with_name(f".{path.name}.{marker}.partial")
    old = path.with_name(f".{path.name}.{marker}.old")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)  # a folder that is not empty cannot be renamed over
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write `text` in UTF-8, atomically; returns `path`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, document: object, *, indent: int | None = 1) -> Path:
    """Write `document` as JSON, atomically; returns `path`.

    Raises:
        ValueError: it holds NaN or an infinity, which are not JSON.
    """
    return write_text(path, json.dumps(document, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what to do about a file that is damaged, for the message: "run the gate again".

    Raises:
        FileNotFoundError: there is none.
        CorruptFile: it is cut short, not UTF-8, not JSON, or not an object.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CorruptFile(f"{path} is not valid JSON ({error}){advice}") from error
    if not isinstance(document, dict):
        raise CorruptFile(
            f"{path}: expected a JSON object, found {type(document).__name__}{advice}"
        )
    return document


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hex.

    Raises:
        FileNotFoundError: there is none.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(document: object) -> str:
    """The SHA-256 of a value's canonical JSON, in hex; other types count by their `str`."""
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class JsonLines:
    """A file of JSON lines, each appended whole or not at all; a full disk delays them."""

    def __init__(self, path: Path, on_error: Callable[[str], None]) -> None:
        """Open for appending, behind the last whole line.

        Args:
            on_error: called with a message where lines cannot be written yet.
        """
        self._path, self._on_error = path, on_error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._size = path.read_bytes().rfind(b"\n") + 1
        self._pending = b""

    def append(self, document: Mapping[str, Any]) -> None:
        """Write a line, and those that could not be written before."""
        self._pending += json.dumps(document, default=str).encode() + b"\n"
        try:
            with self._path.open("r+b") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(self._pending)
        except OSError as error:
            self._on_error(f"{self._path} cannot be written, its lines are kept in memory: {error}")
            return
        self._size += len(self._pending)
        self._pending = b""

    def clear(self) -> None:
        """Start over: the next line replaces the file's content."""
        self._size, self._pending = 0, b""
