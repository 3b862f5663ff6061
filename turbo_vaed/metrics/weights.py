"""Files of published weights: nothing of one is read before its hash is right."""

from __future__ import annotations

import hashlib
from pathlib import Path

from turbo_vaed.errors import UserError


def check_published(path: Path, sha256: str, how_to_get: str) -> None:
    """Raise UserError, which says how to get it, where this is not the file of that hash."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {how_to_get}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{path}: found sha256 {found}, expected {sha256}; {how_to_get}")
