"""Where the weights of a teacher are: a folder, or a commit of a model on the Hugging Face hub.

A hub id is `ORG/NAME@COMMIT` or `ORG/NAME/SUBFOLDER@COMMIT`, the commit with its 40 digits: a
branch or a tag may hold other weights tomorrow. Only the config and safetensors are taken.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from turbo_vaed.errors import Unreachable, UserError
from turbo_vaed.models.teachers.files import CONFIG_NAME

# No part begins with a dot: `..` would leave the folder of the download.
_PART = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_PINNED = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?P<subfolder>(/{_PART})*)@(?P<commit>[0-9a-f]{{40}})"
)
_ANSWERS_WITHIN = 30.0
"""Seconds; what the hub may take to say what a commit holds."""


def locate(weights: str | Path, weights_name: str) -> Path:
    """The folder of a teacher's files; those of a hub id are downloaded into the hub's cache.

    Raises:
        UserError: neither a folder nor a hub id pinned to a commit, or no such commit.
        Unreachable: the hub does not answer.
    """
    if isinstance(weights, Path) or Path(weights).is_dir():
        return Path(weights)
    return download(weights, weights_name)


def download(hub_id: str, weights_name: str, into: Path | None = None) -> Path:
    """The folder with the files of a hub id, in the hub's cache or below `into`.

    What is there of a download that was interrupted is used again.

    Raises:
        UserError, Unreachable: as `locate`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class OnTerminal(tqdm):
        """The client's own bars, where a person sees them."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["disable"] = not sys.stderr.isatty()
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    named = _PINNED.fullmatch(hub_id)
    if named is None:
        raise UserError(
            f"{hub_id!r} is no folder, and no model of the hub pinned to a commit: write "
            "ORG/NAME@COMMIT or ORG/NAME/SUBFOLDER@COMMIT with the 40 hexadecimal digits of the "
            "commit (on the model's page, under Files, History); no part begins with a dot"
        )
    subfolder = named["subfolder"].lstrip("/")
    prefix = f"{subfolder}/" if subfolder else ""
    stem = weights_name.removesuffix(".safetensors")
    wanted = (CONFIG_NAME, weights_name, f"{weights_name}.index.json", f"{stem}-*-of-*.safetensors")
    patterns = [prefix + name for name in wanted]
    with _errors_as_ours(hub_id, weights_name):
        found = snapshot_download(
            named["repo"],
            revision=named["commit"],
            allow_patterns=patterns,
            local_dir=into,
            tqdm_class=OnTerminal,
        )
        folder = Path(found) / subfolder
        # Where the hub is silent the client takes a folder that is there, whatever it holds.
        if into is not None or not list(folder.glob("*.safetensors")):
            _check_whole(hub_id, named["repo"], named["commit"], patterns, Path(found))
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{hub_id} holds no {weights_name}, and pickled weights are not taken: name the "
            "subfolder that does, as in ORG/NAME/vae@COMMIT, or another model"
        )
    return folder


def _check_whole(hub_id: str, repo: str, commit: str, patterns: list[str], found: Path) -> None:
    """Ask the hub what the commit holds: all of it that `patterns` name must be in `found`."""
    from huggingface_hub import HfApi

    listed = HfApi().model_info(repo, revision=commit, timeout=_ANSWERS_WITHIN).siblings or []
    names = [file.rfilename for file in listed]
    wanted = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
    if missing := [name for name in wanted if not (found / name).is_file()]:
        raise Unreachable(
            f"{hub_id} was not downloaded whole: {', '.join(missing)} is not there yet; try again"
        )


@contextmanager
def _errors_as_ours(hub_id: str, weights_name: str) -> Iterator[None]:
    """Raise the hub client's errors as ours."""
    from huggingface_hub import errors

    # The root of its transport's errors, whichever package that is of.
    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{hub_id!r} is no name on the hub: {_first_line(error)}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"the hub has no {hub_id}, or you may not read it ({_first_line(error)})"
        ) from None
    except (transport, errors.LocalEntryNotFoundError, OSError) as error:
        raise Unreachable(
            f"{hub_id} cannot be downloaded ({_first_line(error)}); try again, or put "
            f"{CONFIG_NAME} and {weights_name} into a folder yourself"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
