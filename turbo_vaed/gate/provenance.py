"""What a verdict is about besides its package: the data and the code."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from turbo_vaed.config import pipeline
from turbo_vaed.dataset.manifest import read_manifest
from turbo_vaed.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The data and the code that a verdict is about."""

    data_sha256: str
    git_revision: str


def provenance_of(workspace: Workspace) -> Provenance:
    """The provenance of what is judged now.

    Raises:
        CorruptFile: the manifest is missing or damaged.
    """
    return Provenance(data_sha256=data_sha256(workspace), git_revision=git_revision(workspace.root))


def data_sha256(workspace: Workspace) -> str:
    """Of the good files' own hashes, sorted, a line each: names and order do not matter."""
    manifest = read_manifest(workspace.folder("validate") / "manifest.parquet")
    hashes = sorted(manifest.loc[manifest["status"] == "ok", "sha256"])
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def git_revision(root: Path) -> str:
    """The commit that is checked out, with `-dirty` where tracked files differ from it; but for
    those in customers/, which the run itself writes.

    `unknown` where there is no commit or no git.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "--verify", "HEAD")
        code = (".", f":(exclude){pipeline.FOLDER}")
        is_dirty = bool(git("status", "--porcelain", "--untracked-files=no", "--", *code))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{revision}-dirty" if is_dirty else revision
