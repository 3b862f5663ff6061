"""Graphs before they are lowered: what is computed needlessly taken out, and what XNNPACK does not
take as it stands put in other words."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_SLICE, _CAT = torch.ops.aten.slice.Tensor, torch.ops.aten.cat.default


def without_steps(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed in place, with no slice that has a step: XNNPACK cuts without. Each is
    joined of slices of one."""
    for node in list(graph.graph.nodes):
        if node.target is not _SLICE or (wanted := range(*_bounds(node))).step == 1:
            continue
        whole, dim = _args(node)[0], _dim_of(node)
        with graph.graph.inserting_before(node):
            parts = [_call(graph.graph, _SLICE, node, (whole, dim, k, k + 1)) for k in wanted]
            one = parts[0] if len(parts) == 1 else _call(graph.graph, _CAT, node, (parts, dim))
        node.replace_all_uses_with(one)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def without_needless_slices(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed in place, where a slice of joined frames that lies within one of the
    joined is a slice of that, or that itself.

    Most taps of a convolution over time see frames as they were before a first and a last one were
    put next to them. For a runtime each of the two is a copy of a layer's whole input.
    """
    for node in list(graph.graph.nodes):
        if node.target is _SLICE and (found := _within_a_part(node)) is not None:
            part, start, end = found
            if start or end < part.meta["val"].shape[_dim_of(node)]:
                with graph.graph.inserting_before(node):
                    part = _call(graph.graph, _SLICE, node, (part, _dim_of(node), start, end))
            node.replace_all_uses_with(part)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _call(graph: fx.Graph, target: Any, of: fx.Node, arguments: tuple[Any, ...]) -> fx.Node:
    """A call that stands for a part of node `of`."""
    made = graph.call_function(target, arguments)
    made.meta["nn_module_stack"] = of.meta.get("nn_module_stack")
    made.meta["val"] = target(*fx.map_arg(arguments, lambda node: node.meta["val"]))
    return made


def _within_a_part(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The one of the joined that this slice of them lies in, and from where to where there."""
    joined, (start, end, step) = _args(node)[0], _bounds(node)
    if not (isinstance(joined, fx.Node) and joined.target is _CAT and step == 1):
        return None
    parts, dim = _args(joined)[0], _dim_of(joined)
    if dim != _dim_of(node):
        return None
    at = 0
    for part in parts:
        assert isinstance(part, fx.Node)
        size = part.meta["val"].shape[dim]
        if at <= start and end <= at + size:
            return part, start - at, end - at
        at += size
    return None


def _args(node: fx.Node) -> tuple[Any, ...]:
    """Of any type: on the recursive one that torch gives them mypy takes five minutes."""
    return node.args


def _dim_of(node: fx.Node) -> int:
    """Along which a slice cuts or a concatenation joins."""
    given = _args(node)
    dim = given[1] if len(given) > 1 else 0
    assert isinstance(dim, int)
    return dim


def _bounds(node: fx.Node) -> tuple[int, int, int]:
    """(start, end, step) of a slice, within what it cuts."""
    whole, _, *bounds = (*_args(node), None, None, None, None)
    start, end, step = bounds[:3]
    assert isinstance(whole, fx.Node)
    return slice(start, end, step).indices(whole.meta["val"].shape[_dim_of(node)])
