"""Each loss against a second formulation; what they make of a batch together and in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from turbo_vaed.distill.losses import (
    NAMES,
    GradientLoss,
    LpipsLoss,
    MsSsimLoss,
    Weights,
    distillation_losses,
    feature_loss,
    l1,
    perceptual,
)
from turbo_vaed.errors import UserError
from turbo_vaed.metrics import ms_ssim
from turbo_vaed.metrics.lpips import Lpips
from turbo_vaed.models import match_resolution


def videos(*shape: int, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A video and another near it, (B, 3, T, H, W) in [-1, 1]."""
    dice = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=dice) * 2 - 1
    return (target + noise * torch.randn(shape, generator=dice)).clamp(-1, 1), target


@pytest.fixture(scope="module")
def network() -> Lpips:
    """LPIPS of weights that are made up; features keep their size through the layers."""
    dice = torch.Generator().manual_seed(0)
    made = Lpips()
    for name, weight in made.named_parameters():
        if name.startswith("heads"):
            weight.uniform_(0, 5, generator=dice)
        elif weight.dim() > 1:
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=dice)
    return made


@pytest.fixture(scope="module")
def losses(network: Lpips) -> dict[str, nn.Module]:
    made = {name: perceptual(name) for name in NAMES if name != "lpips"}
    return {**made, "lpips": LpipsLoss(network)}


def test_l1_is_the_mean_difference_of_pixels_and_broadcasts_nothing() -> None:
    video, target = videos(2, 3, 3, 4, 5)
    assert l1(video, target).item() == pytest.approx((video - target).abs().mean().item())
    with pytest.raises(ValueError, match=r"found shape \(2, 3, 1, 4, 5\), .*\(2, 3, 3, 4, 5\)"):
        l1(video, target[:, :, :1])


def test_the_gradient_loss_is_that_of_a_numpy_formulation() -> None:
    video, target = (x.numpy() for x in videos(2, 3, 4, 5, 6))
    expected = np.mean(
        [np.abs(np.diff(video, axis=d) - np.diff(target, axis=d)).mean() for d in (2, 3, 4)]
    )
    found = GradientLoss()(torch.tensor(video), torch.tensor(target))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_loss_sees_edges_and_time_and_no_offset() -> None:
    loss, flat = GradientLoss(), torch.zeros(1, 3, 2, 4, 4)
    assert loss(flat + 0.5, flat).item() == 0
    edge = flat.clone()
    edge[..., 2:] = 1
    assert loss(1 - edge, edge).item() > 0  # falls where the other rises
    flash = flat.clone()
    flash[:, :, 1] = 1
    assert loss(flash, flat).item() == pytest.approx(1 / 3)  # one of three directions
    assert loss(edge[:, :, :1], flat[:, :, :1]).item() == pytest.approx(1 / 3 / 2)


@pytest.mark.parametrize("side", [16, 64, 100, 168])
def test_ms_ssim_is_that_of_the_metric(side: int) -> None:
    video, target = videos(2, 3, 2, side, side + 6)
    frames, reference = ((x.transpose(1, 2) + 1) / 2 for x in (video, target))
    expected = 1 - ms_ssim(frames, reference).mean()
    assert 0.01 < expected.item() < 0.9
    assert MsSsimLoss()(video, target).item() == pytest.approx(expected.item(), abs=1e-5)


def test_ms_ssim_has_a_gradient_where_a_scale_is_negative() -> None:
    """The metric is 0 there, and so is its gradient."""
    fine, coarse = (videos(1, 3, 1, side, side)[1] * 0.4 for side in (64, 8))
    coarse = nn.functional.interpolate(coarse, (1, 64, 64), mode="trilinear")
    target, video = coarse + fine, (coarse - fine).requires_grad_(True)
    frames = [(x.detach().transpose(1, 2) + 1) / 2 for x in (video, target)]
    assert ms_ssim(*frames).item() == 0
    before = MsSsimLoss()(video, target)
    (gradient,) = torch.autograd.grad(before, video)
    after = MsSsimLoss()(video.detach() - 0.05 * gradient / gradient.abs().amax(), target)
    assert after.item() < before.item() < 1
    upside_down = (-target).requires_grad_(True)
    (gradient,) = torch.autograd.grad(MsSsimLoss()(upside_down, target), upside_down)
    assert torch.isfinite(gradient).all()


