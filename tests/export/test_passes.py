"""Graphs before they are lowered: what is computed needlessly goes, what XNNPACK does not take is
put in other words, and nothing else changes."""

import pytest
import torch
from torch import Tensor, nn

from tests.export.small import SHAPE, small_decoder
from turbo_vaed.export.graph import plain
from turbo_vaed.export.passes import without_needless_slices, without_steps
from turbo_vaed.models import layers
from turbo_vaed.models.timeline import Whole

pytestmark = pytest.mark.slow
SLICE = torch.ops.aten.slice.Tensor


def slices(graph: torch.fx.GraphModule) -> int:
    return sum(node.target is SLICE for node in graph.graph.nodes)


@pytest.mark.parametrize(
    ("dim", "bounds", "of"),
    [
        (0, (1, 4), "x"),  # the middle one of the joined
        (0, (4, 9), "mul_1"),  # the last one, to a far end
        (0, (4,), "mul_1"),  # without an end
        (0, (-4, -1), "x"),
        (0, (2, 4), "slice of x"),
        (0, (0, 3), "slice of cat"),  # of two of them
        (1, (1, 4), "slice of cat"),  # along another dimension
    ],
)
def test_a_slice_of_a_concatenation_becomes_one_of_the_tensor_it_lies_in(dim, bounds, of):
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole = torch.cat([x[:1] * 2, x, x[-1:] * 3])
            return torch.neg(torch.ops.aten.slice.Tensor(whole, dim, *bounds))

    x = torch.randn(3, 5)
    graph = torch.export.export(Joined(), (x,)).module()
    expected = graph(x)
    without_needless_slices(graph)
    assert torch.equal(graph(x), expected)
    (used,) = (n.args[0] for n in graph.graph.nodes if n.target is torch.ops.aten.neg.default)
    assert (f"slice of {used.args[0].name}" if used.target is SLICE else used.name) == of


def test_a_decoder_has_fewer_slices_and_computes_the_same():
    latents = torch.randn(SHAPE)
    decoder = plain(small_decoder().requires_grad_(False), SHAPE)
    with torch.no_grad():
        graph = torch.export.export(decoder, (latents,)).module()
        before, expected = slices(graph), graph(latents)
        without_needless_slices(graph)
        assert torch.equal(graph(latents), expected)
    assert slices(graph) < before


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9])
def test_interleaved_frames_are_cut_without_steps(frames):
    """By a wide convolution in Winograd's form, which takes every second frame."""
    conv = layers.FrameConv(layers.MIN_WINOGRAD_CHANNELS, 2).requires_grad_(False)
    layers.fold(conv, "winograd", torch.contiguous_format)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x, Whole(1))
            return out

    x = torch.randn(frames, layers.MIN_WINOGRAD_CHANNELS, 4, 4)
    with torch.no_grad():
        graph = without_steps(torch.export.export(Layer(), (x,)).module())
        assert torch.equal(graph(x), Layer()(x))
    assert not [n for n in graph.graph.nodes if n.target is SLICE and len(n.args) > 4]
    # In place on a slice would be a scatter, which XNNPACK has not.
    assert "scatter" not in str(torch.export.export(graph, (x,)).run_decompositions().graph)
