"""Digests of large files, computed once: a file of the same size and time has the same content."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import read_json, sha256_file, sha256_json, write_json


class DigestCache:
    """SHA-256 of files, remembered in a JSON file by path, size and time of change.

    Processes may share the file: what one of them forgets is computed again.
    """

    def __init__(self, path: Path, *, keeps: bool = True) -> None:
        """Args:
        keeps: false to leave the file as it is, and to remember in this process only.
        """
        self._path, self._keeps = path, keeps
        self._own: dict[str, list[object]] = {}

    def sha256(self, path: Path) -> str:
        """The digest of a file's content, in hex.

        Raises:
            FileNotFoundError: there is none.
        """
        stat = path.stat()
        key, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if self._own.get(key, [])[:2] != state:
            known = self._read()
            if known.get(key, [])[:2] != state:
                known = {key: [*state, sha256_file(path)]}
                if self._keeps:
                    write_json(self._path, self._read() | known)
            self._own[key] = known[key]
        return str(self._own[key][2])

    def sha256_folder(self, folder: Path, patterns: Collection[str]) -> str:
        """One digest of all files of `folder` that match one of such patterns, by their names."""
        found = {
            path.relative_to(folder).as_posix(): self.sha256(path)
            for path in sorted(folder.rglob("*"))
            if any(path.match(pattern) for pattern in patterns) and path.is_file()
        }
        return sha256_json(found)

    def _read(self) -> dict[str, list[object]]:
        try:
            return read_json(self._path)
        except (FileNotFoundError, CorruptFile):
            return {}
