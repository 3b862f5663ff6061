"""Projection heads that bring student features into the teacher's space, for training only.

They are apart from the decoder so that what ships carries none. Which blocks of a student are
aligned stands in the published configs; for a derived one `aligned_config` finds it.

Shapes: B batch, C channels, T frames, t latent frames, H W positions, h w latent positions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.decoder import TurboVaedDecoder
from turbo_vaed.models.layers import fold_frames, unfold_frames

if TYPE_CHECKING:
    from turbo_vaed.models.teachers.base import Teacher

_PREFIX = "aligned_feature_projection_heads."
_MUCH_WIDER = 1.5
"""Projected channels per student channel: 2 and more at the published aligned blocks, 1 at those
passed over. In between, for a derived student is a few percent wider or narrower."""

Shape = tuple[int, int, int, int]
"""(C, T, H, W), of one clip."""


class FeatureShapes(NamedTuple):
    """Of latents (C, t, h, w), and of the outputs of the teacher's blocks for them, by block."""

    latents: Shape
    features: dict[str, Shape]


class AlignmentHeads(nn.Module):
    """Two 1x1x1 convolutions for each aligned block of `config`.

    Raises:
        ValueError: a head's student channels are not what the decoder has at its block.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        widths = config.decoder_block_out_channels[::-1]
        self.block_names = [block_name(i) for i in config.aligned_blks_indices]
        self.heads = nn.ModuleList()
        pairs = config.aligned_feature_projection_dim
        for index, (student, projected) in zip(config.aligned_blks_indices, pairs, strict=True):
            actual = widths[max(index - 1, 0)]
            if student != actual:
                raise ValueError(
                    f"aligned_feature_projection_dim: found {student} student channels for "
                    f"{block_name(index)}, allowed: {actual}, the decoder's there"
                )
            self.heads.append(
                nn.Sequential(nn.Conv2d(student, projected, 1), nn.Conv2d(projected, projected, 1))
            )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Student features (B, C, T, H, W) by block name -> projected ones, aligned blocks only."""
        return {
            name: unfold_frames(head(fold_frames(features[name])), features[name].shape[0])
            for name, head in zip(self.block_names, self.heads, strict=True)
        }

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the heads of a published checkpoint; keys of other parts are skipped.

        Raises:
            ValueError: keys are missing or unexpected, or a tensor has another shape.
        """
        own = self.state_dict()
        given = {k: v for k, v in state_dict.items() if k.startswith(_PREFIX)}
        # heads.0.1.weight (out, in, 1, 1) <- PREFIX + 0.1.conv.weight (out, in, 1, 1, 1)
        names = {}
        for key in own:
            _, head, layer, kind = key.split(".")
            names[key] = f"{_PREFIX}{head}.{layer}.conv.{kind}"
        missing, unexpected = set(names.values()) - given.keys(), given.keys() - names.values()
        wrong = [
            names[k]
            for k, v in own.items()
            if names[k] in given and given[names[k]].numel() != v.numel()
        ]
        if missing or unexpected or wrong:
            raise ValueError(
                f"these alignment heads do not fit the config; missing: {sorted(missing)}; "
                f"unexpected: {sorted(unexpected)}; of another shape: {sorted(wrong)}"
            )
        self.load_state_dict({k: given[names[k]].reshape(v.shape) for k, v in own.items()})


def block_name(index: int) -> str:
    """Published block index -> feature name: 0 is `mid_block`, i is `up_block_{i-1}`."""
    return "mid_block" if index == 0 else f"up_block_{index - 1}"


def match_resolution(projected: Tensor, teacher_channels: int) -> Tensor:
    """Rearrange a projected feature to the teacher's resolution, by its channel count.

    (B, C, T, H, W) stays; (B, 4C, T, H, W) -> (B, C, T, 2H, 2W); (B, 8C, T, H, W) ->
    (B, C, 2T-1, 2H, 2W), the first frame dropped; C = `teacher_channels`.

    Raises:
        ValueError: the channels are not 1, 4 or 8 times the teacher's.
    """
    batch, channels, frames, height, width = projected.shape
    if channels == teacher_channels:
        return projected
    if channels == 4 * teacher_channels:
        return unfold_frames(F.pixel_shuffle(fold_frames(projected), 2), batch)
    if channels == 8 * teacher_channels:
        x = projected.reshape(batch, teacher_channels, 2, 2, 2, frames, height, width)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(batch, teacher_channels, 2 * frames, 2 * height, 2 * width)[:, :, 1:]
    raise ValueError(
        f"projected feature: found {channels} channels, allowed: 1, 4 or 8 times the "
        f"teacher's {teacher_channels}"
    )


def aligned_config(config: DecoderConfig, teacher: "Teacher") -> DecoderConfig:
    """`config` where it has aligned blocks; else with those that `align` finds for this teacher.

    Raises:
        ValueError: the latents are not the teacher's, or no block can be aligned.
    """
    if config.aligned_blks_indices:
        return config
    of_teacher = feature_shapes(teacher)
    return align(config, of_teacher.features, student_shapes(config, of_teacher.latents))


def align(
    config: DecoderConfig, teacher: Mapping[str, Shape], student: Mapping[str, Shape]
) -> DecoderConfig:
    """`config` with aligned blocks after the pattern of the published students.

    Blocks of one name are compared, from the deepest to the one at which the teacher first
    upsamples. That one is aligned, and of those before it the ones whose projection is much wider
    than the student there, 1.5 times at least: where both have about the same width and resolution
    there is nothing to be made up for. It gives what all four published configs have (arXiv
    2508.09136); the rule is ours.

    A projection has the teacher's channels, 4 or 8 times where `match_resolution` has to shuffle.
    A block of which it makes no teacher's shape (Mochi's, three frames of one) is passed over.

    Args:
        config: of the student; all but its aligned blocks stays.
        teacher: shapes of its features by block, deepest first, of two latent frames at least:
            those of one do not show what becomes of time.
        student: as `student_shapes` gives it, of the same latents.

    Raises:
        ValueError: no block can be aligned.
    """
    blocks = list(teacher)
    upsampled = [name for name in blocks if teacher[name][1:] != teacher[blocks[0]][1:]]
    reached = blocks[: blocks.index(upsampled[0]) + 1] if upsampled else blocks
    pairs = {
        i: (own[0], projected)
        for i, (name, own) in enumerate(student.items())
        if name in reached and (projected := _projected(own, teacher[name]))
    }
    if not pairs:
        raise ValueError(
            f"no block can be aligned: found {dict(student)} of the student and {dict(teacher)} "
            "of the teacher, expected a block at the same resolution, or at the teacher's double; "
            "set distill.weight_feature to 0"
        )
    last = max(pairs)
    chosen = {
        i: (own, projected)
        for i, (own, projected) in pairs.items()
        if i == last or projected >= _MUCH_WIDER * own
    }
    return replace(
        config,
        aligned_blks_indices=tuple(chosen),
        aligned_feature_projection_dim=tuple(chosen.values()),
    )


def _projected(student: Shape, teacher: Shape) -> int | None:
    """Channels of the projection that `match_resolution` makes the teacher's shape of, if any."""
    _, t, h, w = student
    shuffled = {1: (t, h, w), 4: (t, 2 * h, 2 * w), 8: (2 * t - 1, 2 * h, 2 * w)}
    factors = [factor for factor, shape in shuffled.items() if shape == teacher[1:]]
    return factors[0] * teacher[0] if factors else None


def feature_shapes(teacher: "Teacher") -> FeatureShapes:
    """Of the smallest latents that show how each block changes time; they are decoded once."""
    spec = teacher.latent_spec
    frames = spec.fewest_latent_frames
    if frames == 1:
        frames += spec.latent_frames_step
    side = spec.fewest_latent_side
    latents = torch.zeros(1, spec.channels, frames, side, side)
    features = teacher.decode_with_features(latents, teacher.block_names).features
    return FeatureShapes(_shape(latents), {name: _shape(x) for name, x in features.items()})


def student_shapes(config: DecoderConfig, latents: Shape) -> dict[str, Shape]:
    """Shapes of a student's features by block for latents (C, t, h, w); nothing is computed.

    Raises:
        ValueError: the channels of the latents are not the config's.
    """
    with torch.device("meta"):
        features = TurboVaedDecoder(config).decode_with_features(torch.empty(1, *latents)).features
    return {name: _shape(x) for name, x in features.items()}


def _shape(x: Tensor) -> Shape:
    _, c, t, h, w = x.shape
    return c, t, h, w
