"""What a graph computes needlessly, taken out before it is lowered."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_SLICE, _CAT = torch.ops.aten.slice.Tensor, torch.ops.aten.cat.default


def without_needless_slices(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed in place, with no slice of joined frames that is one of the joined.

    The middle tap of a convolution over time sees the frames as they were before a first and a
    last one were put beside them. For a runtime both are copies of a layer's whole input.
    """
    for node in list(graph.graph.nodes):
        if node.target is _SLICE and (part := _joined_part(node)) is not None:
            node.replace_all_uses_with(part)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _joined_part(node: fx.Node) -> fx.Node | None:
    """The input of a concatenation that this slice of it is, where it is one."""
    joined, dim, start, end, *step = _arguments(node)
    if not (isinstance(joined, fx.Node) and joined.target is _CAT and step in ([], [1])):
        return None
    parts, *along = joined.args
    assert isinstance(parts, list | tuple)
    if (along or [0]) != [dim]:
        return None
    at, total = 0, joined.meta["val"].shape[dim]
    wanted = (start % total if start < 0 else start, min(end % total if end < 0 else end, total))
    for part in parts:
        assert isinstance(part, fx.Node)
        size = part.meta["val"].shape[dim]
        if wanted == (at, at + size):
            return part
        at += size
    return None


def _arguments(node: fx.Node) -> list[Any]:
    defaults = [None, 0, 0, 2**63 - 1]
    given = list(node.args)
    return given + defaults[len(given) :]
