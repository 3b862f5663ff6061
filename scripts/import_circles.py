"""The import-linter contract "no circle of modules"; pyproject.toml names it.

Unlike import-linter's own `acyclic_siblings` it looks at modules, not at packages, and it counts
every import: under TYPE_CHECKING and inside functions, too.
"""

from __future__ import annotations

import itertools
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class NoCircles(Contract):
    """No module imports itself, directly or through others."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        circles = []
        for module in sorted(graph.modules):
            while circle := _circle_through(graph, module):
                circles.append([_described(graph, *link) for link in circle])
                graph.remove_import(importer=circle[-1][0], imported=circle[-1][1])
        return ContractCheck(kept=not circles, metadata={"circles": circles})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for circle in check.metadata["circles"]:
            output.print_error("A circle of imports:", bold=True)
            for link in circle:
                output.indent_cursor()
                output.print_error(link, bold=False)
            output.new_line()


def _circle_through(graph: ImportGraph, module: str) -> list[tuple[str, str]]:
    """The (importer, imported) pairs of a shortest circle through a module; empty for none."""
    chains: list[Any] = [
        chain
        for imported in graph.find_modules_directly_imported_by(module)
        if imported in graph.modules
        if (chain := graph.find_shortest_chain(imported, module))
    ]
    if not chains:
        return []
    chain = (module, *min(chains, key=lambda one: (len(one), one)))
    return list(itertools.pairwise(chain))


def _described(graph: ImportGraph, importer: str, imported: str) -> str:
    lines = {
        str(detail["line_number"])
        for detail in graph.get_import_details(importer=importer, imported=imported)
    }
    return f"{importer} -> {imported} (line {', '.join(sorted(lines))})"
