"""Large layers frame by frame: the same numbers, one convolution for each frame, nothing joined."""

import pytest
import torch
from torch import Tensor, nn

from tests.export.small import SHAPE, short_decoder, small_decoder
from turbo_vaed.export.by_frames import by_frames
from turbo_vaed.export.executorch import export_xnnpack
from turbo_vaed.export.graph import ExportError, plain
from turbo_vaed.export.passes import without_needless_slices, without_steps
from turbo_vaed.export.quantise import quantised

pytestmark = pytest.mark.slow

WIDE = (64, 96)
"""Of which Winograd's form is made."""
ATEN = torch.ops.aten
CONV, CAT, SLICE = ATEN.conv2d.default, ATEN.cat.default, ATEN.slice.Tensor


def graph_of(module: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    with torch.no_grad():
        return torch.export.export(module, (x,)).module()


def calls(graph: torch.fx.GraphModule, target: object) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.target is target]


@pytest.mark.parametrize(
    ("form", "batch", "least_bytes"),
    [("taps", 1, 1), ("taps", 2, 1), ("taps", 1, 20_000), ("winograd", 1, 1)],
)
def test_a_decoder_computes_the_same_by_frames(form, batch, least_bytes):
    shape = (batch, *SHAPE[1:])
    decoder = plain(small_decoder(WIDE).requires_grad_(False), shape, form=form)
    assert {len(m.folded) for m in decoder.modules() if hasattr(m, "taps")} >= (
        {5} if form == "winograd" else {4}
    )
    latents = torch.randn(shape)
    graph = without_needless_slices(without_steps(graph_of(decoder, latents)))
    frames = by_frames(graph, least_bytes=least_bytes)
    with torch.no_grad():
        torch.testing.assert_close(frames(latents), graph(latents), rtol=1e-4, atol=1e-4)
    assert len(calls(frames, CONV)) > len(calls(graph, CONV))
    if batch == least_bytes == 1:
        assert len(calls(frames, CAT)) == 1, "the video alone is joined"


def test_small_tensors_stay_as_they_are():
    decoder, latents = plain(small_decoder().requires_grad_(False), SHAPE), torch.randn(SHAPE)
    graph = graph_of(decoder, latents)
    assert by_frames(graph) is graph


def test_decoding_by_frames_begins_at_the_first_large_tensor():
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(x)
            return torch.sigmoid(torch.cat([x, x], dim=1).mul(2.0))

    x = torch.randn(3, 4, 8, 8)
    graph = graph_of(Grows(), x)
    frames = by_frames(graph, least_bytes=2 * x.numel() * 4)
    assert len(calls(frames, ATEN.relu.default)) == 1, "it is small"
    assert len(calls(frames, ATEN.sigmoid.default)) == len(x)
    assert torch.equal(frames(x), graph(x))


def test_each_frames_taps_are_computed_once_with_the_same_rounding():
    decoder, latents = plain(small_decoder().requires_grad_(False), SHAPE), torch.randn(SHAPE)
    graph = without_needless_slices(graph_of(decoder, latents))
    exported = torch.export.export(graph, (latents,))
    graph = quantised(exported, [latents], least_parity_db=None)
    graph = torch.export.export(graph, (latents,)).module()
    frames = by_frames(graph, least_bytes=1)
    name = "quantized_decomposed.quantize_per_tensor.tensor"
    rounded = [node.args[0] for node in frames.graph.nodes if str(node.target) == name]
    with_int8 = [n for n in calls(frames, CONV) if "dequantize" in str(n.args[0].target)]
    assert len(set(rounded)) == len(rounded) < len(with_int8)
    inputs = [str(n.args) for n in calls(frames, CONV)]
    assert len(inputs) == len(set(inputs)), "no convolution twice"


def test_an_operation_in_place_changes_nothing_that_is_read_later():
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            first = y.mul(3.0)
            return torch.cat([y.relu_(), first])  # in the new order the first to be computed

    x = torch.randn(4, 3, 2, 2)
    graph = graph_of(InPlace(), x)
    expected = graph(x.clone())
    assert torch.equal(by_frames(graph, least_bytes=1)(x.clone()), expected)


@pytest.mark.parametrize("kind", ["read later", "a view", "of which there is a view"])
def test_a_tensor_with_another_reader_is_not_changed_in_place(kind):
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            if kind == "read later":
                return torch.cat([y.relu_(), torch.ops.aten.sigmoid(y)])
            part = y[:2]
            if kind == "a view":
                part.relu_()
                return torch.cat([part, y])
            return torch.cat([y.relu_(), part])

    graph = graph_of(InPlace(), torch.randn(4, 3, 2, 2))
    relu = next(n for n in graph.graph.nodes if n.target is ATEN.relu_.default)
    for user in list(graph.graph.nodes):  # as a pass may leave it: of the operand, not the result
        if user.target is ATEN.sigmoid.default:
            user.replace_input_with(relu, relu.args[0])
    with pytest.raises(ExportError, match="in place"):
        by_frames(graph, least_bytes=1)


def test_the_frames_of_the_output_come_one_after_another():
    """So that a frame is still in the cache when the next layer takes it."""

    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.sigmoid(x)
            return x

    frames = by_frames(graph_of(Long(), torch.randn(2, 3, 4, 4)), least_bytes=1)
    order = [n.target for n in frames.graph.nodes if n.op == "call_function"]
    sigmoid = ATEN.sigmoid.default
    assert order == [SLICE, *[sigmoid] * 3, SLICE, *[sigmoid] * 3, CAT]


@pytest.mark.nightly  # in test_precisions.py int8 is, which has all operations of these
@pytest.mark.parametrize(("precision", "most_mse"), [("fp32", 1e-9), ("fp16", 1e-4)])
def test_a_program_by_frames_is_one_subgraph_and_runs(precision, most_mse, tmp_path, monkeypatch):
    from turbo_vaed.devices._runtimes import open_program
    from turbo_vaed.export import by_frames as module

    added = []

    def watched(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
        frames = by_frames(graph, 4000)
        added.append(len(calls(frames, CONV)) - len(calls(graph, CONV)))
        return frames

    monkeypatch.setattr(module, "by_frames", watched)
    decoder, latents = short_decoder(12), torch.randn(SHAPE)
    path = export_xnnpack(
        decoder, latent_shape=SHAPE, folder=tmp_path, precision=precision, calibration=[latents]
    )
    video = torch.from_numpy(open_program("executorch-xnnpack", path, 1)(latents.numpy()))
    with torch.no_grad():
        expected = decoder(latents)
    assert sum(added) > 0
    assert (video - expected).square().mean() < most_mse * expected.square().mean()
