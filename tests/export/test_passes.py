"""Graphs before they are lowered: what is computed needlessly goes, and nothing else."""

import pytest
import torch
from torch import Tensor, nn

from tests.export.small import SHAPE, small_decoder
from turbo_vaed.export.graph import plain
from turbo_vaed.export.passes import without_needless_slices


def slices(graph: torch.fx.GraphModule) -> int:
    return sum(node.target is torch.ops.aten.slice.Tensor for node in graph.graph.nodes)


@pytest.mark.parametrize(
    ("dim", "start", "end", "left"),
    [
        (0, 1, 4, 0),  # the middle one of the joined
        (0, 4, 9, 0),  # the last one, to a far end
        (0, -4, -1, 0),
        (0, 0, 3, 1),  # of two of them
        (0, 2, 4, 1),
        (1, 1, 4, 1),  # along another dimension
    ],
)
def test_a_slice_that_is_one_of_the_joined_goes(dim, start, end, left):
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole = torch.cat([x[:1] * 2, x, x[-1:] * 3])
            return torch.narrow_copy(whole, 0, 0, 2).sum() + torch.ops.aten.slice.Tensor(
                whole, dim, start, end
            )

    x = torch.randn(3, 5)
    graph = torch.export.export(Joined(), (x,)).module()
    before, expected = slices(graph), graph(x)
    without_needless_slices(graph)
    assert torch.equal(graph(x), expected)
    assert before - slices(graph) == 1 - left


def test_a_decoder_has_fewer_and_computes_the_same():
    latents = torch.randn(SHAPE)
    decoder = plain(small_decoder().requires_grad_(False), SHAPE)
    with torch.no_grad():
        graph = torch.export.export(decoder, (latents,)).module()
        before, expected = slices(graph), graph(latents)
        without_needless_slices(graph)
        assert torch.equal(graph(latents), expected)
    assert slices(graph) < before
