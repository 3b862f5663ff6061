"""Customers in params.yaml: added without losing its comments, listed."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from turbo_vaed.config import load
from turbo_vaed.config.schema import check_customer_name
from turbo_vaed.config.yaml_file import read_yaml_file
from turbo_vaed.errors import UserError
from turbo_vaed.runtime.files import atomic_file


def add(root: Path, name: str, *, source: Path, use_case: str) -> None:
    """Add a customer to params.yaml in `root`, keeping comments and order.

    Raises:
        UserError: a bad or taken name, no such folder, an unknown use case.
    """
    check_customer_name(name)
    path, files = root / load.PARAMS, load.read(root)
    if name in files.customers:
        raise UserError(f"customer {name!r} is in params.yaml already; edit it there")
    if use_case not in files.use_cases:
        raise UserError(f"unknown use case {use_case!r}; allowed: {', '.join(files.use_cases)}")
    if str(source).startswith("s3:"):
        raise UserError(f"{source}: an S3 source is not supported yet; copy it to a folder first")
    folder = source.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"--source {source} is not a folder; give one that holds the videos")
    if root.resolve() in folder.parents:
        folder = folder.relative_to(root.resolve())
    yaml = round_trip()
    document: Any = yaml.load(path.read_text(encoding="utf-8"))
    if document.get("customers") is None:
        document["customers"] = {}
    document["customers"][name] = {"source": folder.as_posix(), "use_case": use_case}
    with atomic_file(path) as temporary:
        temporary.write_text(dumped(yaml, document), encoding="utf-8")
        edited = dataclasses.replace(read_yaml_file(temporary), path=path)
        load.resolve(dataclasses.replace(files, params=edited), name).params()


def everyone(root: Path) -> list[dict[str, Any]]:
    """A row per customer: name, source, use case, budget."""
    files = load.read(root)
    found = {name: load.resolve(files, name).values for name in files.customers}
    return [
        {
            "customer": name,
            "source": values.get("source"),
            "use_case": values["use_case"],
            "budget_usd": values["budget"]["run_usd"],
        }
        for name, values in found.items()
    ]


def round_trip() -> YAML:
    """A reader and writer of YAML that keeps comments, order and quotes."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _null)
    return yaml


def dumped(yaml: YAML, document: Any) -> str:
    """The text of a document."""
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _null(representer: Any, _value: None) -> Any:
    """`null`, and not nothing, as the file has it."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
