"""`turbo-vaed config …`: the four files of a checkout, and where every value comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="params.yaml, policy.yaml, devices.yaml and finance.yaml."
)
SCHEMAS = "schemas"
"""The folder of the schemas, which the first line of each file names for editors."""


@app.command("show")
def show_config(customer: Customer, form: Format = "table") -> None:
    """Every value that a customer's run uses, and where it comes from.

    A file and line, a variable of the environment, or the built-in default.
    """
    from turbo_vaed.config import load
    from turbo_vaed.config.yaml_file import dotted

    settings = Settings.from_environment()
    found = load.resolve(load.read(settings.root), customer)
    found.params()  # valid
    rows = [
        {"key": dotted(keys), "value": value, "from": found.origin(keys)}
        for keys, value in load.leaves(found.values)
        if keys != ("device", "name")  # it is gate.device
    ]
    rows += [
        {"key": f"environment.{name}", "value": _without_secret(value), "from": origin}
        for name, (value, origin) in settings.origins().items()
    ]
    show(rows, form, f"configuration of {customer}")


@app.command("schema")
def write_schemas() -> None:
    """Write JSON schemas of the four files, by which editors complete keys and mark mistakes."""
    from turbo_vaed.config.json_schema import schemas
    from turbo_vaed.runtime.files import write_json

    folder = Settings.from_environment().root / SCHEMAS
    for name, schema in schemas().items():
        print(write_json(folder / f"{Path(name).stem}.json", schema))


@app.command("migrate")
def migrate_config(
    old: Annotated[
        Path | None, typer.Argument(help="a params.yaml that has everything  [default: this one]")
    ] = None,
    force: Annotated[bool, typer.Option(help="replace files that exist")] = False,
) -> None:
    """Split a params.yaml of the old layout into the four files; comments stay."""
    from turbo_vaed.config import load
    from turbo_vaed.config.migrate import migrate
    from turbo_vaed.runtime.files import write_text

    root = Settings.from_environment().root
    source = old or root / load.PARAMS
    texts = migrate(source)
    if not texts:
        print(f"{source} has the new layout already: nothing to do")
        return
    taken = [n for n in texts if (root / n).exists() and (root / n).resolve() != source.resolve()]
    if taken and not force:
        raise UserError(
            f"{', '.join(taken)} exist in {root} already: --force replaces them by what {source} "
            "says"
        )
    for name, text in reversed(texts.items()):  # params.yaml last: it has everything until then
        print(write_text(root / name, text))


def _without_secret(value: Any) -> Any:
    """A value without the password in its URL."""
    return re.sub(r"(://[^:/@]*:)[^@/]*@", r"\1…@", value) if isinstance(value, str) else value
