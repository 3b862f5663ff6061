"""A graph that takes its large layers frame by frame, where it took them operation by operation.

Frames are the leading dimension, and all operations but a convolution's taps in time look at one
frame alone. Of all frames at once each operation reads and writes more than a processor's cache
holds; one frame stays there from one operation to the next. The frames around one are then operands
as they are: nothing is copied to shift or join them, and an int8 layer rounds each frame once for
all taps. The price is a larger graph, which takes longer to lower.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from turbo_vaed.export.graph import ExportError

LEAST_BYTES = 4 * 2**20
"""Of a tensor over all frames from which on they go one by one: what no core's cache holds."""

_ATEN = torch.ops.aten
_SLICE, _CAT, _CONV = _ATEN.slice.Tensor, _ATEN.cat.default, _ATEN.conv2d.default
_VIEWS = {_SLICE, _ATEN.reshape.default, _ATEN.permute.default, _ATEN.view.default}
_IN_PLACE = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.sub_.Tensor: _ATEN.sub.Tensor,
    _ATEN.relu_.default: _ATEN.relu.default,
    _ATEN.silu_.default: _ATEN.silu.default,
}
"""What is in place, and the same with a result of its own: the order will be another one."""


def by_frames(graph: fx.GraphModule, least_bytes: int = LEAST_BYTES) -> fx.GraphModule:
    """The same program, where an operation on a large tensor (F, C, H, W) is one for each of F.

    Once begun with, frames stay apart; what does not go by frames gets them joined. The nodes of
    `graph` have their values' shapes in `meta["val"]`. The result has its own order, frame by frame
    as far as the taps in time let it, and is to be exported again.

    Raises:
        ExportError: an operation in place whose operand somebody else reads.
    """
    found = _Frames(graph, least_bytes)
    if not found.pieces:
        return graph
    _require_fresh_operands(graph)
    ordered = _depth_first(found.made)
    ordered.set_codegen(graph.graph._codegen)  # how it is called: with what, for what
    return fx.GraphModule(graph, ordered)


