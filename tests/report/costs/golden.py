"""The reports of the made-up ledger as they should be, in tests/golden/costs.

`make golden` writes them again and shows what changed. Style sheets are left out.
"""

from __future__ import annotations

import difflib
import io
import json
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.report.costs import made_up
from turbo_vaed.costs.customer_costs import Statement
from turbo_vaed.costs.months import Month
from turbo_vaed.report.costs.formats import csv_text, json_text, show_tables
from turbo_vaed.report.costs.page import costs_page
from turbo_vaed.report.costs.portfolio import portfolio_document, portfolio_page

FOLDER = made_up.ROOT / "tests" / "golden" / "costs"
AUGUST = Month(year=2026, number=8)


def documents(root: Path) -> dict[str, str]:
    """File name -> text, of a made-up checkout that is written to `root`."""
    made_up.checkout(root)
    everyone = made_up.gathered(root)
    champions = made_up.champions(everyone)
    returns = made_up.returns(everyone)
    acme = made_up.gathered(root, customer="acme", period=AUGUST).statement
    august = made_up.gathered(root, period=AUGUST)
    found = {
        **_forms("all", everyone.statement),
        **_forms("all-2026-08", august.statement),
        **_forms("acme-2026-08", acme),
        "portfolio.html": _plain(portfolio_page(everyone, champions, returns)),
        "portfolio.json": json.dumps(
            portfolio_document(everyone, champions, returns), indent=1, ensure_ascii=False
        ),
        "portfolio-2026-08.html": _plain(portfolio_page(august, champions, returns)),
    }
    return {name: text if text.endswith("\n") else f"{text}\n" for name, text in found.items()}


def _forms(name: str, statement: Statement) -> dict[str, str]:
    return {
        f"{name}.txt": table_text(statement, 160),
        f"{name}.csv": csv_text(statement),
        f"{name}.json": json_text(statement),
        f"{name}.html": _plain(costs_page(statement)),
    }


def table_text(statement: Statement, width: int) -> str:
    """What a terminal of so many characters shows, without blanks at the ends of lines."""
    out = io.StringIO()
    show_tables(statement, Console(file=out, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _plain(page: str) -> str:
    return re.sub(r"<style>.*?</style>", "<style></style>", page, flags=re.DOTALL)


def read(path: Path) -> str:
    """A golden file with its line ends as they are; empty where there is none."""
    return path.read_bytes().decode() if path.is_file() else ""


def difference(name: str, expected: str, found: str) -> str:
    """A unified diff, empty where they are the same."""
    lines = [text.splitlines(keepends=True) for text in (expected, found)]
    return "".join(difflib.unified_diff(*lines, f"golden/{name}", f"now/{name}", n=2))


def main() -> None:
    """Write the golden files, remove those of no document, and print what changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = documents(Path(scratch))
    for path in FOLDER.iterdir():
        if path.name not in found:
            path.unlink()
            print(f"removed {path.name}")
    for name, text in found.items():
        sys.stdout.write(difference(name, read(FOLDER / name), text))
        (FOLDER / name).write_bytes(text.encode())
    print(f"{len(found)} golden files in {FOLDER.relative_to(made_up.ROOT)}")


if __name__ == "__main__":
    main()
