"""Decoding in pieces gives the frames of decoding at once, and memory that does not grow."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turbo_vaed.models import PRESETS, DecoderConfig, TurboVaedDecoder, stream
from turbo_vaed.models.streaming import halo
from turbo_vaed.models.timeline import Chunked, Whole

CONFIGS = {
    "lone first frame": PRESETS["tiny-ltx"],
    "all frames": replace(PRESETS["tiny-ltx"], is_video_dc_ae=True),
    "space only": replace(PRESETS["tiny-ltx"], decoder_spatio_only=(True, False, False)),
}
NARROW = DecoderConfig(  # a short reach, so that tiles are small
    latent_channels=4,
    decoder_block_out_channels=(16, 16),
    decoder_layers_per_block=(1, 1, 1),
    spatio_temporal_scaling=(True, False),
    decoder_spatio_only=(False, False),
    decoder_is_dw_conv=(False, False, True),
    patch_size=2,
)


def make(config: DecoderConfig) -> TurboVaedDecoder:
    torch.manual_seed(0)
    return TurboVaedDecoder(config).eval().requires_grad_(False)


def joined(decoder: TurboVaedDecoder, latents: Tensor, **options: object) -> Tensor:
    return torch.cat(list(stream(decoder, latents, **options)), dim=2)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 2, 15])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_streaming_equals_decoding_at_once(name: str, frames: int, chunk: int) -> None:
    decoder = make(CONFIGS[name])
    latents = torch.randn(2, 32, frames, 3, 2)
    whole = decoder(latents)
    for form in (decoder, decoder.for_inference()):
        torch.testing.assert_close(joined(form, latents, chunk=chunk), whole, atol=1e-4, rtol=0)


def test_frames_come_early_and_no_piece_is_large() -> None:
    decoder = make(PRESETS["tiny-ltx"])
    latents = torch.randn(1, 32, 40, 2, 2)
    pulled = 0

    def pieces():
        nonlocal pulled
        for one in latents.split(1, dim=2):
            pulled += 1
            yield one

    pulled_at_first, sizes = 0, []
    for video in stream(decoder, pieces()):
        pulled_at_first = pulled_at_first or pulled
        sizes.append(video.shape[2])
    assert pulled_at_first < 20  # the reach ahead in time, of 40
    assert sum(sizes) == 4 * 39 + 1
    assert max(sizes) <= 4 + 2, "a latent frame's worth, and the last convolutions' look-ahead"


def test_without_their_context_frames_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks decoded each for itself: what the test above would catch."""
    decoder = make(PRESETS["tiny-ltx"])
    latents = torch.randn(1, 32, 12, 3, 3)
    whole = decoder(latents)
    assert (joined(decoder, latents) - whole).abs().max() < 1e-4
    monkeypatch.setattr(Chunked, "pad", lambda self, x, reach: Whole(self.batch).pad(x, reach))
    monkeypatch.setattr(Chunked, "align", lambda self, x, y: x)
    apart = joined(decoder, latents)
    assert apart.shape == whole.shape
    assert (apart - whole).abs().max() > 1e-2


def live_bytes() -> int:
    """Of the tensors that Python holds and that came after `gc.freeze`."""
    storages = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for thing in gc.get_objects()
        if type(thing) is Tensor
    }
    return sum(storages.values())


@pytest.mark.slow
def test_streaming_takes_the_same_memory_for_any_length() -> None:
    """All tensors alive where a frame comes out: after 20 and after 80 latent frames the same."""
    decoder = make(PRESETS["tiny-ltx"])
    pieces = (torch.zeros(1, 32, 1, 4, 4) for _ in range(100))
    gc.collect()
    gc.freeze()
    try:
        alive = [live_bytes() for _ in stream(decoder, pieces)]
    finally:
        gc.unfreeze()
    early, late = max(alive[5:15]), max(alive[60:80])
    assert early == late > 100_000, "contexts are counted"


def test_tiles_are_exact_and_not_blended() -> None:
    decoder = make(NARROW)
    reach = halo(NARROW)
    latents = torch.randn(2, 4, 3, 2 * reach + 3, 3 * reach)
    whole = decoder(latents)
    tiled = joined(decoder, latents, tile=(reach, reach + 1))
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=0)


def test_the_halo_is_as_wide_as_the_receptive_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latent `halo` away from a tile counts for it, and one farther away does not."""
    decoder = make(NARROW)
    reach, scale = halo(NARROW), NARROW.spatial_compression
    latents = torch.randn(1, 4, 2, 2 * reach + 3, 1)
    whole = decoder(latents)
    for distance, is_seen in ((reach, True), (reach + 1, False)):
        changed = latents.clone()
        changed[..., reach + 1 + distance, :] += 100
        row = slice((reach + 1) * scale, (reach + 2) * scale)
        difference = (decoder(changed) - whole)[..., row, :].abs().max()
        assert (difference > 0) == is_seen, distance


@pytest.mark.parametrize("name", PRESETS)
def test_halo_of_the_presets(name: str) -> None:
    expected = {
        "turbo-vaed-ltx": 20,
        "turbo-vaed-hunyuan": 50,
        "turbo-vaed-cogvideox": 50,
        "turbo-vaed-dc": 40,
        "tiny-ltx": 16,
    }
    assert halo(PRESETS[name]) == expected[name]


def test_invalid_tiles_chunks_and_shapes_are_refused() -> None:
    decoder = make(NARROW)
    latents = torch.randn(1, 4, 2, 20, 20)
    with pytest.raises(ValueError, match=r"tile: found 2x20 latents, allowed: \d+ or more"):
        stream(decoder, latents, tile=(2, 20))
    with pytest.raises(ValueError, match="chunk: found 0"):
        stream(decoder, latents, chunk=0)
    with pytest.raises(ValueError, match="latents: found no"):
        list(stream(decoder, []))
    with pytest.raises(ValueError, match=r"latents: found shape \(1, 5"):
        stream(decoder, torch.zeros(1, 5, 2, 3, 3))
    with pytest.raises(ValueError, match=r"latents: found shape \(3, 3\)"):
        stream(decoder, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 3, 4\).*\(1, 4, 1, 3, 3\)"):
        list(stream(decoder, [torch.zeros(1, 4, 1, 3, 3), torch.zeros(1, 4, 1, 3, 4)]))
