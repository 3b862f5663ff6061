"""Windows of one fixed length, decoded each for itself, give the frames of decoding at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder
from turbo_vaed.models.windows import TimeSpec

NOISE = 1e-10
"""In float64 rounding stays far below it, and what a frame misses far above."""


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    """Small decoders: every kind of layer, upsampling in time by 1 to 3, both layouts of frames."""
    levels = draw(st.integers(1, 2))
    flags = st.lists(st.booleans(), min_size=levels, max_size=levels).map(tuple)
    scaling, spatial = draw(flags), draw(flags)
    factors = tuple(
        draw(st.integers(1, 3)) if scales and not only else 1
        for scales, only in zip(scaling, spatial, strict=True)
    )
    return DecoderConfig(
        latent_channels=3,
        decoder_block_out_channels=draw(st.sampled_from([(8, 8), (8, 12)]))[:levels],
        decoder_layers_per_block=(1,) * (levels + 1),
        spatio_temporal_scaling=scaling,
        decoder_spatio_only=spatial,
        decoder_temporal_factors=factors,
        decoder_is_dw_conv=(*draw(flags), draw(st.booleans())),
        decoder_dw_kernel_size=draw(st.sampled_from([3, 5])),
        patch_size=draw(st.sampled_from([1, 2])),
        is_video_dc_ae=draw(st.booleans()),
    )


def decode(config: DecoderConfig, latents: Tensor) -> tuple[TurboVaedDecoder, Tensor]:
    torch.manual_seed(0)
    decoder = TurboVaedDecoder(config).double().requires_grad_(False)
    return decoder, decoder(latents)


def by_windows(
    decoder: TurboVaedDecoder, latents: Tensor, *, length: int, overlap: int | None = None
) -> Tensor:
    time = decoder.config.time_spec
    parts, total = [], 0
    for window in time.windows(latents.shape[2], length=length, overlap=overlap):
        assert window.at == total and window.stop - window.start == length
        video = decoder(latents[:, :, window.start : window.stop])
        parts.append(video[:, :, window.kept_start : window.kept_stop])
        total += parts[-1].shape[2]
    return torch.cat(parts, dim=2)


@pytest.mark.slow
@settings(max_examples=40)
@given(config=configs(), more=st.integers(1, 3), further=st.integers(0, 9))
def test_windows_equal_decoding_at_once(config: DecoderConfig, more: int, further: int) -> None:
    length = config.time_spec.exact_overlap + more
    latents = torch.randn(1, 3, length + further, 1, 2, dtype=torch.float64)
    decoder, whole = decode(config, latents)
    assert (by_windows(decoder, latents, length=length) - whole).abs().max() < NOISE


@settings(max_examples=40)
@given(config=configs())
def test_the_halo_is_no_larger_than_needed(config: DecoderConfig) -> None:
    """In a window from the middle of a video the frames of the halo are wrong, to the last one,
    and no other is."""
    time = config.time_spec
    length = time.exact_overlap + 1
    latents = torch.randn(1, 3, length + 2, 1, 2, dtype=torch.float64)
    decoder, whole = decode(config, latents)
    window = decoder(latents[:, :, 1:-1])
    of_whole = whole[:, :, time.frames_per_latent :][:, :, : window.shape[2]]
    wrong = (window - of_whole).abs().amax(dim=(0, 1, 3, 4)) > NOISE
    before, after = time.halo_frames
    right = len(wrong) - before - after
    assert right >= 1
    assert wrong.tolist() == [True] * before + [False] * right + [True] * after


def test_an_overlap_that_is_one_too_small_is_noticed() -> None:
    """Of the exact overlap not a latent frame can be spared, where nothing was rounded up."""
    config = DecoderConfig(
        latent_channels=3,
        decoder_block_out_channels=(8,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(False,),
        decoder_spatio_only=(False,),
        decoder_is_dw_conv=(False, True),
        patch_size=1,
    )
    overlap = config.time_spec.exact_overlap
    latents = torch.randn(1, 3, 40, 1, 1, dtype=torch.float64)
    decoder, whole = decode(config, latents)
    for less, is_right in ((0, True), (1, False)):
        video = by_windows(decoder, latents, length=overlap + 4, overlap=overlap - less)
        assert ((video - whole).abs().max() < NOISE) == is_right


@pytest.mark.parametrize(
    ("name", "halo", "overlap"),
    [
        ("turbo-vaed-ltx", (146, 153), 39),
        ("turbo-vaed-hunyuan", (201, 204), 102),
        ("turbo-vaed-dc", (164, 164), 82),
        ("tiny-ltx", (58, 61), 31),
    ],
)
def test_halo_of_the_presets(name: str, halo: tuple[int, int], overlap: int) -> None:
    time = PRESETS[name].time_spec
    assert (time.halo_frames, time.exact_overlap) == (halo, overlap)


TIME = TimeSpec(frames_per_latent=4, first_latent_frames=1, halo_frames=(2, 6))


def test_invalid_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="latents: found 2 frames, allowed: 3 or more"):
        list(TIME.windows(2, length=3, overlap=1))
    with pytest.raises(
        ValueError, match=r"overlap: found 3 .* allowed: 1 to 2, .* right from 3 on"
    ):
        list(TIME.windows(9, length=3))
    with pytest.raises(ValueError, match=r"overlap: found 0 .* allowed: 1 to 2"):
        list(TIME.windows(9, length=3, overlap=0))


def test_too_short_an_overlap_is_cut_where_both_are_equally_good() -> None:
    """5 frames in common, a halo of 2 and 6: a quarter of them is left to the next window."""
    first, second = TIME.windows(4, length=3, overlap=2)
    assert (first.kept_start, first.kept_stop, first.at) == (0, 5, 0)
    assert (second.start, second.kept_start, second.kept_stop, second.at) == (1, 1, 9, 5)


@given(
    ratio=st.integers(1, 4),
    is_first_alone=st.booleans(),
    halo=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    length=st.integers(2, 5),
    further=st.integers(0, 9),
    data=st.data(),
)
def test_no_frame_is_missing_or_repeated(
    ratio: int,
    is_first_alone: bool,
    halo: tuple[int, int],
    length: int,
    further: int,
    data: st.DataObject,
) -> None:
    first = 1 if is_first_alone else ratio
    time = TimeSpec(frames_per_latent=ratio, first_latent_frames=first, halo_frames=halo)
    overlap = data.draw(st.integers(time.least_overlap, length - 1))
    frames: list[int] = []
    for window in time.windows(length + further, length=length, overlap=overlap):
        assert window.kept_start >= 0 and window.kept_stop <= time.frames(length)
        assert window.at == ratio * window.start + window.kept_start
        frames += range(window.at, window.at + window.kept_stop - window.kept_start)
    assert frames == list(range(time.frames(length + further)))


def test_one_window_keeps_every_frame() -> None:
    (only,) = TIME.windows(3, length=3, overlap=1)
    assert (only.start, only.stop, only.kept_start, only.kept_stop) == (0, 3, 0, 9)
