"""Customers in params.yaml: added without losing its comments, listed."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from turbo_vaed.config import schema
from turbo_vaed.errors import UserError


def add(root: Path, name: str, *, source: Path, use_case: str) -> None:
    """Add a customer to params.yaml in `root`, keeping comments and order.

    Raises:
        UserError: a bad or taken name, no such folder, an unknown use case.
    """
    schema.check_customer_name(name)
    path = root / "params.yaml"
    known = schema.read_yaml(path)
    if name in (known.get("customers") or {}):
        raise UserError(f"customer {name!r} is in params.yaml already; edit it there")
    use_cases = known.get("use_cases") or {}
    if use_case not in use_cases:
        raise UserError(f"unknown use case {use_case!r}; allowed: {', '.join(use_cases)}")
    if str(source).startswith("s3:"):
        raise UserError(f"{source}: an S3 source is not supported yet; copy it to a folder first")
    folder = source.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"--source {source} is not a folder; give one that holds the videos")
    if root.resolve() in folder.parents:
        folder = folder.relative_to(root.resolve())
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _null)
    document: Any = yaml.load(path.read_text(encoding="utf-8"))
    if document.get("customers") is None:
        document["customers"] = {}
    document["customers"][name] = {"source": folder.as_posix(), "use_case": use_case}
    text = io.StringIO()
    yaml.dump(document, text)
    partial = path.with_suffix(".yaml.partial")
    try:
        partial.write_text(text.getvalue(), encoding="utf-8")
        schema.load(partial, name)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _null(representer: Any, _value: None) -> Any:
    """`null`, and not nothing, as the file has it."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def everyone(root: Path) -> list[dict[str, Any]]:
    """A row per customer: name, source, use case, budget."""
    document = schema.read_yaml(root / "params.yaml")
    rows = []
    for name in document.get("customers") or {}:
        resolved = schema.resolve(document, name)
        rows.append(
            {
                "customer": name,
                "source": resolved.get("source"),
                "use_case": resolved.get("use_case"),
                "budget_usd": resolved["budget"]["run_usd"],
            }
        )
    return rows
