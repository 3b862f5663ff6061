"""Every family of teachers, with a tiny random instance of each.

B batch, C channels, T frames, t latent frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.families import for_every
from turbo_vaed.config.schema import TeacherFamily
from turbo_vaed.errors import UserError
from turbo_vaed.models.teachers import (
    FAMILIES,
    Teacher,
    describe_teacher,
    load_teacher,
    teacher_flops,
)

FOUR = ((0.5, -0.5, 0.0, 0.25), (2.0, 0.5, 1.0, 4.0))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a tiny teacher must be; see tests/data/tiny-teachers."""

    compression: tuple[int, int, int]
    frames: tuple[int, int, int]
    """The shortest legal clips."""
    features: dict[str, tuple[int, int, int]]
    """Channels, frames and scale in space of each block, for the last of `frames`."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    has_posterior: bool = True


EXPECTED = {
    "ltx-video": Expected(
        compression=(4, 8, 8),
        frames=(1, 5, 9),
        features={"mid_block": (32, 3, 1), "up_block_0": (32, 5, 2), "up_block_1": (16, 9, 4)},
        statistics=((0.5,) * 8, (2.0,) * 8),
    ),
    "hunyuan-video": Expected(
        compression=(4, 8, 8),
        frames=(1, 5, 9),
        features={
            "mid_block": (16, 3, 1),
            "up_block_0": (16, 3, 2),
            "up_block_1": (16, 5, 4),
            "up_block_2": (16, 9, 8),
            "up_block_3": (16, 9, 8),
        },
        statistics=((0.0,) * 4, (1 / 0.5,) * 4),
    ),
    "cogvideox": Expected(
        compression=(4, 8, 8),
        frames=(1, 9, 17),
        features={
            "mid_block": (16, 5, 1),
            "up_block_0": (16, 9, 2),
            "up_block_1": (16, 17, 4),
            "up_block_2": (16, 17, 8),
            "up_block_3": (16, 17, 8),
        },
        statistics=((0.0,) * 4, (1 / 0.7,) * 4),
    ),
    "wan-2.1": Expected(
        compression=(4, 8, 8),
        frames=(1, 5, 9),
        features={
            "mid_block": (16, 3, 1),
            "up_block_0": (8, 5, 2),
            "up_block_1": (8, 9, 4),
            "up_block_2": (8, 9, 8),
            "up_block_3": (8, 9, 8),
        },
        statistics=FOUR,
    ),
    "wan-2.2": Expected(
        compression=(4, 16, 16),
        frames=(1, 5, 9),
        features={
            "mid_block": (32, 3, 1),
            "up_block_0": (32, 5, 2),
            "up_block_1": (32, 9, 4),
            "up_block_2": (32, 9, 8),
            "up_block_3": (16, 9, 8),
        },
        statistics=FOUR,
    ),
    "hunyuan-video-1.5": Expected(
        compression=(4, 16, 16),
        frames=(1, 5, 9),
        features={
            "mid_block": (16, 3, 1),
            "up_block_0": (16, 5, 2),
            "up_block_1": (16, 9, 4),
            "up_block_2": (8, 9, 8),
            "up_block_3": (8, 9, 16),
            "up_block_4": (8, 9, 16),
        },
        statistics=((0.0,) * 4, (1 / 1.25,) * 4),
    ),
    "ltx-2": Expected(
        compression=(4, 8, 8),
        frames=(1, 5, 9),
        features={"mid_block": (32, 3, 1), "up_block_0": (16, 5, 2), "up_block_1": (8, 9, 4)},
        statistics=((0.5,) * 8, (2.0,) * 8),
    ),
    "mochi": Expected(
        compression=(6, 8, 8),
        frames=(1, 7, 13),
        features={  # the frames before the first are cut off at the very end
            "mid_block": (32, 3, 1),
            "up_block_0": (32, 9, 2),
            "up_block_1": (32, 18, 4),
            "up_block_2": (32, 18, 8),
        },
        statistics=FOUR,
    ),
    "cosmos": Expected(
        compression=(8, 8, 8),
        frames=(1, 9, 17),
        features={  # patches of 4 in time and space come after the last block
            "mid_block": (32, 3, 1),
            "up_block_0": (32, 3, 1),
            "up_block_1": (32, 5, 2),
            "up_block_2": (32, 5, 2),
        },
        statistics=(
            (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
            (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1),
        ),
        has_posterior=False,
    ),
    "dc-ae-video": Expected(
        compression=(4, 32, 32),
        frames=(8, 12, 16),
        features={
            "mid_block": (32, 4, 1),
            "up_block_0": (32, 4, 1),
            "up_block_1": (32, 8, 2),
            "up_block_2": (32, 16, 4),
            "up_block_3": (16, 16, 8),
            "up_block_4": (8, 16, 16),
            "up_block_5": (8, 16, 32),
        },
        statistics=((0.0,) * 16, (0.5,) * 16),
        has_posterior=False,
    ),
}
EVERY = for_every(FAMILIES)


@pytest.fixture(scope="module")
def loaded(make_teacher):
    """`loaded(family)`: each teacher once."""
    kept: dict[str, Teacher] = {}

    def load(family: str) -> Teacher:
        if family not in kept:
            kept[family] = load_teacher(family, make_teacher(family))
        return kept[family]

    return load


def clips(teacher: Teacher, frames: int, *, batch: int = 2) -> Tensor:
    """Random videos (B,3,T,H,W), a few positions of the latents large.

    Not fewer: a group norm over two numbers has only their signs left, which rounding flips.
    """
    spec = teacher.latent_spec
    dice = torch.Generator().manual_seed(frames)
    h, w = (2, 1) if spec.compression_h > 16 else (3, 2)
    shape = (batch, 3, frames, h * spec.compression_h, w * spec.compression_w)
    return torch.rand(shape, generator=dice) * 2 - 1


def test_params_names_every_family() -> None:
    assert get_args(TeacherFamily) == tuple(FAMILIES) == tuple(EXPECTED)


@EVERY
def test_the_facts_are_read_from_the_files_and_agree_with_the_network(
    make_teacher, loaded, family: str
) -> None:
    folder, wanted = make_teacher(family), EXPECTED[family]
    facts, teacher = describe_teacher(family, folder), loaded(family)
    spec = facts.latent_spec
    assert (spec.compression_t, spec.compression_h, spec.compression_w) == wanted.compression
    assert spec.mean == pytest.approx(wanted.statistics[0])
    assert spec.std == pytest.approx(wanted.statistics[1])
    assert spec.shift == spec.mean
    assert spec.scaling == pytest.approx([1 / std for std in spec.std])
    assert teacher.latent_spec == spec and teacher.sha256 == facts.sha256
    assert facts.family == family and len(facts.sha256) == 64
    decoder = teacher.module.decoder
    assert facts.decoder_parameters == sum(p.numel() for p in decoder.parameters())
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert not teacher.module.training


@EVERY
def test_shapes_agree_with_the_spec_of_every_family(loaded, family: str) -> None:
    teacher = loaded(family)
    spec = teacher.latent_spec
    assert tuple(n for n in range(18) if spec.legal_frames(n))[:3] == EXPECTED[family].frames
    for frames in EXPECTED[family].frames:
        video = clips(teacher, frames)
        latents = teacher.encode(video)
        assert tuple(latents.shape) == (2, *spec.latent_shape(*video.shape[2:]))
        assert tuple(video.shape[1:]) == spec.video_shape(*latents.shape[2:])
        decoded = teacher.decode(latents)
        assert decoded.shape == video.shape
        assert torch.isfinite(decoded).all() and decoded.std() > 0.01


@pytest.mark.slow
@EVERY
def test_flops_are_counted_without_computing(make_teacher, loaded, family: str) -> None:
    """As it is counted where it is done; and a wider clip is more of it."""
    teacher, folder = loaded(family), make_teacher(family)
    video = clips(teacher, EXPECTED[family].frames[1], batch=1)
    frames, height, width = video.shape[2:]
    found = teacher_flops(family, folder, frames, height, width)
    with FlopCounterMode(display=False) as encoding:
        latents = teacher.encode(video)
    with FlopCounterMode(display=False) as decoding:
        teacher.decode(latents)
    # A CPU's attention is one operation, which is not counted there.
    assert found.encode == pytest.approx(encoding.get_total_flops(), rel=0.1)
    assert found.decode == pytest.approx(decoding.get_total_flops(), rel=0.1)
    wider = teacher_flops(family, folder, frames, height, 2 * width)
    assert wider.encode > 1.5 * found.encode > 0 and wider.decode > 1.5 * found.decode > 0


@EVERY
def test_the_mean_is_deterministic_and_a_sample_follows_its_generator(loaded, family: str) -> None:
    teacher = loaded(family)
    video = clips(teacher, EXPECTED[family].frames[1])
    mean = teacher.encode(video)
    assert torch.equal(teacher.encode(video), mean)

    def sample(seed: int) -> Tensor:
        return teacher.encode(video, torch.Generator().manual_seed(seed))

    first, again, other = (sample(seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) is not EXPECTED[family].has_posterior
    assert torch.equal(first, mean) is not EXPECTED[family].has_posterior
    if EXPECTED[family].has_posterior:
        many = torch.stack([sample(seed) for seed in range(16)])
        spread = many.std(0).mean()
        assert (many.mean(0) - mean).abs().mean() < spread  # about its mean, not another


@EVERY
def test_features_are_the_blocks_outputs_and_the_video_is_unchanged(loaded, family: str) -> None:
    teacher, wanted = loaded(family), EXPECTED[family]
    latents = teacher.encode(clips(teacher, wanted.frames[-1]))
    assert teacher.block_names == tuple(wanted.features)
    video, features = teacher.decode_with_features(latents, teacher.block_names)
    assert torch.equal(video, teacher.decode(latents))
    h, w = latents.shape[3:]
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        name: (2, channels, frames, h * scale, w * scale)
        for name, (channels, frames, scale) in wanted.features.items()
    }
    some = teacher.decode_with_features(latents, ("up_block_1",))
    assert list(some.features) == ["up_block_1"]
    assert torch.equal(some.features["up_block_1"], features["up_block_1"])
    hooks = [m for m in teacher.module.decoder.modules() if m._forward_hooks]
    assert not hooks  # none stays behind


@EVERY
def test_a_student_learns_from_what_a_teacher_returns(loaded, family: str) -> None:
    teacher = loaded(family)
    video = clips(teacher, EXPECTED[family].frames[0], batch=1)
    latents = teacher.encode(video)
    decoded, features = teacher.decode_with_features(latents, ("mid_block",))
    for wanted in (latents, teacher.decode(latents), decoded, features["mid_block"]):
        assert not wanted.requires_grad
        head = nn.Conv3d(latents.shape[1], wanted.shape[1], 1)
        found = head(nn.functional.interpolate(latents, wanted.shape[2:]))
        # A product keeps its factors for the backward pass, as a scaled target would.
        nn.functional.mse_loss(found * wanted, wanted).backward()
        assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0


@EVERY
def test_a_clip_does_not_depend_on_others_in_its_batch(loaded, family: str) -> None:
    teacher = loaded(family)
    video = clips(teacher, EXPECTED[family].frames[1])
    latents = teacher.encode(video)
    both = teacher.decode_with_features(latents, teacher.block_names)
    for i in range(2):
        torch.testing.assert_close(
            teacher.encode(video[i : i + 1]), latents[i : i + 1], atol=1e-4, rtol=0
        )
        one = teacher.decode_with_features(latents[i : i + 1], teacher.block_names)
        torch.testing.assert_close(one.video, both.video[i : i + 1], atol=1e-4, rtol=0)
        for name, feature in one.features.items():
            torch.testing.assert_close(feature, both.features[name][i : i + 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["wan-2.1", "wan-2.2"])
def test_chunks_are_joined_in_order(loaded, family: str) -> None:
    """Wan decodes a latent frame at a time: the first one's features are all its own."""
    teacher = loaded(family)
    latents = teacher.encode(clips(teacher, 9))
    whole = teacher.decode_with_features(latents, teacher.block_names).features
    first = teacher.decode_with_features(latents[:, :, :1], teacher.block_names).features
    for name in teacher.block_names:
        torch.testing.assert_close(whole[name][:, :, :1], first[name], atol=1e-5, rtol=0)