def test_lpips_gets_frames_in_0_to_1_one_by_one(network: Lpips) -> None:
    video, target = videos(2, 3, 2, 16, 20)
    expected = torch.stack(
        [
            network((video[b : b + 1, :, t] + 1) / 2, (target[b : b + 1, :, t] + 1) / 2)
            for b in range(2)
            for t in range(2)
        ]
    ).mean()
    assert LpipsLoss(network)(video, target).item() == pytest.approx(expected.item(), rel=1e-4)
    wrong_range = network(video[:, :, 0], target[:, :, 0]).mean()
    right_range = network((video[:, :, 0] + 1) / 2, (target[:, :, 0] + 1) / 2).mean()
    assert wrong_range.item() != pytest.approx(right_range.item(), rel=0.05)  # it would show


@pytest.mark.parametrize("name", NAMES)
def test_a_perceptual_loss_grows_with_the_error_and_pulls_it_down(
    losses: dict[str, nn.Module], name: str
) -> None:
    loss = losses[name]
    shape = (1, 3, 2, 32, 32)
    target = videos(*shape)[1]
    assert loss(target, target).item() == pytest.approx(0, abs=1e-6)
    near, far = (loss(*videos(*shape, noise=noise)).item() for noise in (0.05, 0.5))
    assert 0 < near < far
    video = videos(*shape)[0].requires_grad_(True)
    before = loss(video, target)
    (gradient,) = torch.autograd.grad(before, video)
    after = loss(video.detach() - 0.02 * gradient / gradient.abs().amax(), target)
    assert after.item() < before.item()
    assert not any(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_values_outside_the_range_have_a_gradient_towards_it_and_nan_stays_nan(
    losses: dict[str, nn.Module], name: str
) -> None:
    _, target = videos(1, 3, 1, 32, 32)
    video = target.clone()
    video[0, :, 0, 16, 16] = 1.6  # a spot of light too bright to be shown
    target[0, :, 0, 16, 16] = 0.2
    video.requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses[name](video, target), video)
    assert gradient[0, :, 0, 16, 16].sum().item() > 0
    assert not torch.isfinite(losses[name](torch.full_like(target, torch.nan), target))


