"""A lowered-to-be decoder with its convolutions in int8, chosen on latents.

Post-training quantisation by PyTorch 2 export (torchao's PT2E) for XNNPACK: weights per channel,
symmetric; activations as they come, each frame with its own range, and sums in float32. Against
ranges fixed beforehand this is faster (outputs are not rounded, and XNNPACK's kernels are better)
and closer. Some layers of a decoder bear no int8: those whose terms nearly cancel each other. Which
they are differs by student, so it is measured: each layer alone in int8, on calibration clips.

Shapes: B batch, C channels, t latent frames, h w latent; T H W video; F frames of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from turbo_vaed.export.sampling import spread_out
from turbo_vaed.runtime.import_noise import quiet_imports, without_treespec_warnings

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_CONV = torch.ops.aten.conv2d.default
_RANKED_ON = 3
"""Clips of the calibration, from its first to its last: one alone may be an easy one."""
MARGIN_DB = 2.0
"""Added to the required parity: other clips come out worse than those of the calibration."""


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
    torch.set_num_threads(1)  # sums over several differ in the last bit, and the ranking with them
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
        with torch.no_grad():
            ranked = spread_out(calibration, _RANKED_ON)
            pairs = [(latents, graph(latents)) for latents in ranked]
        mse_alone = {layer: _mse(graph, pairs, convs) for layer, convs in layers.items()}
        most_mse = mse_from_psnr(least_parity_db + MARGIN_DB)
        kept = kept_in_float(mse_alone, _weights(graph), most_mse=most_mse)
    chosen = {conv for layer, convs in layers.items() if layer not in kept for conv in convs}
    return _convert(exported, calibration[0], lambda name: name in chosen)


def kept_in_float(
    mse_alone: Mapping[str, float], weights: Mapping[str, int], *, most_mse: float
) -> set[str]:
    """Layers whose errors, taken out of the sum of all, leave `most_mse` at most; few weights.

    `mse_alone` has the mean squared error with that layer alone in int8; they are taken for
    independent, so that they add up. `weights` has each layer's number of them.
    """

    def left() -> float:
        return sum(mse for name, mse in mse_alone.items() if name not in kept)

    kept = set[str]()
    for layer in sorted(mse_alone, key=lambda name: -mse_alone[name] / weights[name]):
        if left() <= most_mse:
            break
        kept.add(layer)
    for layer in sorted(kept, key=lambda name: (-weights[name], name)):  # one may do for several
        kept.discard(layer)
        if left() > most_mse:
            kept.add(layer)
    return kept


def mse_from_psnr(psnr_db: float) -> float:
    """The mean squared error of a PSNR over values in [-1, 1], whose range is 2."""
    return 4.0 * 10 ** (-psnr_db / 10)


def _mse(
    graph: fx.GraphModule,
    pairs: Sequence[tuple[Tensor, Tensor]],
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
            return _CONV(_rounded(x), _rounded_weight(weight), *others)

    with torch.no_grad():
        differences = [Simulated(graph).run(latents) - video for latents, video in pairs]
    return max(float(difference.double().square().mean()) for difference in differences)


def _rounded(x: Tensor) -> Tensor:
    """x (F, C, H, W) in 8 bits, zero among them, by the range of each frame."""
    low = x.amin(dim=(1, 2, 3)).clamp_max(0)
    scale = (x.amax(dim=(1, 2, 3)).clamp_min(0) - low).clamp_min(1e-12) / 255
    zero = (-128 - low / scale).round().clamp(-128, 127).int()
    return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -128, 127)


def _rounded_weight(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().amax(dim=(1, 2, 3)).clamp_min(1e-12) / 127
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def _convs(graph: fx.GraphModule) -> list[fx.Node]:
    """The convolutions that may be int8."""
    return [n for n in graph.graph.nodes if n.target is _CONV and not _stays_in_float(n)]


def _stays_in_float(conv: fx.Node) -> bool:
    """Means of norms, whose error is every pixel's, and depthwise ones, which XNNPACK cannot run
    with ranges as they come."""
    weight = conv.args[1]
    assert isinstance(weight, fx.Node)
    outputs, inputs_per_group = weight.meta["val"].shape[:2]
    return 1 in (outputs, inputs_per_group)


def _layers(graph: fx.GraphModule) -> dict[str, set[str]]:
    """The names of the convolutions of each layer, by the layer's path."""
    layers: dict[str, set[str]] = {}
    for node in _convs(graph):
        layers.setdefault(_path(node), set()).add(node.name)
    return layers


def _weights(graph: fx.GraphModule) -> dict[str, int]:
    """The number of weights of each layer, by its path."""
    counts: dict[str, int] = {}
    for node in _convs(graph):
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        counts[_path(node)] = counts.get(_path(node), 0) + weight.meta["val"].numel()
    return counts


def _path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def _convert(
    exported: ExportedProgram, latents: Tensor, is_int8: Callable[[str], bool]
) -> fx.GraphModule:
    with quiet_imports():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # By operator: a module type would name nn.Conv2d, of which there is none in the decoder.
    quantizer = XNNPACKQuantizer().set_operator_type(
        _CONV, get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )
    quantizer.set_filter_function(lambda node: node.target is not _CONV or is_int8(node.name))
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        prepared(latents)  # for the weights' ranges
    converted = convert_pt2e(prepared)
    assert isinstance(converted, fx.GraphModule)
    return converted
