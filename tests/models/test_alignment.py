"""Projection heads: their weights, their shapes, and the rearrangement to the teacher's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turbo_vaed.models import (
    PRESETS,
    AlignmentHeads,
    DecoderConfig,
    TurboVaedDecoder,
    match_resolution,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def test_alignment_heads() -> None:
    config = replace(
        PRESETS["tiny-ltx"],
        aligned_blks_indices=(0, 2),
        aligned_feature_projection_dim=((96, 10), (32, 40)),
    )
    heads = AlignmentHeads(config)
    published = {}
    for key, tensor in heads.state_dict().items():
        _, head, layer, kind = key.split(".")
        name = f"aligned_feature_projection_heads.{head}.{layer}.conv.{kind}"
        published[name] = tensor.reshape(*tensor.shape, 1) if kind == "weight" else tensor
    other = AlignmentHeads(config)
    other.load_published(published | {"decoder.conv_in.conv.bias": torch.zeros(96)})

    _, features = TurboVaedDecoder(config).decode_with_features(torch.randn(2, 32, 2, 3, 3))
    projected = heads(features)
    assert {k: tuple(v.shape) for k, v in projected.items()} == {
        "mid_block": (2, 10, 2, 3, 3),
        "up_block_1": (2, 40, 3, 6, 6),
    }
    assert all(torch.equal(projected[k], v) for k, v in other(features).items())
    del published["aligned_feature_projection_heads.0.0.conv.bias"]
    with pytest.raises(ValueError, match=r"missing: \['aligned_feature_projection_heads\.0\.0"):
        other.load_published(published)


def test_heads_that_do_not_fit_the_decoder_are_refused() -> None:
    published = json.loads((GOLDEN / "turbo-vaed-hunyuan-small.json").read_text())
    config = DecoderConfig.from_published(published)  # full-width heads beside a reduced decoder
    with pytest.raises(ValueError, match="found 512 student channels for up_block_0, allowed: 32"):
        AlignmentHeads(config)


def test_match_resolution() -> None:
    assert match_resolution(torch.zeros(2, 5, 3, 2, 2), 5).shape == (2, 5, 3, 2, 2)
    assert match_resolution(torch.zeros(2, 20, 3, 2, 2), 5).shape == (2, 5, 3, 4, 4)
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    out = match_resolution(x, 1)  # channel = 4 * frame + 2 * row + column
    assert out.tolist() == [[[[[4.0, 5.0], [6.0, 7.0]]]]]
    with pytest.raises(ValueError, match="found 7 channels"):
        match_resolution(torch.zeros(1, 7, 1, 1, 1), 5)
