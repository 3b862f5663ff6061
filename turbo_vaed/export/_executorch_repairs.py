"""Five faults of ExecuTorch 1.5's XNNPACK lowering, mended while a program is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from turbo_vaed.runtime.import_noise import quiet_imports


@contextmanager
def mended() -> Iterator[None]:
    """Lower with all of them mended; the library is as it was afterwards."""
    with quiet_imports():
        from executorch.backends.xnnpack._passes import (  # type: ignore[import-untyped, unused-ignore]
            channels_last_tagged_reshape_pass as layout,
        )
        from executorch.backends.xnnpack.operators.node_visitor import (  # type: ignore[import-untyped, unused-ignore]
            NodeVisitor,
        )
        from executorch.backends.xnnpack.partition.graphs import (  # type: ignore[import-untyped, unused-ignore]
            bilinear_2d,
            sdpa,
        )
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # type: ignore[import-untyped, unused-ignore]
            XnnpackPartitioner,
        )

    from turbo_vaed.export._executorch_shuffle import by_one_copy

    passes = layout.ChannelsLastTaggedReshapePass
    with (
        patch.object(NodeVisitor, "define_tensor", _weights_as_they_are(NodeVisitor)),
        patch.object(passes, "input_to_nhwc", _copying_only_input(layout)),
        patch.object(passes, "call", by_one_copy(passes.call)),
        patch.object(XnnpackPartitioner, "generate_partitions", _in_one(XnnpackPartitioner)),
        # To look for attention and bilinear resizing, which a decoder has none of, it lowers six
        # examples of them first: seconds in every process.
        patch.object(bilinear_2d, "get_graphs_dict", dict),
        patch.object(sdpa, "get_graphs", list),
    ):
        yield


def _weights_as_they_are(visitor: Any) -> Any:
    """Convolutions with float16 weights, where ExecuTorch stores them in float32.

    Its serialiser makes every convolution's constants float32, and XNNPACK makes them float16
    again when it loads the program. XNNPACK itself takes both.
    """
    from torch import float16

    define = visitor.define_tensor

    def define_tensor(self: Any, tensor: Any, *args: Any, **kwargs: Any) -> None:
        if tensor.meta["val"].dtype == float16:
            kwargs["force_fp32"] = False
        define(self, tensor, *args, **kwargs)

    return define_tensor


def _copying_only_input(layout: Any) -> Any:
    """The channels-last copy of an int8 convolution's input, of that alone.

    ExecuTorch puts the copy before whatever the input was computed from, as far back as first
    arguments lead, and under all that uses it. Slices that the pass
    has visited by then expect one layout and get the other: the program is written, but does not
    run ("Propagating input shapes failed").
    """
    from torch import channels_last

    passes = layout.ChannelsLastTaggedReshapePass
    convert = passes.input_to_nhwc

    def input_to_nhwc(self: Any, graph: Any, node: Any, target: Any) -> None:
        if not layout.is_dynamic_qdq(node):
            convert(self, graph, node, target)
            return
        quantised = node.args[0]
        source, scale = quantised.args[:2]
        if passes.is_nhwc_node(source):
            return
        with graph.graph.inserting_after(source):
            copy = self.create_call_function_node(
                graph_module=graph,
                target=layout.exir_ops.edge.aten._to_copy.default,
                args=(source,),
                memory_format=channels_last,
            )
        passes.mark_as_nhwc_node(copy)
        for user in (quantised, scale.args[0]):  # the rounding, and the choice of its range
            user.replace_input_with(source, copy)

    return input_to_nhwc


def _in_one(partitioner: Any) -> Any:
    """What XNNPACK takes as one subgraph, where it takes everything.

    ExecuTorch merges groups one by one and looks for cycles through each: where a rounded frame
    goes to several convolutions it finds some, and leaves a subgraph for each layer.
    """
    from torch.fx.passes.infra.partitioner import Partition

    generate = partitioner.generate_partitions

    def generate_partitions(self: Any, program: Any) -> Any:
        taken = [n for group in self.get_matched_nodes_from_configs(program) for n in group]
        calls = {node for node in program.graph.nodes if node.op == "call_function"}
        if calls - set(taken):
            return generate(self, program)
        return [Partition(id=0, nodes=dict.fromkeys(taken))]

    return generate_partitions
