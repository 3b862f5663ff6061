"""Where backups are kept: a folder, or a prefix of a bucket.

`contents/` has every file's bytes once, by their SHA-256, whatever number of backups have it, and
`backups/NAME.json` says what a backup consists of. So the second backup of the same checkout copies
what has changed since.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.runtime.files import atomic_file, sha256_json

_NAME = re.compile(r"\d{8}T\d{6}Z")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Content:
    """The bytes of a file."""

    sha256: str
    md5: str
    size: int


class Tree:
    """Files below a folder or a prefix of a bucket, by their relative paths."""

    def __init__(self, url: str) -> None:
        """Endpoint and credentials of a bucket are found as every AWS client finds them.

        Raises:
            UserError: neither a folder nor s3://BUCKET/PREFIX.
        """
        import fsspec

        scheme = url.partition("://")[0] if "://" in url else "file"
        if scheme not in ("file", "s3"):
            raise UserError(f"{url} is neither a folder nor s3://BUCKET/PREFIX")
        options = {"use_listings_cache": False} if scheme == "s3" else {}
        self.url, self.is_local = url.rstrip("/"), scheme == "file"
        self._files, self._path = fsspec.core.url_to_fs(self.url, **options)

    def paths(self, below: str = "") -> dict[str, str]:
        """Each file, and a stamp that changes with its content: its size, and its time or ETag."""
        top = f"{self._path}/{below}".rstrip("/")
        if not self._files.exists(top):
            return {}
        found = self._files.find(top, detail=True)
        return {
            path[len(self._path) + 1 :]: f"{info['size']} {info.get('ETag') or info.get('mtime')}"
            for path, info in found.items()
        }

    def size(self, path: str) -> int | None:
        """Bytes of a file; None: it is not there."""
        try:
            return int(self._files.info(f"{self._path}/{path}")["size"])
        except FileNotFoundError:
            return None

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """The file on this disk: itself, or a copy for the time of the block.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.is_local:
            yield Path(self._path, path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "copy")
            self._files.get_file(f"{self._path}/{path}", str(copy))
            yield copy

    def put(self, source: Path, path: str) -> None:
        """Add a file, or replace it: it is there whole or not at all."""
        if not self.is_local:
            self._files.put_file(str(source), f"{self._path}/{path}")
            return
        with atomic_file(Path(self._path, path)) as temporary:
            shutil.copyfile(source, temporary)


def content_of(path: Path) -> Content:
    """Both digests of a file, read once: ours, and the one by which DVC names what it keeps."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return Content(sha256=sha256.hexdigest(), md5=md5.hexdigest(), size=size)


class Store:
    """Backups at a folder or s3://BUCKET/PREFIX."""

    def __init__(self, url: str) -> None:
        """Raises UserError where it is neither."""
        self._tree = Tree(url if "://" in url else str(Path(url).absolute()))
        self.url = self._tree.url

    def names(self) -> list[str]:
        """Of the backups, the oldest first: each is the time at which it was begun."""
        found = (Path(path).stem for path in self._tree.paths("backups"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def contents(self) -> dict[str, int]:
        """The size of each content that is kept, by its SHA-256."""
        found = self._tree.paths("contents")
        return {path.rpartition("/")[2]: int(stamp.split()[0]) for path, stamp in found.items()}

    def add(self, source: Path, known: dict[str, int]) -> Content:
        """Keep the bytes of a file, unless they are in `known` with their size; it follows.

        Raises:
            CorruptFile: the file changed while it was read.
        """
        content = content_of(source)
        if known.get(content.sha256) != content.size:
            self._put(source, _place(content.sha256))
            if (kept := self._tree.size(_place(content.sha256))) != content.size:
                raise CorruptFile(f"{source} changed while it was copied: {kept} bytes are kept")
            known[content.sha256] = content.size
        return content

    @contextmanager
    def local(self, sha256: str) -> Iterator[Path]:
        """A kept content as a file on this disk, for the time of the block.

        Raises:
            FileNotFoundError: it is not kept.
        """
        with self._tree.local(_place(sha256)) as path:
            yield path

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep the document of a backup, with a digest of itself."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "document")
            signed = {**document, "document_sha256": sha256_json(document)}
            path.write_text(json.dumps(signed, indent=1), encoding="utf-8")
            self._put(path, f"backups/{name}.json")

    def _put(self, source: Path, path: str) -> None:
        self._tree.put(source, path)
        if self._tree.is_local:  # dumps of databases: nobody else reads them
            Path(self.url, path).chmod(0o600)

    def read(self, name: str | None = None) -> tuple[str, dict[str, Any]]:
        """The name and the document of a backup, of the newest one by default.

        Raises:
            UserError: there is no such backup.
            CorruptFile: the document is not what was written.
        """
        names = self.names()
        if not names or (name is not None and name not in names):
            known = f"there are: {', '.join(names)}" if names else "there is none yet"
            raise UserError(f"{self.url} has no backup {name or ''}; {known}".replace(" ;", ";"))
        name = name or names[-1]
        with self._tree.local(f"backups/{name}.json") as path:
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                digest = document.pop("document_sha256")
            except (ValueError, KeyError, AttributeError):
                digest, document = "", {}
        if digest != sha256_json(document):
            raise CorruptFile(f"{self.url}/backups/{name}.json was altered: take another backup")
        return name, document


def _place(sha256: str) -> str:
    return f"contents/{sha256[:2]}/{sha256}"