def test_a_long_clip_is_not_blended_from_chunks(loaded) -> None:
    """diffusers would decode more than 16 frames of HunyuanVideo in chunks and blend them."""
    teacher = loaded("hunyuan-video")
    latents = teacher.encode(clips(teacher, 21, batch=1))
    with torch.inference_mode():
        whole = teacher.module.decoder(teacher.module.post_quant_conv(latents))
    assert torch.equal(teacher.decode(latents), whole)


def close(found: Tensor, wanted: Tensor, share: float) -> bool:
    """Whether they differ by less than that share of the standard deviation."""
    return bool((found.float() - wanted).std() < share * wanted.std())


@EVERY
def test_bfloat16_stays_close(make_teacher, loaded, family: str) -> None:
    exact, rough = loaded(family), load_teacher(family, make_teacher(family), torch.bfloat16, "cpu")
    video = clips(exact, EXPECTED[family].frames[1])
    latents = exact.encode(video)
    (wanted, exactly), (found, roughly) = (
        teacher.decode_with_features(latents, ("mid_block",)) for teacher in (exact, rough)
    )
    assert found.dtype == roughly["mid_block"].dtype == torch.bfloat16
    assert close(roughly["mid_block"], exactly["mid_block"], 0.03)
    assert close(found, wanted, 0.3)  # random blocks magnify what rounding does before them
    if family == "cosmos":  # on a CPU; a GPU pools bfloat16
        with pytest.raises(
            UserError, match=r"Cosmos .*torch\.bfloat16 on cpu .*avg_pool3d.*float32"
        ):
            rough.encode(video)
        return
    encoded = rough.encode(video)
    assert encoded.dtype == torch.bfloat16
    assert close(encoded, latents, 0.05)


