"""Muon against its definition by singular values, and against PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from turbo_vaed.distill.optimizer import Optimizer, is_matrix, orthogonal


def published(singular: torch.Tensor) -> torch.Tensor:
    """What Jordan's iterations make of singular values."""
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        singular = a * singular + b * singular**3 + c * singular**5
    return singular


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (5, 5)])
def test_orthogonal_is_the_published_polynomial_of_the_singular_values(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    expected = u @ torch.diag_embed(published(s / s.norm(dim=1, keepdim=True))) @ vh
    torch.testing.assert_close(orthogonal([x])[0].double(), expected, atol=1e-4, rtol=1e-4)


def test_orthogonal_of_zero_is_zero() -> None:
    assert not orthogonal([torch.zeros(1, 4, 8)])[0].any()


def test_matrices_of_one_size_are_orthogonalised_independently() -> None:
    torch.manual_seed(0)
    every = [torch.randn(2, 4, 9), torch.randn(1, 5, 6), torch.randn(1, 12, 4)]
    for together, given in zip(orthogonal(every), every, strict=True):
        for one, alone in zip(together, given, strict=True):
            torch.testing.assert_close(one, orthogonal([alone[None]])[0][0])


def test_a_wide_layer_is_orthogonalised_in_blocks_of_its_rows() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(96, 100))
    weight.grad = torch.randn(96, 100)
    bias = nn.Parameter(torch.zeros(1))
    bias.grad = torch.zeros(1)
    optimizer = Optimizer([weight, bias], kind="muon", betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.step(1.0)
    for rows in (slice(48), slice(48, 96)):
        (expected,) = orthogonal([weight.grad[None, rows]])
        torch.testing.assert_close(weight.detach()[rows], -0.2 * 10 * expected[0])


def test_rows_that_do_not_divide_fill_their_blocks() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(131, 200))
    weight.grad = torch.randn(131, 200)
    bias = nn.Parameter(torch.zeros(1))
    bias.grad = torch.zeros(1)
    Optimizer([weight, bias], kind="muon", betas=(0.9, 0.95), weight_decay=0.0).step(1.0)
    for rows in (slice(44), slice(44, 88), slice(88, 131)):
        (expected,) = orthogonal([weight.grad[None, rows]])
        torch.testing.assert_close(weight.detach()[rows], -0.2 * 200**0.5 * expected[0])


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv3d(4, 8, 3), nn.Conv3d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.Conv3d(8, 8, 1)
    )


def steps(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 4, 5, 8, 8)).square().mean().backward()
        optimizer.step(1e-3)


def test_matrices_take_the_steps_of_pytorchs_muon_and_the_rest_those_of_adamw() -> None:
    ours, theirs = network(), network()
    optimizer = Optimizer(ours.parameters(), kind="muon", betas=(0.9, 0.95), weight_decay=0.1)
    every = list(theirs.parameters())
    flat = [nn.Parameter(p.detach().flatten(1)) for p in every if is_matrix(p)]
    rest = [p for p in every if not is_matrix(p)]
    assert [tuple(p.shape) for p in flat] == [(8, 4 * 27), (8, 8)]
    muon = torch.optim.Muon(flat, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(4):
        steps(ours, optimizer, step, step + 1)
        torch.manual_seed(step)
        theirs.zero_grad()
        theirs(torch.randn(2, 4, 5, 8, 8)).square().mean().backward()
        for matrix, parameter in zip(flat, [p for p in every if is_matrix(p)], strict=True):
            assert parameter.grad is not None
            matrix.grad = parameter.grad.flatten(1)
        muon.step()
        adamw.step()
        with torch.no_grad():
            for matrix, parameter in zip(flat, [p for p in every if is_matrix(p)], strict=True):
                parameter.copy_(matrix.reshape(parameter.shape))
    for a, b, start in zip(ours.parameters(), every, network().parameters(), strict=True):
        # PyTorch's iterates in bfloat16; 3 % of what the weights have moved.
        assert (a - b).norm() <= 0.03 * (b - start).norm() + 1e-7


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_resumed_optimizer_continues_bit_for_bit(kind: str) -> None:
    def made(model: nn.Module) -> Optimizer:
        return Optimizer(model.parameters(), kind=kind, betas=(0.9, 0.95), weight_decay=0.1)  # type: ignore[arg-type]

    whole = network()
    steps(whole, made(whole), 0, 4)
    first = network()
    optimizer = made(first)
    steps(first, optimizer, 0, 2)
    state, resumed = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(first)
    again = made(resumed)
    again.load_state_dict(state)
    steps(resumed, again, 2, 4)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_adamw_alone_is_pytorchs() -> None:
    ours, theirs = network(), network()
    steps(
        ours, Optimizer(ours.parameters(), kind="adamw", betas=(0.9, 0.95), weight_decay=0.1), 0, 3
    )
    adamw = torch.optim.AdamW(
        theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    for step in range(3):
        torch.manual_seed(step)
        adamw.zero_grad()
        theirs(torch.randn(2, 4, 5, 8, 8)).square().mean().backward()
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
