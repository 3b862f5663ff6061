"""Configs in the published vocabulary: what is taken, what is refused, by which name."""

from __future__ import annotations

import json

import pytest

from turbo_vaed.models import PRESETS, DecoderConfig


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name: str) -> None:
    published = json.loads(json.dumps(PRESETS[name].to_published()))
    assert DecoderConfig.from_published(published) == PRESETS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 0}, "latent_channels: found 0, allowed: an integer >= 1"),
        ({"latent_channels": True}, "latent_channels: found True"),
        ({"latent_channels": "32"}, "latent_channels: found '32'"),
        ({"decoder_block_out_channels": 32}, "decoder_block_out_channels: found 32"),
        ({"decoder_block_out_channels": []}, "decoder_block_out_channels"),
        ({"decoder_block_out_channels": [30, 32, 96]}, r"decoder_block_out_channels: .*patch_size"),
        ({"decoder_layers_per_block": [1, 1, 1]}, "decoder_layers_per_block: .* 4 entries"),
        ({"decoder_layers_per_block": [1, 1, 1, 0]}, "decoder_layers_per_block"),
        ({"decoder_spatio_temporal_scaling": [1, 1, 0]}, "spatio_temporal_scaling: .* true or"),
        ({"spatio_temporal_scaling": [False] * 3}, "or absent"),
        ({"spatio_temporal_scaling": "x"}, "spatio_temporal_scaling"),
        ({"aligned_blks_indices": 5}, "aligned_blks_indices: found 5"),
        ({"aligned_feature_projection_dim": 5}, "aligned_feature_projection_dim: found 5"),
        ({7: 1}, "7: found 1, .*no such field"),
        ({"decoder_dw_kernel_size": 4}, "decoder_dw_kernel_size: found 4, allowed: an odd"),
        ({"patch_size": 3}, "patch_size: found 3, allowed: 1 or 2 or 4"),
        ({"patch_size_t": 2}, "patch_size_t: found 2, allowed: 1"),
        ({"out_channels": 4}, "out_channels: found 4, allowed: 3"),
        ({"resnet_norm_eps": 0}, "resnet_norm_eps: found 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor: found nan"),
        ({"is_video_dc_ae": "yes"}, "is_video_dc_ae: found 'yes'"),
        ({"decoder_causal": True}, "decoder_causal: found True, .*False"),
        ({"timestep_conditioning": True}, "timestep_conditioning"),
        ({"decoder_inject_noise": [False, True]}, "decoder_inject_noise"),
        ({"aligned_feature_projection_mode": "fc-1layer"}, "only 'conv-2layer'"),
        ({"aligned_blks_indices": [4]}, "aligned_blks_indices: .* integers from 0 to 3"),
        ({"aligned_blks_indices": [1]}, "aligned_feature_projection_dim"),
        ({"spatial_compression_ratio": 32}, "spatial_compression_ratio: found 32, allowed: 8"),
        ({"wings": 2}, "wings: found 2, .*no such field"),
        ({"_class_name": "AutoencoderKL"}, "_class_name: found 'AutoencoderKL'"),
    ],
)
def test_bad_configs_are_refused_by_name(change: dict[str, object], message: str) -> None:
    published = PRESETS["tiny-ltx"].to_published()
    with pytest.raises(ValueError, match=message):
        DecoderConfig.from_published(published | change)


def test_a_missing_field_is_named() -> None:
    published = PRESETS["tiny-ltx"].to_published()
    del published["latent_channels"]
    with pytest.raises(ValueError, match=r"latent_channels: found None, .*required"):
        DecoderConfig.from_published(published)