@EVERY
def test_a_teacher_refuses_videos_of_a_wrong_shape_or_value(loaded, family: str) -> None:
    teacher = loaded(family)
    shortest, legal, longer = EXPECTED[family].frames
    video = clips(teacher, legal, batch=1)
    for wrong, message in (
        (video[0], "found shape"),
        (video[:, :2], r"allowed: \(B, 3, T, H, W\)"),
        (video[:, :, :0], "none 0"),
        (video[:, :, :-1], rf"found {legal - 1} frames.*nearest are {shortest} and {legal}"),
        (torch.cat([video, video[:, :, :1]], 2), rf"nearest are {legal} and {longer}"),
        (video[..., :-1], r"found \d+x\d+ pixels, allowed: multiples of"),
        (video.clone().index_fill_(2, torch.tensor(1), torch.nan), "video: found NaN"),
        (video.clone().index_fill_(2, torch.tensor(1), torch.inf), "video: found NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher.encode(wrong)


@EVERY
def test_a_teacher_refuses_latents_of_a_wrong_shape_or_value(loaded, family: str) -> None:
    teacher = loaded(family)
    latents = teacher.encode(clips(teacher, EXPECTED[family].frames[1], batch=1)).clone()
    channels = latents.shape[1]
    for wrong, message in (
        (latents[0], "found shape"),
        (latents[:, 1:], rf"allowed: \(B, {channels}, t, h, w\)"),
        (latents.index_fill(1, torch.tensor(0), torch.nan), "latents: found NaN"),
        (latents.index_fill(1, torch.tensor(0), -torch.inf), "latents: found NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher.decode(wrong)
    with pytest.raises(ValueError, match="'up_block_9', allowed: mid_block, up_block_0"):
        teacher.decode_with_features(latents, ("mid_block", "up_block_9"))


@pytest.mark.parametrize(("family", "count"), [("cogvideox", 2), ("dc-ae-video", 1)])
def test_latents_of_an_impossible_frame_count_are_refused(loaded, family: str, count: int) -> None:
    teacher = loaded(family)
    latents = torch.zeros(1, teacher.latent_spec.channels, count, 2, 2)
    nearest = r"1 and 3" if family == "cogvideox" else r"2 and 3"
    with pytest.raises(ValueError, match=f"found {count} frames.* {nearest}"):
        teacher.decode(latents)


def test_ltx_2_cannot_reflect_what_is_one_position_wide(loaded) -> None:
    teacher = loaded("ltx-2")
    with pytest.raises(ValueError, match=r"found 16x8 pixels, .* 8x8, at least 2 of them"):
        teacher.encode(torch.zeros(1, 3, 5, 16, 8))
    with pytest.raises(ValueError, match="found 1x2 positions, allowed: at least 2x2"):
        teacher.decode(torch.zeros(1, 8, 2, 1, 2))
