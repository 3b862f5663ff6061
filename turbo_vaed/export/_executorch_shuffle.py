"""Channels to frames, rows and columns (`models.layers.shuffle`) by one copy while XNNPACK lowers.

What a convolution puts out lies channels last in memory. ExecuTorch 1.5 turns it around for a
reshape, carries it out channels first, and turns it back for every use: four copies or more.
Between its layout pass's beginning and end a shuffle is one operation here, which that pass takes
for one of any layout; then it becomes what memory needs of it.

Shapes: N frames, r of time and u of space, C channels, H W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from turbo_vaed.export.graph import ExportError
from turbo_vaed.runtime.import_noise import quiet_imports

_NHWC = "XNN_NHWC_NODE"
_FIRST = [0, 3, 4, 1, 5, 2]
"""How `models.layers.shuffle` permutes (N*r, u, u, C, H, W) where memory is channels first."""
_LAST = [0, 3, 1, 4, 2, 5]
"""(N, H, W, r, u, u*C) becomes (N, r, H, u, W, u*C)."""


@torch.library.custom_op("turbo_vaed::shuffle", mutates_args=())
def _shuffle(x: Tensor, u: int, r: int) -> Tensor:
    """(N, r*u*u*C, H, W) -> (N*r, C, u*H, u*W); never run, it has a shape alone."""
    raise NotImplementedError


@_shuffle.register_fake
def _(x: Tensor, u: int, r: int) -> Tensor:
    n, channels, height, width = x.shape
    return x.new_empty(n * r, channels // (r * u * u), u * height, u * width)


def by_one_copy(lay_out: Callable[[Any, fx.GraphModule], Any]) -> Callable[..., Any]:
    """ExecuTorch's layout pass `lay_out`, with shuffles as one copy each."""

    def call(self: Any, module: fx.GraphModule) -> Any:
        with quiet_imports():
            from executorch.exir.dialects._ops import ops  # type: ignore[import-untyped, unused-ignore]

        edge = ops.edge
        for node in list(module.graph.nodes):
            if node.target is edge.aten.permute_copy.default and (found := _folded(node, edge)):
                x, u, r, last = found
                with module.graph.inserting_before(last):
                    one = module.graph.call_function(edge.turbo_vaed.shuffle.default, (x, u, r))
                one.meta = {key: last.meta[key] for key in last.meta if key != _NHWC}
                last.replace_all_uses_with(one)
        module.graph.eliminate_dead_code()
        result = lay_out(self, module)
        module = result.graph_module
        for node in list(module.graph.nodes):
            if node.target is edge.turbo_vaed.shuffle.default:
                _unfold(module.graph, node, edge)
        module.recompile()
        return result

    return call


def _folded(permute: fx.Node, edge: Any) -> tuple[fx.Node, int, int, fx.Node] | None:
    """What is shuffled, by which u and r, and the node that has it; None: it is no shuffle."""
    split, users = permute.args[0], list(permute.users)
    assert isinstance(split, fx.Node)
    view = edge.aten.view_copy.default
    if list(permute.args[1]) != _FIRST or split.target is not view:  # type: ignore[arg-type]
        return None
    if len(split.users) != 1 or len(users) != 1 or users[0].target is not view:
        return None
    x, last = split.args[0], users[0]
    assert isinstance(x, fx.Node)
    frames, u, same, channels, height, width = split.meta["val"].shape
    if u != same or x.meta["val"].dim() != 4:
        return None
    n, joined, *size = x.meta["val"].shape
    r = frames // n
    expected = (frames, channels, u * height, u * width)
    if size != [height, width] or joined != r * u * u * channels:
        return None
    return (x, u, r, last) if tuple(last.meta["val"].shape) == expected else None


def _unfold(graph: fx.Graph, node: fx.Node, edge: Any) -> None:
    """A shuffle as reshape, copy, reshape of what lies in memory."""
    x, u, r = node.args
    assert isinstance(x, fx.Node) and isinstance(u, int) and isinstance(r, int)
    if not (x.meta.get(_NHWC) and node.meta.get(_NHWC)):
        raise ExportError(f"{x} lies channels first in memory; expected a convolution's output")
    n, channels, height, width = x.meta["val"].shape
    view, permute = edge.aten.view_copy.default, edge.aten.permute_copy.default
    with graph.inserting_before(node):
        split = _call(graph, view, x, [n, height, width, r, u, channels // (r * u)])
        turned = _call(graph, permute, split, _LAST)
        last = _call(graph, view, turned, list(node.meta["val"].shape))
    last.meta[_NHWC] = True
    node.replace_all_uses_with(last)
    graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, x: fx.Node, argument: list[int]) -> fx.Node:
    made = graph.call_function(target, (x, argument))
    made.meta["val"] = target(x.meta["val"], argument)
    return made
