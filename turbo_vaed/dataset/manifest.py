"""manifest.parquet: a row per file of the customer's folder, readable or not."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.dataset.probe import VideoFacts, probe_video
from turbo_vaed.errors import CorruptFile, DataRefused, UserError
from turbo_vaed.runtime.files import atomic_file, sha256_file
from turbo_vaed.runtime.progress import track

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "path": "string", "sha256": "string", "bytes": "int64",
    "status": "string", "reason": "string", "error": "string",
    "container": "string", "codec": "string", "width": "Int64", "height": "Int64",
    "fps": "Float64", "frames": "Int64", "seconds": "Float64",
    "black_share": "Float64", "frozen_share": "Float64", "brightness": "Float64",
    "motion": "Float64", "phash": "string", "duplicate_of": "string",
}  # fmt: skip
"""Column -> pandas dtype. `error` is the probe's; `reason` is why a row is quarantined."""


def build_manifest(
    source: Path, *, timeout_seconds: float, workers: int | None = None
) -> pd.DataFrame:
    """A row per file in `source` and below it, hidden files and documents left out, in order of
    path.

    A file that cannot be read and an exact copy of another are rows with status "quarantined".

    Args:
        source: the customer's folder.
        timeout_seconds: for the probe of one file.
        workers: probes at a time; one per CPU by default.

    Raises:
        UserError: `source` is no folder.
        DataRefused: there is no file in it.
    """
    import pandas as pd

    files = list_files(source)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        digests = list(track(pool.map(_sha256, files), "hashing", len(files)))
        first: dict[str, Path] = {}
        for file, (digest, _) in zip(files, digests, strict=True):
            if digest:
                first.setdefault(digest, file)
        originals = list(first.values())
        probed = pool.map(lambda f: probe_video(f, timeout_seconds=timeout_seconds), originals)
        facts = dict(zip(first, track(probed, "probing", len(originals)), strict=True))
    rows = []
    for file, (digest, error) in zip(files, digests, strict=True):
        original = first[digest] if digest else file
        rows.append(
            _row(
                source,
                file,
                digest,
                facts[digest] if digest else VideoFacts(error=error),
                None if original == file else _shown(source, original),
            )
        )
    return pd.DataFrame(rows).astype(COLUMNS)[list(COLUMNS)]


DOCUMENTS = frozenset((
    ".csv", ".docx", ".html", ".json", ".jsonl", ".md", ".pdf", ".srt", ".tsv", ".txt", ".vtt",
    ".xlsx", ".xml", ".yaml", ".yml",
))  # fmt: skip
"""Suffixes of documents that lie next to videos: they are ignored, not reported as bad videos."""


def list_files(source: Path) -> list[Path]:
    """As `files_in`, of a folder that has to hold some.

    Raises:
        UserError: `source` is no folder.
        DataRefused: there is no file in it.
    """
    if not source.is_dir():
        raise UserError(
            f"the folder of videos {source} does not exist; put the videos there, "
            "or change `source` of the customer in params.yaml"
        )
    files = files_in(source)
    if not files:
        raise DataRefused(f"the folder of videos {source} holds no videos; put the videos there")
    return files


def files_in(source: Path) -> list[Path]:
    """Every file below `source` but hidden ones and documents, in order of path; links to folders
    are not followed, and what is neither a file nor a broken link is not listed."""
    files: list[Path] = []
    for folder, folders, names in os.walk(source):
        folders[:] = [f for f in folders if not f.startswith(".")]
        paths = (Path(folder) / n for n in names if not n.startswith("."))
        candidates = (p for p in paths if p.suffix.lower() not in DOCUMENTS)
        files += [p for p in candidates if p.is_file() or p.is_symlink()]
    return sorted(files, key=lambda p: os.fsencode(p.relative_to(source)))


def write_manifest(manifest: pd.DataFrame, path: Path) -> None:
    """Write `path` whole or not at all."""
    with atomic_file(path) as partial:
        manifest.to_parquet(partial, index=False)


def read_manifest(path: Path) -> pd.DataFrame:
    """The manifest in `path`.

    Raises:
        CorruptFile: missing, not parquet, or without a column that belongs to it.
    """
    import pandas as pd
    import pyarrow as pa

    remedy = "run the stage `validate` again"
    try:
        manifest = pd.read_parquet(path)
    except FileNotFoundError:
        raise CorruptFile(f"{path} does not exist; {remedy}") from None
    except (OSError, pa.ArrowException) as error:
        raise CorruptFile(f"{path} is not a parquet file ({error}); {remedy}") from None
    missing = [column for column in COLUMNS if column not in manifest]
    if missing:
        raise CorruptFile(f"{path} lacks the columns {', '.join(missing)}; {remedy}")
    return manifest.astype(COLUMNS)[list(COLUMNS)]


def _sha256(path: Path) -> tuple[str | None, str | None]:
    """(sha256, None), or (None, why the file cannot be read)."""
    try:
        path.name.encode()
        return sha256_file(path), None
    except UnicodeEncodeError:
        return None, "the file's name is not valid UTF-8: rename it"
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"


def _row(
    source: Path, file: Path, digest: str | None, facts: VideoFacts, duplicate_of: str | None
) -> dict[str, object]:
    reason = facts.error
    if reason is None and duplicate_of is not None:
        reason = f"exact copy of {duplicate_of}"
    return {
        "path": _shown(source, file),
        "sha256": digest,
        "bytes": file.lstat().st_size if digest is None else file.stat().st_size,
        "status": "ok" if reason is None else "quarantined",
        "reason": reason,
        "duplicate_of": duplicate_of,
        **dataclasses.asdict(facts),
    }


def _shown(source: Path, file: Path) -> str:
    """The relative path as text; bytes that are no UTF-8 are escaped."""
    return os.fsencode(file.relative_to(source).as_posix()).decode("utf-8", "backslashreplace")
