"""Projection heads: their weights and shapes, the rearrangement to the teacher's, and which blocks
of a student are aligned with which teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.families import for_every
from turbo_vaed.models import (
    PRESETS,
    AlignmentHeads,
    DecoderConfig,
    TurboVaedDecoder,
    match_resolution,
)
from turbo_vaed.models.alignment import align, aligned_config, student_shapes
from turbo_vaed.models.dc_ae import PUBLISHED, DcAe
from turbo_vaed.models.sizing import _layout, scaled
from turbo_vaed.models.teachers import (
    FAMILIES,
    LatentSpec,
    Network,
    Teacher,
    TeacherFacts,
    load_teacher,
)
from turbo_vaed.models.teachers.dc_ae_video import decoder_blocks
from turbo_vaed.models.teachers.diffusers_vae import ROWS
from turbo_vaed.runtime.import_noise import quiet_imports

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY_LTX = Path(__file__).parents[2] / "assets" / "teachers" / "tiny-ltx"


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
    with pytest.raises(ValueError, match=r"found 512 .*up_block_0, allowed: 32"):
        AlignmentHeads(config)


def test_match_resolution() -> None:
    assert match_resolution(torch.zeros(2, 5, 3, 2, 2), 5).shape == (2, 5, 3, 2, 2)
    assert match_resolution(torch.zeros(2, 20, 3, 2, 2), 5).shape == (2, 5, 3, 4, 4)
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    out = match_resolution(x, 1)  # channel = 4 * frame + 2 * row + column
    assert out.tolist() == [[[[[4.0, 5.0], [6.0, 7.0]]]]]
    with pytest.raises(ValueError, match="found 7 channels"):
        match_resolution(torch.zeros(1, 7, 1, 1, 1), 5)


FAMILIES_OF = {
    "turbo-vaed-ltx": "ltx-video",
    "turbo-vaed-hunyuan": "hunyuan-video",
    "turbo-vaed-cogvideox": "cogvideox",
    "turbo-vaed-dc": "dc-ae-video",
}


def published_teacher(family: str) -> Teacher:
    """Of published widths, with shapes for weights."""
    with quiet_imports():  # not on the meta device: what a module makes on import would stay there
        from diffusers.models import autoencoders
    with torch.device("meta"):
        if family == "dc-ae-video":
            module = DcAe(PUBLISHED["dc-ae-f32t4c128"])
        else:
            module = getattr(autoencoders, ROWS[family].class_name)()
    if family == "dc-ae-video":
        blocks = decoder_blocks(module)
    else:
        module.use_framewise_decoding = False
        ups = {f"up_block_{i}": block for i, block in enumerate(module.decoder.up_blocks)}
        blocks = {"mid_block": module.get_submodule(ROWS[family].mid_block), **ups}

    def decode(latents: Tensor) -> Tensor:
        found = module.decode(latents)
        return found if isinstance(found, Tensor) else found.sample

    def no_encode(_video: Tensor, _generator: torch.Generator | None) -> Tensor:
        raise AssertionError("not asked for")

    network = Network(module=module, encode=no_encode, decode=decode, blocks=blocks)
    channels = 128 if family in ("ltx-video", "dc-ae-video") else 16
    spec = LatentSpec(
        channels=channels,
        compression_t=4,
        compression_h=8,
        compression_w=8,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        decoder_parameters=1,
        latent_frames_step=2 if family == "cogvideox" else 1,
        fewest_latent_frames=2 if family == "dc-ae-video" else 1,
    )
    return Teacher(network, TeacherFacts(family=family, latent_spec=spec, sha256=""))


@pytest.mark.parametrize("preset", FAMILIES_OF)
def test_the_published_alignments_are_derived_from_shapes(preset: str) -> None:
    published = PRESETS[preset]
    bare = replace(published, aligned_blks_indices=(), aligned_feature_projection_dim=())
    assert aligned_config(bare, published_teacher(FAMILIES_OF[preset])) == published


@pytest.mark.parametrize(("width", "blocks"), [(456, (2,)), (568, (2,)), (336, (0, 1, 2))])
def test_a_student_of_nearly_the_published_widths_is_aligned_the_same(
    width: int, blocks: tuple[int, ...]
) -> None:
    config = replace(
        PRESETS["turbo-vaed-ltx"],
        decoder_block_out_channels=(64, 128, width // 2, width),
        aligned_blks_indices=(),
        aligned_feature_projection_dim=(),
    )
    assert aligned_config(config, published_teacher("ltx-video")).aligned_blks_indices == blocks


def test_a_config_with_aligned_blocks_is_left_alone() -> None:
    config = PRESETS["turbo-vaed-hunyuan"]
    teacher = cast("Teacher", None)  # not even asked
    assert aligned_config(config, teacher) is config


ALIGNED = {
    "ltx-video": ((1, 256),),
    "hunyuan-video": ((1, 64),),
    "cogvideox": ((1, 128),),
    "wan-2.1": ((1, 64),),
    "wan-2.2": ((1, 256),),
    "hunyuan-video-1.5": ((1, 128),),
    "ltx-2": ((1, 128),),
    "mochi": ((0, 32),),  # above it the teacher makes three frames of one
    "cosmos": ((2, 32),),
    "dc-ae-video": ((2, 32),),
}
"""Block and projected channels, with the tiny teachers of tests/data/tiny-teachers."""


@for_every(FAMILIES)
def test_a_derived_student_is_aligned_with_every_family(make_teacher, family: str) -> None:
    teacher = load_teacher(family, make_teacher(family))
    spec = teacher.latent_spec
    bare = scaled(_layout(spec), 16)
    config = aligned_config(bare, teacher)
    pairs = config.aligned_feature_projection_dim
    found = zip(config.aligned_blks_indices, (projected for _, projected in pairs), strict=True)
    assert tuple(found) == ALIGNED[family]
    unaligned = {"aligned_blks_indices": (), "aligned_feature_projection_dim": ()}
    assert replace(config, **unaligned) == bare

    # What was found of the smallest latents holds for larger ones.
    frames = spec.fewest_latent_frames + 2 * spec.latent_frames_step
    latents = torch.randn(2, spec.channels, frames, 3, 2)
    projected = AlignmentHeads(config)(TurboVaedDecoder(config).decode_with_features(latents)[1])
    wanted = teacher.decode_with_features(latents, list(projected)).features
    for name, feature in wanted.items():
        assert match_resolution(projected[name], feature.shape[1]).shape == feature.shape


def test_the_small_student_is_aligned_at_its_second_up_block() -> None:
    teacher = load_teacher("ltx-video", TINY_LTX)
    config = aligned_config(PRESETS["tiny-ltx"], teacher)
    assert config.aligned_blks_indices == (2,)
    assert config.aligned_feature_projection_dim == ((32, 96),)


def test_align_by_shapes_alone() -> None:
    config = PRESETS["tiny-ltx"]
    student = student_shapes(config, (32, 3, 2, 2))
    assert student == {
        "mid_block": (96, 3, 2, 2),
        "up_block_0": (96, 3, 2, 2),
        "up_block_1": (32, 5, 4, 4),
        "up_block_2": (16, 9, 8, 8),
    }
    deep = {"mid_block": (200, 3, 2, 2), "up_block_0": (100, 3, 2, 2)}
    # All that the teacher has, where it never upsamples; the last whatever its width.
    assert align(config, deep, student).aligned_feature_projection_dim == ((96, 200), (96, 100))
    further = {**deep, "up_block_1": (64, 5, 4, 4), "up_block_2": (64, 9, 8, 8)}
    assert align(config, further, student).aligned_blks_indices == (0, 2)
    # No shuffle makes four times the height.
    assert align(config, {**deep, "up_block_1": (64, 5, 16, 16)}, student).aligned_blks_indices == (
        0, 1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"distill\.weight_feature"):
        align(config, {"mid_block": (96, 3, 3, 3)}, student)
    with pytest.raises(ValueError, match="latents: found shape"):
        student_shapes(config, (31, 3, 2, 2))
