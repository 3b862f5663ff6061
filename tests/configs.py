"""The configuration files that tests run on: their own, never the checkout's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.config.load import FILES, OWN_KEYS

FOLDER = Path(__file__).parent / "data" / "config"
"""params.yaml with the customer `demo` and no defaults, the shipped policy, devices and finance."""


def copy_to(root: Path) -> Path:
    """The files, in a checkout; returns it."""
    root.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(FOLDER / name, root)
    return root


def read(root: Path = FOLDER) -> dict[str, Any]:
    """The files of a checkout as one mapping, to be changed and written."""
    document: dict[str, Any] = {}
    for name in FILES:
        document |= yaml.safe_load((root / name).read_text(encoding="utf-8"))
    return document


def write(root: Path, document: dict[str, Any]) -> Path:
    """Write such a mapping as the files of a checkout; returns it."""
    root.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        own = {key: document[key] for key in document if key in OWN_KEYS[name]}
        (root / name).write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
    left = document.keys() - {key for own in OWN_KEYS.values() for key in own}
    assert not left, f"no file has {left}"
    return root


def override(root: Path, customer: str = "demo", **changes: Any) -> Path:
    """Let a customer of a checkout differ: `override(root, distill={"steps": 3})`."""
    document = read(root)
    _update(document["customers"][customer], changes)
    return write(root, document)


def _update(document: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _update(document.setdefault(key, {}), value)
        else:
            document[key] = value
