"""Projection heads that bring student features into the teacher's space, for training only.

They are apart from the decoder so that what ships carries none.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.layers import fold_frames, unfold_frames

_PREFIX = "aligned_feature_projection_heads."


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