class _Frames:
    """`made`, the graph by frames, and the `pieces` of what was taken apart, if anything was."""

    def __init__(self, graph: fx.GraphModule, least_bytes: int) -> None:
        self.made = fx.Graph()
        self._whole: dict[fx.Node, fx.Node] = {}
        self.pieces: dict[fx.Node, list[fx.Node]] = {}
        self._calls: dict[Any, fx.Node] = {}
        for node in graph.graph.nodes:
            is_wanted = any(one in self.pieces for one in node.all_input_nodes) or (
                _frame_count(node) > 1 and _bytes(node) >= least_bytes
            )
            pieces = self._taken_apart(node) if is_wanted else None
            if pieces is None:
                self._whole[node] = copy = self.made.node_copy(node, self._joined)
                copy.target = _functional(node)
            else:
                self.pieces[node] = pieces

    def _taken_apart(self, node: fx.Node) -> list[fx.Node] | None:
        """What it puts out, frame by frame; None where it does not go by frames."""
        target: Any = node.target
        args: Any = node.args
        if _is_of_one_frame(target):
            return self._each(node)
        if node.kwargs:
            return None
        if target is _CAT:
            parts = [self._apart(part) for part in args[0]]
            return [piece for part in parts for piece in part] if args[1:] in ((), (0,)) else None
        if target not in (_SLICE, _ATEN.reshape.default, _ATEN.permute.default):
            return None
        pieces, shape = self._apart(args[0]), node.meta["val"].shape
        if target is _SLICE:
            start, end, step = [*args[2:], None, None, None][:3]
            is_by_frames = args[1:2] in ((), (0,)) and len(pieces) == len(args[0].meta["val"])
            return pieces[start:end:step] if is_by_frames else None
        if target is _ATEN.permute.default:
            return self._each(node) if args[1][0] == 0 else None
        if shape[0] % len(pieces):
            return None
        several = shape[0] // len(pieces)  # of a shuffle in time a frame becomes several
        made = [self._call(target, (piece, [several, *shape[1:]])) for piece in pieces]
        if several == 1 or len(shape) != 4:
            return made
        return [self._frame(one, k) for one in made for k in range(several)]

    def _each(self, node: fx.Node) -> list[fx.Node] | None:
        """A call for each frame; None where its operands have not the same frames."""
        target, arguments = _functional(node), node.args
        operands = arguments[:1] if target is _CONV else arguments
        nodes = [one for one in operands if isinstance(one, fx.Node)]
        apart = {
            one: self._apart(one)
            for one in nodes
            if one in self.pieces or _frame_count(one) > 1 or _is_rounding(one)
        }
        counts = {len(pieces) for pieces in apart.values()}
        others = [one for one in nodes if one not in apart and one.meta["val"].dim() > 3]
        if len(counts) != 1 or any(len(one.meta["val"]) > 1 for one in others):
            return None
        (count,) = counts

        def of(k: int) -> fx.Node:
            args = fx.map_arg(arguments, lambda n: apart[n][k] if n in apart else self._joined(n))
            return self._call(target, args, node.kwargs)

        return [of(k) for k in range(count)]

    def _apart(self, node: fx.Node) -> list[fx.Node]:
        if node in self.pieces:
            return self.pieces[node]
        if _is_rounding(node):  # with what it rounds, lest a frame be cut out of what is rounded
            rounded = self._each(node)
            assert rounded is not None, f"{node} rounds other than an activation"
            self.pieces[node] = rounded
            return rounded
        whole, count = self._whole[node], node.meta["val"].shape[0]
        return [whole] if count == 1 else [self._frame(whole, k) for k in range(count)]

    def _joined(self, node: fx.Node) -> fx.Node:
        if node in self._whole:
            return self._whole[node]
        pieces = self.pieces[node]
        return pieces[0] if len(pieces) == 1 else self._call(_CAT, (pieces, 0))

    def _frame(self, x: fx.Node, k: int) -> fx.Node:
        return self._call(_SLICE, (x, 0, k, k + 1))

    def _call(self, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        """A call, made once: the taps in time ask for the same of a frame."""
        key = (target, repr(args), repr(kwargs))
        if key not in self._calls:
            self._calls[key] = self.made.call_function(target, tuple(args), kwargs or {})
        return self._calls[key]


def _frame_count(node: fx.Node) -> int:
    """F of an activation (F, C, H, W); 0 of anything else."""
    value = node.meta.get("val")
    is_computed = node.op in ("call_function", "placeholder") and not _is_weights(node)
    return len(value) if is_computed and isinstance(value, Tensor) and value.dim() == 4 else 0


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(value.numel() * value.element_size())


_EACH_ALONE = {
    _CONV,
    _ATEN.mul.Tensor,
    _ATEN.add.Tensor,
    _ATEN.sub.Tensor,
    _ATEN.rsqrt.default,
    _ATEN.silu.default,
    _ATEN.relu.default,
    _ATEN.sigmoid.default,
    _ATEN.to.dtype,
    *_IN_PLACE,
    operator.getitem,
}
_ROUNDING = {
    f"quantized_decomposed.{name}.tensor"
    for name in ("choose_qparams", "quantize_per_tensor", "dequantize_per_tensor")
}
"""By name: they are there once torchao is imported."""


def _is_of_one_frame(target: Any) -> bool:
    return target in _EACH_ALONE or str(target) in _ROUNDING


def _is_weights(node: fx.Node) -> bool:
    return str(node.target) == "quantized_decomposed.dequantize_per_channel.default"


def _functional(node: fx.Node) -> Any:
    """What it calls, or the same that leaves its operands as they are."""
    target: Any = node.target
    return _IN_PLACE.get(target, target)


def _require_fresh_operands(graph: fx.GraphModule) -> None:
    """Each operation in place has a functional form here, and the last word on what it changes."""
    at = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        changed = node.args[0]
        later = [one.name for one in changed.users if at[one] > at[node]]
        seen = [one.name for one in changed.users if one.target in _VIEWS]
        if node.target not in _IN_PLACE or changed.target in _VIEWS or later or seen:
            raise ExportError(
                f"{node} changes {changed} in place, which is a view or is read by "
                f"{', '.join(later + seen) or 'others'}; write it with a result of its own"
            )


def _is_rounding(node: fx.Node) -> bool:
    return str(node.target) in _ROUNDING or node.target is operator.getitem


def _depth_first(graph: fx.Graph) -> fx.Graph:
    """The graph in the order in which its output asks for what it needs."""
    ordered, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    (output,) = (node for node in graph.nodes if node.op == "output")
    wanted = [output, *(node for node in reversed(graph.nodes) if node.op == "placeholder")]
    while wanted:
        node = wanted[-1]
        missing = [one for one in node.all_input_nodes if one not in copies]
        if missing:
            wanted.extend(reversed(missing))
            continue
        wanted.pop()
        if node not in copies:
            copies[node] = ordered.node_copy(node, lambda n: copies[n])
    return ordered