def test_perceptual_losses_are_made_by_name(
    network: Lpips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(perceptual("gradient"), GradientLoss)
    assert isinstance(perceptual("ms-ssim"), MsSsimLoss)
    save_file(network.state_dict(), tmp_path / "lpips.safetensors")
    x, y = videos(1, 3, 1, 16, 16)
    found = perceptual("lpips", tmp_path / "lpips.safetensors")(x, y)
    assert found.item() == pytest.approx(LpipsLoss(network)(x, y).item())
    with pytest.raises(UserError, match=r"none\.safetensors"):
        perceptual("lpips", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="`hub`"):
        perceptual("lpips")
    with pytest.raises(UserError, match="'vgg', allowed: gradient, ms-ssim, lpips"):
        perceptual("vgg")
    monkeypatch.setattr(Lpips, "from_hub", classmethod(lambda _cls: network))
    for hub in ("hub", Path("hub")):
        fetched = perceptual("lpips", hub)
        assert isinstance(fetched, LpipsLoss) and fetched.network is network


def feature_pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projected features as they are, of a quarter and of an eighth of the teacher's positions."""
    torch.manual_seed(0)
    projected = {
        "mid_block": torch.randn(4, 5, 3, 2, 2),
        "up_block_0": torch.randn(4, 4 * 6, 3, 2, 2),
        "up_block_1": torch.randn(4, 8 * 7, 3, 2, 2),
    }
    teacher = {
        "mid_block": torch.randn(4, 5, 3, 2, 2),
        "up_block_0": torch.randn(4, 6, 3, 4, 4),
        "up_block_1": torch.randn(4, 7, 5, 4, 4),
    }
    return projected, teacher


def test_the_feature_loss_is_summed_over_blocks_at_the_teachers_resolution() -> None:
    projected, teacher = feature_pair()
    expected = sum(
        (match_resolution(projected[name], x.shape[1]) - x).square().mean().item()
        for name, x in teacher.items()
    )
    assert feature_loss(projected, teacher).item() == pytest.approx(expected, rel=1e-5)
    half = [{name: x.bfloat16() for name, x in each.items()} for each in (projected, teacher)]
    assert feature_loss(*half).dtype == torch.float32
    exact = {
        name: match_resolution(x, teacher[name].shape[1]).detach() for name, x in projected.items()
    }
    assert feature_loss(projected, exact).item() == 0


def test_features_that_do_not_match_are_refused() -> None:
    projected, teacher = feature_pair()
    cropped = {**teacher, "up_block_0": teacher["up_block_0"][..., :2]}
    with pytest.raises(ValueError, match=r"up_block_0: found \(4, 6, 3, 4, 4\)"):
        feature_loss(projected, cropped)
    with pytest.raises(ValueError, match=r"\['up_block_1'\] .*\['mid_block'"):
        feature_loss({"up_block_1": projected["up_block_1"]}, teacher)
    with pytest.raises(ValueError, match=r"found \[\]"):
        feature_loss({}, {})


ALL = Weights(source=1.0, teacher=0.25, perceptual=0.5, feature=2.0)


def batch_of(count: int) -> dict[str, Any]:
    video, source = videos(count, 3, 2, 16, 16)
    projected, features = feature_pair()
    teacher = (source * 0.9).clone()
    return {
        "video": video,
        "projected": projected,
        "source": source,
        "teacher": teacher,
        "features": features,
    }


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    batch = batch_of(4)
    loss = GradientLoss()
    found = distillation_losses(**batch, weights=ALL, perceptual=loss)
    expected = {
        "source": l1(batch["video"], batch["source"]),
        "teacher": l1(batch["video"], batch["teacher"]),
        "perceptual": loss(batch["video"], batch["source"]),
        "feature": feature_loss(batch["projected"], batch["features"]),
    }
    assert {k: v.item() for k, v in found.parts.items()} == {
        k: v.item() for k, v in expected.items()
    }
    total = sum(getattr(ALL, name) * part.item() for name, part in expected.items())
    assert found.total.item() == pytest.approx(total)
    half = distillation_losses(**{**batch, "video": batch["video"].bfloat16()}, weights=ALL)
    assert half.total.dtype == torch.float32
    assert list(half.parts) == ["source", "teacher", "feature"]  # no perceptual loss was given


def test_a_part_without_weight_is_not_computed() -> None:
    def fail(*_arguments: object) -> Tensor:
        raise AssertionError("computed for nothing")

    silent = nn.Module()
    silent.forward = fail  # type: ignore[assignment]
    batch = {**batch_of(1), "projected": {}, "features": {}, "teacher": None}
    weights = Weights(source=1.0, teacher=0.0, perceptual=0.0, feature=0.0)
    found = distillation_losses(**batch, weights=weights, perceptual=silent)
    assert list(found.parts) == ["source"]


def test_a_weight_without_its_inputs_is_refused() -> None:
    bare = {**batch_of(1), "projected": {}, "features": {}, "teacher": None}
    for weights, at_fault in (
        (Weights(source=1.0, teacher=1.0, perceptual=0.0, feature=0.0), "teacher"),
        (Weights(source=1.0, teacher=0.0, perceptual=0.0, feature=1.0), "features"),
        (Weights(source=0.0, teacher=0.0, perceptual=1.0, feature=0.0), "weights"),
    ):
        with pytest.raises(ValueError, match=f"^{at_fault}: found"):
            distillation_losses(**bare, weights=weights)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"feature: found {wrong}"):
            Weights(source=1.0, teacher=0.0, perceptual=0.0, feature=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_add_up_to_the_whole(losses: dict[str, nn.Module], name: str) -> None:
    """Losses and their gradients, of 4 clips and of 3 and 1 of them."""
    batch = batch_of(4)

    def run(clips: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        video = batch["video"][clips].clone().requires_grad_(True)
        projected = {
            k: v[clips].clone().requires_grad_(True) for k, v in batch["projected"].items()
        }
        found = distillation_losses(
            video,
            projected,
            source=batch["source"][clips],
            teacher=batch["teacher"][clips],
            features={k: v[clips] for k, v in batch["features"].items()},
            weights=ALL,
            perceptual=losses[name],
        )
        share = video.shape[0] / 4
        gradients = torch.autograd.grad(share * found.total, [video, *projected.values()])
        return share * torch.stack([found.total, *found.parts.values()]), gradients

    whole, gradients = run(slice(0, 4))
    (first, some), (second, rest) = run(slice(0, 3)), run(slice(3, 4))
    torch.testing.assert_close(first + second, whole, rtol=1e-5, atol=1e-6)
    for one, a, b in zip(gradients, some, rest, strict=True):
        torch.testing.assert_close(torch.cat([a, b]), one, rtol=1e-4, atol=1e-6)
