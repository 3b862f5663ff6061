"""Students derived from a teacher's latents, and levels that scale time by other than 2."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turbo_vaed.distill.linear_start import start_decoder
from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder, load_decoder, save_decoder
from turbo_vaed.models.sizing import count_parameters, student_for
from turbo_vaed.models.teachers import LatentSpec


def spec(
    channels: int = 16, time: int = 4, space: int = 8, parameters: int = 10**8, **changes: object
) -> LatentSpec:
    given = {
        "channels": channels,
        "compression_t": time,
        "compression_h": space,
        "compression_w": space,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "decoder_parameters": parameters,
    }
    return LatentSpec(**{**given, **changes})


@pytest.mark.parametrize(
    ("preset", "teacher", "published_millions"),
    [
        ("turbo-vaed-ltx", spec(128, 8, 32, 238_789_296), 41.90),
        ("turbo-vaed-hunyuan", spec(16, 4, 8, 146_136_067), 40.69),
        ("turbo-vaed-cogvideox", spec(16, 4, 8, 123_368_451), 40.69),
        ("turbo-vaed-dc", spec(128, 4, 32, 239_020_000, has_lone_first_frame=False), 45.83),
    ],
)
def test_published_shares_give_the_published_students(
    preset: str, teacher: LatentSpec, published_millions: float
) -> None:
    share = published_millions * 1e6 / teacher.decoder_parameters
    found, wanted = student_for(teacher, share), PRESETS[preset]
    assert 0.99 * published_millions < count_parameters(found) / 1e6 <= published_millions
    same = {"decoder_block_out_channels": wanted.decoder_block_out_channels}
    heads = {"aligned_blks_indices": (), "aligned_feature_projection_dim": ()}
    assert replace(found, **same) == replace(wanted, **heads)
    for ours, theirs in zip(
        found.decoder_block_out_channels, wanted.decoder_block_out_channels, strict=True
    ):
        assert abs(ours - theirs) <= 8


@pytest.mark.parametrize(
    ("time", "space", "lone", "share"),
    [
        (1, 8, True, 0.05),
        (2, 4, True, 1.0),
        (4, 16, True, 0.175),
        (6, 8, True, 0.5),
        (8, 32, True, 0.175),
        (4, 32, False, 0.05),
    ],
)
def test_the_derived_student_uses_its_budget_and_stays_within(
    time: int, space: int, lone: bool, share: float
) -> None:
    teacher = spec(24, time, space, 60_000_000, has_lone_first_frame=lone)
    student = student_for(teacher, share)
    assert 0.97 < count_parameters(student) / (share * teacher.decoder_parameters) <= 1
    assert (student.temporal_compression, student.spatial_compression) == (time, space)
    assert student.is_video_dc_ae is not lone
    widths = student.decoder_block_out_channels
    assert all(width % 8 == 0 for width in widths)
    assert widths[0] % student.patch_size**2 == 0
    assert widths[0] // student.patch_size**2 >= 4, "three colours, and what the norm divides by"
    assert DecoderConfig.from_published(student.to_published()) == student


@pytest.mark.slow
@pytest.mark.parametrize(
    ("time", "space", "levels"),
    [
        (1, 8, (1, 1, 1, 1)),
        (2, 8, (1, 1, 2, 1)),
        (6, 8, (1, 2, 3, 1)),
        (8, 8, (2, 2, 2, 1)),
        (16, 8, (2, 2, 4, 1)),
        (5, 2, (5, 1, 1, 1)),
        (16, 64, (2, 2, 2, 2)),
    ],
)
def test_time_is_scaled_at_the_levels_that_scale_space(
    time: int, space: int, levels: tuple[int, ...]
) -> None:
    assert student_for(spec(time=time, space=space)).temporal_factors == levels


@pytest.mark.parametrize(
    ("teacher", "share", "message"),
    [
        (spec(), 0.0, "budget_fraction: found 0.0, allowed: above 0"),
        (spec(), 1.5, "budget_fraction: found 1.5, .* at most 1"),
        (spec(parameters=10**6), 0.01, r"found 0.01, 10000 of .* at least 0.1.*smallest student"),
        (spec(space=12), 0.175, "space: found 12x12"),
        (spec(space=128), 0.175, r"space: found 128x128.*\b64"),
        (spec(compression_w=16), 0.175, "space: found 8x16"),
        (spec(space=1), 0.175, "time: found 4"),
    ],
)
def test_an_impossible_student_is_refused(teacher: LatentSpec, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_for(teacher, share)


THIRDS = DecoderConfig(
    latent_channels=4,
    decoder_block_out_channels=(8, 16, 16),
    decoder_layers_per_block=(1, 1, 1, 1),
    spatio_temporal_scaling=(True, True, False),
    decoder_spatio_only=(False, False, False),
    decoder_is_dw_conv=(False, False, True, True),
    decoder_temporal_factors=(2, 3, 1),
    patch_size=2,
)
"""Compression 6 in time, 8 in space."""


@pytest.mark.parametrize("keeps_first_frames", [False, True])
def test_a_level_can_make_three_frames_of_one(keeps_first_frames: bool) -> None:
    config = replace(THIRDS, is_video_dc_ae=keeps_first_frames)
    assert config.temporal_compression == 6
    decoder = TurboVaedDecoder(config)
    latents = torch.randn(2, 4, 3, 2, 3)
    video, features = decoder.decode_with_features(latents)
    halfway, whole = (9, 18) if keeps_first_frames else (7, 13)
    assert features["mid_block"].shape[2] == features["up_block_0"].shape[2] == 3
    assert features["up_block_1"].shape[2] == halfway
    assert tuple(video.shape) == (2, 3, whole, 16, 24)
    assert tuple(video.shape) == config.video_shape((2, 4, 3, 2, 3))


def test_temporal_factors_are_saved_only_where_they_are_set(tmp_path) -> None:
    published = THIRDS.to_published()
    assert published["decoder_temporal_factors"] == [2, 3, 1]
    assert DecoderConfig.from_published(published) == THIRDS
    decoder = TurboVaedDecoder(THIRDS)
    save_decoder(decoder, tmp_path)
    latents = torch.randn(1, 4, 2, 1, 1)
    assert torch.equal(load_decoder(tmp_path)(latents), decoder(latents))
    for preset in PRESETS.values():
        assert "decoder_temporal_factors" not in preset.to_published()


def test_published_decoders_double_time_at_every_level_that_scales() -> None:
    plain = replace(THIRDS, decoder_temporal_factors=())
    assert plain.temporal_factors == (2, 2, 1)
    assert replace(THIRDS, decoder_temporal_factors=(2, 2, 1)).temporal_factors == (2, 2, 1)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((2, 3), "3 entries, integers >= 1"),
        ((2, 0, 1), "3 entries, integers >= 1"),
        ((2, 3, 2), r"\(2, 3, 2\), .*1 at every level"),
    ],
)
def test_impossible_temporal_factors_are_refused(factors: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"decoder_temporal_factors: found .*{message}"):
        replace(THIRDS, decoder_temporal_factors=factors)


@pytest.mark.slow
def test_the_linear_start_works_with_any_factor() -> None:
    """Its decoder is at once much nearer to smooth videos than a random one."""
    config = replace(THIRDS, latent_channels=12, decoder_block_out_channels=(16, 48, 64))
    dice = torch.Generator().manual_seed(0)
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (13, 32, 32)), indexing="ij")
    waves = torch.rand(24, 3, 4, generator=dice) * 4 - 2
    video = torch.stack([torch.sin(a * x + b * y + c * t + d) for a, b, c, d in waves.view(-1, 4)])
    video = 0.8 * video.view(24, 3, 13, 32, 32)
    padded = torch.cat([video[:, :, :1]] * 5 + [video], dim=2).view(24, 3, 3, 6, 4, 8, 4, 8)
    mean = padded.mean((3, 5, 7))
    slopes = [padded.narrow(d, 0, padded.shape[d] // 2).mean((3, 5, 7)) - mean for d in (3, 5, 7)]
    latents = torch.cat([mean, *(8 * slope for slope in slopes)], dim=1)
    torch.manual_seed(0)
    decoder = TurboVaedDecoder(config)
    with torch.no_grad():
        before = (decoder(latents) - video).abs().mean()
        start_decoder(decoder, latents, video)
        after = (decoder(latents) - video).abs().mean()
    assert after < 0.35 * before
