"""What verbs share: the customer, the form of an answer, and rows shown in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turbo_vaed.cli import completion

Format = Annotated[
    Literal["table", "json"], typer.Option("--format", help="table for people, json for programs")
]
Customer = Annotated[
    str,
    typer.Argument(help="name of a customer in params.yaml", autocompletion=completion.customers),
]


WIDE = 160
"""Characters of a table that goes into a file or a pipe, where nothing has to fit a window."""


def show(rows: Sequence[Mapping[str, Any]], form: str, title: str) -> None:
    """Rows as a table, or as one JSON document."""
    if form == "json":
        print(json.dumps(list(rows), default=str))
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column.replace("_", " "), overflow="fold")  # a name is never cut short
    for row in rows:
        table.add_row(*(escape(_shown(value)) for value in row.values()))
    console().print(table if rows else f"{title}: none")


def _shown(value: Any) -> str:
    """A value as people write it; a list of mappings has a line for each."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "\n".join(", ".join(f"{k} {_shown(v)}" for k, v in i.items()) for i in value)
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value) or "—"
    return str(value)


def console() -> Console:
    """Where people read: as wide as the window, or where there is none as wide as it takes."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDE)
