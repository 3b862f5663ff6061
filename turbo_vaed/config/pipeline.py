"""A customer's DVC pipeline: the checkout's dvc.yaml, filled in for one customer.

DVC reads `customers/NAME/dvc.yaml` and writes `customers/NAME/dvc.lock`, so that a run parses and
locks what is its customer's and nothing else, however many customers there are. The dvc.yaml at the
top of the checkout is what they are made from; .dvcignore hides it from DVC itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.runtime.files import write_text

TEMPLATE = "dvc.yaml"
FOLDER = "customers"
"""Of the checkout: a folder per customer, with its pipeline and its lock; both are for Git."""
_HEADER = "# Made from the dvc.yaml at the top of the checkout; edits of this file are lost.\n"


def folder(root: Path, customer: str) -> Path:
    """Where the customer's dvc.yaml and dvc.lock are."""
    return root / FOLDER / customer


def write(root: Path, customer: str, source: str) -> bool:
    """Bring the customer's dvc.yaml up to date; returns whether it had to be written.

    Args:
        source: the customer's videos, relative to `root` or absolute.
    """
    filled = fill(template(root), customer, source)
    text = _HEADER + yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)
    path = folder(root, customer) / "dvc.yaml"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def template(root: Path) -> Any:
    """The checkout's dvc.yaml, for any customer."""
    return yaml.safe_load((root / TEMPLATE).read_text(encoding="utf-8"))


def fill(template: Any, customer: str, source: str) -> Any:
    """The pipeline of a customer, as its dvc.yaml will say.

    Args:
        source: as of `write`.
    """
    return _fill(template, {"${customer}": customer, "${source}": source})


def _fill(node: Any, values: dict[str, str]) -> Any:
    """`node` with every placeholder in its strings replaced."""
    if isinstance(node, dict):
        return {_fill(key, values): _fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(one, values) for one in node]
    if isinstance(node, str):
        for placeholder, value in values.items():
            node = node.replace(placeholder, value)
    return node
