"""Files of published weights: nothing of one is read before its hash is right."""

from __future__ import annotations

from pathlib import Path

from turbo_vaed.errors import UserError
from turbo_vaed.runtime.files import sha256_file


def check_published(path: Path, sha256: str, how_to_get: str) -> None:
    """Raise UserError, which says how to get it, where this is not the file of that hash."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {how_to_get}")
    found = sha256_file(path)
    if found != sha256:
        raise UserError(f"{path}: found sha256 {found}, expected {sha256}; {how_to_get}")
