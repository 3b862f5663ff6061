"""The decoder against numbers recorded from the published one, and its files."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.plain_decoder import PlainDecoder
from turbo_vaed.models import (
    PRESETS,
    DecoderConfig,
    TurboVaedDecoder,
    layers,
    save_decoder,
    stream,
)
from turbo_vaed.models.timeline import Whole

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FAMILIES = ("ltx", "hunyuan", "cogvideox", "dc")


def golden(family: str) -> tuple[DecoderConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Config, published weights, and the recorded tensors."""
    published = json.loads((GOLDEN / f"turbo-vaed-{family}-small.json").read_text())
    tensors = load_file(GOLDEN / f"turbo-vaed-{family}-small.safetensors")
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return DecoderConfig.from_published(published), weights, tensors


def golden_decoder(family: str) -> tuple[TurboVaedDecoder, dict[str, Tensor]]:
    config, weights, tensors = golden(family)
    decoder = TurboVaedDecoder(config).eval().requires_grad_(False)
    decoder.load_published(weights)
    return decoder, tensors


def formulations(decoder: TurboVaedDecoder) -> dict[str, torch.nn.Module]:
    """Every form that the decoder is computed in."""
    contiguous = torch.contiguous_format
    plain = PlainDecoder(decoder.config)
    state = decoder.published_state_dict()
    plain.load_state_dict({key.removeprefix("decoder."): state[key] for key in state})
    return {
        "trained": copy.deepcopy(decoder).requires_grad_(True),
        "eager": decoder,
        "direct": decoder.for_inference(form="taps"),
        "joined": decoder.for_inference(form="joined"),
        "winograd": decoder.for_inference(),
        "direct, contiguous": decoder.for_inference(form="taps", memory_format=contiguous),
        "winograd, contiguous": decoder.for_inference(memory_format=contiguous),
        "plain 3-D": plain,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_formulation_reproduces_the_published_decoder(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, tensors = golden_decoder(family)
    for name, form in formulations(decoder).items():
        error = (form(tensors["latents"]) - tensors["decoded"]).abs().max().item()
        assert error < 1e-4, f"{name}: {error}"
    # Goldens are narrow, and their LTX one amplifies rounding: Winograd everywhere, in float64.
    monkeypatch.setattr(layers, "MIN_WINOGRAD_CHANNELS", 1)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        form = decoder.double().for_inference(torch.float64, memory_format=memory_format)
        assert isinstance(form.conv_in.folded, torch.nn.ParameterList)
        assert len(form.conv_in.folded) == 4 + 1
        error = (form(tensors["latents"].double()) - tensors["decoded"]).abs().max().item()
        assert error < 1e-4, f"winograd, {memory_format}: {error}"


@pytest.mark.parametrize("family", ["hunyuan", "cogvideox", "dc"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_winograd_reproduces_the_published_decoder_in_float32(
    family: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MIN_WINOGRAD_CHANNELS", 1)
    decoder, tensors = golden_decoder(family)
    form = decoder.for_inference(memory_format=memory_format)
    torch.testing.assert_close(form(tensors["latents"]), tensors["decoded"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_reproduces_the_published_features(family: str) -> None:
    decoder, tensors = golden_decoder(family)
    recorded = {k: v for k, v in tensors.items() if k.startswith("features.")}
    assert len(recorded) == 3
    for form in (decoder, decoder.for_inference()):
        video, features = form.decode_with_features(tensors["latents"])
        for name, expected in recorded.items():
            torch.testing.assert_close(
                features[name.removeprefix("features.")], expected, atol=1e-4, rtol=0
            )
        torch.testing.assert_close(form(tensors["latents"]), video, atol=0, rtol=0)


@pytest.mark.slow
def test_compiled_and_exported_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MIN_WINOGRAD_CHANNELS", 1)
    decoder, tensors = golden_decoder("hunyuan")
    decoder, latents = decoder.for_inference(), tensors["latents"]
    exported = torch.export.export(decoder, (latents,)).module()
    # The backend captures the graph, without minutes of a C++ compiler.
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    for form in (exported, compiled):
        torch.testing.assert_close(form(latents), tensors["decoded"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("batch", [1, 3])
def test_winograd_is_the_same_for_any_number_of_frames(frames: int, batch: int) -> None:
    torch.manual_seed(0)
    conv = layers.FrameConv(layers.MIN_WINOGRAD_CHANNELS, 5)
    narrow = layers.FrameConv(layers.MIN_WINOGRAD_CHANNELS - 1, 5)
    assert len(conv.kernels("winograd")) == 4 + 1 and len(conv.kernels("taps")) == 3 + 1
    assert len(narrow.kernels("winograd")) == 3 + 1
    x = torch.randn(frames * batch, layers.MIN_WINOGRAD_CHANNELS, 3, 4)
    direct = conv(x, Whole(batch))
    layers.fold(conv, "winograd", torch.channels_last)
    torch.testing.assert_close(conv(x, Whole(batch)), direct, atol=1e-5, rtol=0)


def test_half_precision_stays_close(tiny: TurboVaedDecoder) -> None:
    tiny.requires_grad_(False)
    latents = torch.randn(1, 32, 3, 8, 8)
    error = tiny.for_inference(torch.bfloat16)(latents.bfloat16()).float() - tiny(latents)
    psnr = -10 * torch.log10(error.square().mean() / 4)  # of a range of 2
    assert psnr > 45


@pytest.mark.slow
def test_trains_wholly_in_half_precision(tiny: TurboVaedDecoder) -> None:
    decoder = copy.deepcopy(tiny).bfloat16().requires_grad_(True)
    video = decoder(torch.randn(1, 32, 3, 8, 8).bfloat16())
    video.float().square().mean().backward()
    assert video.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_for_inference_leaves_the_decoder_alone(tiny: TurboVaedDecoder) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    assert not any(p.requires_grad for p in tiny.for_inference().parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())
    with pytest.raises(ValueError, match="for inference"):
        save_decoder(tiny.for_inference(), Path("nowhere"))
    with pytest.raises(ValueError, match="for inference"):
        tiny.for_inference().for_inference()
    with pytest.raises(ValueError, match="dtype: found float16"):
        tiny.for_inference(torch.float16)


def test_latents_of_another_dtype_are_refused(tiny: TurboVaedDecoder) -> None:
    half = tiny.for_inference(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"latents: found torch\.float32, allowed: torch\.bfloat16"
    ):
        half(torch.zeros(1, 32, 1, 2, 2))
    with pytest.raises(ValueError, match=r"latents: found torch\.float64"):
        tiny(torch.zeros(1, 32, 1, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_published_weights_survive_a_round_trip_bit_for_bit(family: str) -> None:
    config, weights, _ = golden(family)
    decoder = TurboVaedDecoder(config)
    decoder.load_published(weights)
    given_back = decoder.published_state_dict()
    assert {k for k in weights if k.startswith("decoder.")} == given_back.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in given_back.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("turbo-vaed-ltx", 41.90),
        ("turbo-vaed-hunyuan", 40.69),
        ("turbo-vaed-cogvideox", 40.69),
        ("turbo-vaed-dc", 45.83),
        ("tiny-ltx", 0.65),
    ],
)
def test_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        decoder = TurboVaedDecoder(PRESETS[name])
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_entries_are_independent(family: str) -> None:
    decoder, tensors = golden_decoder(family)
    first = tensors["latents"]
    batch = torch.cat([first, first.flip(-1), -first])
    together = decoder(batch)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], decoder(batch[i : i + 1]), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 3), (1, 4, 3, 7)])
@pytest.mark.parametrize("keeps_first_frames", [False, True])
def test_odd_sizes_and_single_frames(
    shape: tuple[int, int, int, int], keeps_first_frames: bool
) -> None:
    config = replace(PRESETS["tiny-ltx"], is_video_dc_ae=keeps_first_frames)
    decoder = TurboVaedDecoder(config).eval()
    batch, frames, height, width = shape
    with torch.no_grad():
        video = decoder(torch.randn(batch, 32, frames, height, width))
    decoded = 4 * frames if keeps_first_frames else 4 * (frames - 1) + 1
    assert video.shape == (batch, 3, decoded, 8 * height, 8 * width)
    assert video.shape == config.video_shape((batch, 32, frames, height, width))
    assert video.isfinite().all()


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_levels(levels: int) -> None:
    config = DecoderConfig(
        latent_channels=4,
        decoder_block_out_channels=tuple(range(8, 8 + levels)),
        decoder_layers_per_block=(1,) * (levels + 1),
        spatio_temporal_scaling=(True,) * levels,
        decoder_spatio_only=(False,) * levels,
        decoder_is_dw_conv=(False,) * levels + (True,),
        patch_size=1,
    )
    latents = torch.randn(1, 4, 2, 1, 1)
    video, features = TurboVaedDecoder(config).decode_with_features(latents)
    assert video.shape == config.video_shape((1, 4, 2, 1, 1))
    assert list(features) == ["mid_block", *(f"up_block_{i}" for i in range(levels))]


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_trains(tiny: TurboVaedDecoder, autocast: bool) -> None:
    latents = torch.randn(2, 32, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        video = tiny(latents)
    (video.float() ** 2).mean().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        error = (video.float() - tiny(latents)).abs().max()
    assert error < 0.1


def test_latents_of_a_wrong_shape_are_refused(tiny: TurboVaedDecoder) -> None:
    for wrong in (
        torch.zeros(1, 16, 2, 4, 4),
        torch.zeros(32, 2, 4, 4),
        torch.zeros(0, 32, 1, 1, 1),
    ):
        with pytest.raises(
            ValueError, match=r"latents: found shape .* allowed: \(B, 32, t, h, w\)"
        ):
            tiny(wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(tiny: TurboVaedDecoder, value: float) -> None:
    latents = torch.zeros(1, 32, 2, 4, 4)
    latents[0, 3, 1, 2, 2] = value
    for decode in (tiny, tiny.decode_with_features, lambda z: list(stream(tiny, z))):
        with pytest.raises(ValueError, match="latents: found NaN"):
            decode(latents)
