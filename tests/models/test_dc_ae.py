"""Video DC-AE against numbers recorded from the published one, its config and its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from turbo_vaed.models.dc_ae import PUBLISHED, DcAe, DcAeConfig, check_weights
from turbo_vaed.models.dc_ae.layers import RmsNorm
from turbo_vaed.models.dc_ae.network import LinearAttention

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dc-ae-teacher-small.safetensors"
SMALL = {"latent_channels": 16, "width_list": [8, 8, 16, 32, 32, 32], "depth": 1}


@pytest.fixture(scope="module")
def golden() -> tuple[DcAe, dict[str, Tensor]]:
    """The network with the recorded weights, and the recorded tensors."""
    with safe_open(GOLDEN, framework="pt") as file:
        config = DcAeConfig.from_published(json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return DcAe.from_weights(config, weights).eval().requires_grad_(False), tensors


def test_reproduces_the_published_encoder_and_decoder(
    golden: tuple[DcAe, dict[str, Tensor]],
) -> None:
    network, tensors = golden
    latents, video = network.encode(tensors["video"]), network.decode(tensors["latents"])
    torch.testing.assert_close(latents, tensors["latents"], atol=1e-4, rtol=0)
    torch.testing.assert_close(video, tensors["decoded"], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_batch_entries_are_independent(golden: tuple[DcAe, dict[str, Tensor]]) -> None:
    network, tensors = golden
    video = torch.cat([tensors["video"], -tensors["video"].flip(-1), tensors["video"].flip(2)])
    latents = network.encode(video)
    decoded = network.decode(latents)
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(latents[one], network.encode(video[one]), atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded[one], network.decode(latents[one]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_bfloat16_stays_close(golden: tuple[DcAe, dict[str, Tensor]]) -> None:
    network, tensors = golden
    weights = {name: tensor.bfloat16() for name, tensor in network.state_dict().items()}
    rough = DcAe.from_weights(network.config, weights)
    with torch.no_grad():
        video = rough.decode(tensors["latents"].bfloat16())
    assert video.dtype == torch.bfloat16
    error = (video.float() - tensors["decoded"]).square().mean().sqrt()
    assert error < 0.02 * tensors["decoded"].std()


@pytest.mark.parametrize("layer", [RmsNorm(32), LinearAttention(32)])
def test_squares_and_sums_do_not_overflow_in_half_precision(layer: nn.Module) -> None:
    """They are in float32: float16 ends at 65504."""
    x = torch.randn(1, 32, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 300
    expected = layer(x)
    rough = layer.half()(x.half())
    torch.testing.assert_close(rough.float(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("video", "latents"),
    [
        ((1, 3, 8, 32, 32), (1, 16, 2, 1, 1)),
        ((2, 3, 12, 32, 96), (2, 16, 3, 1, 3)),
        ((1, 3, 20, 64, 32), (1, 16, 5, 2, 1)),
        ((3, 3, 1, 64, 32), (3, 16, 1, 2, 1)),  # images
    ],
)
def test_sizes_of_videos_and_latents(
    golden: tuple[DcAe, dict[str, Tensor]], video: tuple[int, ...], latents: tuple[int, ...]
) -> None:
    network, _ = golden
    code = network.encode(torch.rand(video) * 2 - 1)
    assert tuple(code.shape) == latents
    assert tuple(network.decode(code).shape) == video


def test_a_single_latent_frame_is_an_image(golden: tuple[DcAe, dict[str, Tensor]]) -> None:
    network, tensors = golden
    code = network.encode(tensors["video"][:, :, :4])
    assert code.shape[2] == 1 and network.decode(code).shape[2] == 1


@pytest.mark.parametrize("shape", [(1, 3, 6, 32, 32), (1, 3, 8, 48, 32), (1, 1, 8, 32, 32), (3, 8)])
def test_videos_that_do_not_fit_are_refused(
    golden: tuple[DcAe, dict[str, Tensor]], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"video: found shape .* a multiple of 4, .* of 32"):
        golden[0].encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 8, 2, 1, 1), (16, 2, 1, 1), (1, 16, 0, 1, 1)])
def test_latents_that_do_not_fit_are_refused(
    golden: tuple[DcAe, dict[str, Tensor]], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"latents: found shape .* allowed: \(B, 16, t, h, w\)"):
        golden[0].decode(torch.zeros(shape))


# --- weights ---


def test_the_published_decoder_has_239_million_parameters() -> None:
    with torch.device("meta"):
        network = DcAe(PUBLISHED["dc-ae-f32t4c128"])
    assert round(sum(p.numel() for p in network.decoder.parameters()) / 1e6, 2) == 239.02


def test_wrong_weights_are_listed(golden: tuple[DcAe, dict[str, Tensor]]) -> None:
    network, _ = golden
    weights = dict(network.state_dict())
    del weights["decoder.project_in.main.conv.bias"]
    weights["wings.weight"] = torch.zeros(1)
    weights["encoder.project_in.conv.bias"] = torch.zeros(4)
    with pytest.raises(ValueError) as caught:
        DcAe.from_weights(network.config, weights)
    for part in (
        "missing: decoder.project_in.main.conv.bias",
        "unexpected: wings.weight",
        "shape: encoder.project_in.conv.bias (4,) for (8,)",
    ):
        assert part in str(caught.value)
    check_weights(network.config, {k: tuple(v.shape) for k, v in network.state_dict().items()})


# --- configs ---


def test_configs_by_name_and_by_fields() -> None:
    published = PUBLISHED["dc-ae-f32t4c128"]
    assert DcAeConfig.from_published("dc-ae-f32t4c128") == published
    assert DcAeConfig.from_published({"model_name": "dc-ae-f32t4c128"}) == published
    assert (published.temporal_compression, published.spatial_compression) == (4, 32)
    small = DcAeConfig.from_published(SMALL)
    assert small.encoder_depth_list == small.decoder_depth_list == (1,) * 6
    fields = json.loads(json.dumps(vars(published)))
    assert DcAeConfig.from_published(fields) == published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 0}, "latent_channels: found 0, allowed: an integer >= 1"),
        ({"latent_channels": True}, "latent_channels: found True"),
        ({"latent_channels": 12}, "latent_channels: found 12, allowed: a divisor of .* 32"),
        ({"width_list": 32}, "width_list: found 32"),
        ({"width_list": [8, 8, 16, 32, 32, 3.5]}, "width_list: .* integers >= 1"),
        ({"width_list": [8, 16, 32, 32]}, "width_list: .* at least 6 stages"),
        ({"width_list": [8, 8, 16, 48, 32, 32]}, "width_list: .* multiples of 32 from entry 3"),
        ({"width_list": [8, 8, 24, 32, 32, 32]}, "width_list: .* neighbours"),
        ({"depth": 0}, r"encoder_depth_list: found \(0, 0"),
        ({"depth": None}, r"encoder_depth_list: found \(None"),
        ({"encoder_depth_list": [1] * 6}, "encoder_depth_list: .* depth = 1"),
        ({"scaling_factor": 0}, "scaling_factor: found 0, allowed: a finite number > 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor: found nan"),
        ({"scaling_factor": None}, "scaling_factor: found None"),
        ({"wings": 2}, "wings: found 2, allowed: only latent_channels, width_list"),
        ({"_class_name": "AutoencoderDC"}, "_class_name: found 'AutoencoderDC'"),
        ({"model_name": "dc-ae-f32t4c128"}, "depth: found 1, .*model_name"),
    ],
)
def test_bad_configs_are_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DcAeConfig.from_published(SMALL | change)


@pytest.mark.parametrize("name", ["latent_channels", "width_list", "depth"])
def test_a_missing_field_is_named(name: str) -> None:
    given = {key: value for key, value in SMALL.items() if key != name}
    named = "encoder_depth_list" if name == "depth" else name
    with pytest.raises(ValueError, match=f"{named}: found None"):
        DcAeConfig.from_published(given)


def test_depth_lists_are_as_long_as_the_widths() -> None:
    fields = vars(DcAeConfig.from_published(SMALL)) | {"decoder_depth_list": [1] * 5}
    with pytest.raises(ValueError, match=r"decoder_depth_list: found \(1, .* 6 entries"):
        DcAeConfig.from_published(fields)


@pytest.mark.parametrize("given", ["dc-ae-f32c32-in-1.0", {"model_name": 3}, ["dc-ae-f32t4c128"]])
def test_an_unpublished_config_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"model_name: found .* dc-ae-f32t4c128|config: found"):
        DcAeConfig.from_published(given)
