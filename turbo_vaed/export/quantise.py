"""A lowered-to-be decoder with its convolutions in int8, calibrated on latents.

Post-training quantisation by PyTorch 2 export (torchao's PT2E) for XNNPACK: weights per channel,
symmetric; activations per tensor, their range from the calibration. Some layers of a decoder
bear no int8: those whose terms nearly cancel each other, such as the last ones. Which they are
differs by student, so it is measured: each layer alone in int8, on calibration clips.

Shapes: B batch, C channels, t latent frames, h w latent; T H W video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from turbo_vaed.quiet import quiet_imports, without_treespec_warnings

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_CONV = torch.ops.aten.conv2d.default
_RANKED_ON = 3
"""Clips of the calibration: one alone may be an easy one."""
MARGIN_DB = 2.0
"""More than is asked: other clips are worse than those of the calibration."""
Ranges = Mapping[str, tuple[float, float]]
"""The least and the largest value of a node's output over the calibration, by its name."""


def quantised(
    exported: ExportedProgram, calibration: Sequence[Tensor], *, least_parity_db: float | None
) -> fx.GraphModule:
    """The program with as many layers in int8 as `least_parity_db` leaves, or all.

    Args:
        exported: of the decoder in 2-D form, float32.
        calibration: latents (B, C, t, h, w) of its shape, one clip at least.
        least_parity_db: PSNR of its video against the float program's, both in [-1, 1].

    Raises:
        ValueError: there is no calibration clip.
    """
    if not calibration:
        raise ValueError("calibration: found no clip, int8 needs one or more")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several differ in the last bit, and the ranges with them
    try:
        with without_treespec_warnings():
            return _quantised(exported, calibration, least_parity_db)
    finally:
        torch.set_num_threads(threads)


def _quantised(
    exported: ExportedProgram, calibration: Sequence[Tensor], least_parity_db: float | None
) -> fx.GraphModule:
    graph = exported.module()
    assert isinstance(graph, fx.GraphModule)
    layers = _layers(graph)
    kept: set[str] = set()
    if least_parity_db is not None:
        ranges = observe(graph, calibration)
        with torch.no_grad():
            pairs = [(latents, graph(latents)) for latents in calibration[:_RANKED_ON]]
        alone = {layer: _mse(graph, pairs, ranges, convs) for layer, convs in layers.items()}
        kept = kept_in_float(alone, most_mse=mse_from_psnr(least_parity_db + MARGIN_DB))
    chosen = {conv for layer, convs in layers.items() if layer not in kept for conv in convs}
    return _convert(exported, calibration, lambda name: name in chosen)


def kept_in_float(alone: Mapping[str, float], *, most_mse: float) -> set[str]:
    """The fewest layers whose errors, taken out of the sum of all, leave `most_mse` at most.

    `alone` has the mean squared error with that layer alone in int8; they are taken for
    independent, so that they add up.
    """
    left, kept = sum(alone.values()), set[str]()
    for layer in sorted(alone, key=lambda name: -alone[name]):
        if left <= most_mse:
            break
        kept.add(layer)
        left = sum(mse for name, mse in alone.items() if name not in kept)
    return kept


def mse_from_psnr(psnr_db: float) -> float:
    """The mean squared error of a PSNR over values in [-1, 1], whose range is 2."""
    return 4.0 * 10 ** (-psnr_db / 10)


def observe(graph: fx.GraphModule, calibration: Iterable[Tensor]) -> Ranges:
    """The ranges of what convolutions take and give over the calibration."""
    seen: dict[str, tuple[float, float]] = {}
    wanted = {n.name for conv in _convs(graph) for n in (conv, conv.args[0])}  # type: ignore[union-attr]

    class Observer(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            out = super().run_node(node)
            if node.name in wanted:
                low, high = (float(x) for x in out.aminmax())
                before = seen.get(node.name, (0.0, 0.0))  # zero is always exact
                seen[node.name] = (min(low, before[0]), max(high, before[1]))
            return out

    with torch.no_grad():
        for latents in calibration:
            Observer(graph).run(latents)
    return seen


def _mse(
    graph: fx.GraphModule,
    pairs: Sequence[tuple[Tensor, Tensor]],
    ranges: Ranges,
    convs: set[str],
) -> float:
    """The error with only these convolutions in int8, simulated in float32, of the worst clip.

    `pairs` are latents and the float program's video.
    """

    class Simulated(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            if node.name not in convs:
                return super().run_node(node)
            x, weight, *others = (self.map_nodes_to_values(a, node) for a in node.args)
            assert isinstance(x, Tensor) and isinstance(weight, Tensor)
            given = node.args[0]
            assert isinstance(given, fx.Node)
            x = _rounded(x, *ranges[given.name])
            y: Tensor = _CONV(x, _rounded_weight(weight), *others)
            return _rounded(y, *ranges[node.name])

    with torch.no_grad():
        differences = [Simulated(graph).run(latents) - video for latents, video in pairs]
    return max(float(difference.double().square().mean()) for difference in differences)


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    scale = max(high - low, 1e-12) / 255
    zero = min(max(round(-128 - low / scale), -128), 127)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


def _rounded_weight(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().amax(dim=(1, 2, 3)).clamp_min(1e-12) / 127
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def _convs(graph: fx.GraphModule) -> list[fx.Node]:
    """The convolutions that may be int8.

    Not the means of norms, whose error is every pixel's. Nor the patch upsamplers: XNNPACK as of
    ExecuTorch 1.5.1 does not run an int8 convolution whose output is reshaped at once.
    """
    return [
        node
        for node in graph.graph.nodes
        if node.target is _CONV and not _stays_in_float(_path(node))
    ]


def _stays_in_float(path: str) -> bool:
    last = path.rpartition(".")[2]
    return last in ("mean", "variance") or last.startswith("upsampler2d_")


def _layers(graph: fx.GraphModule) -> dict[str, set[str]]:
    """The names of the convolutions of each layer, by the layer's path."""
    layers: dict[str, set[str]] = {}
    for node in _convs(graph):
        layers.setdefault(_path(node), set()).add(node.name)
    return layers


def _path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def _convert(
    exported: ExportedProgram, calibration: Sequence[Tensor], is_int8: Callable[[str], bool]
) -> fx.GraphModule:
    with quiet_imports():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # By operator: a module type would name nn.Conv2d, of which there is none in the decoder.
    quantizer = XNNPACKQuantizer().set_operator_type(
        _CONV, get_symmetric_quantization_config(is_per_channel=True)
    )
    quantizer.set_filter_function(lambda node: node.target is not _CONV or is_int8(node.name))
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        for latents in calibration:
            prepared(latents)
    converted = convert_pt2e(prepared)
    assert isinstance(converted, fx.GraphModule)
    return converted
