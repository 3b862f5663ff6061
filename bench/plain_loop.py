"""The published training loop written plainly: what `bench/distill.py` compares with.

Each step reads crops of the source, encodes them with the teacher, decodes the latents with the
teacher for its reconstruction and features, decodes them with the student, and takes the losses:
all in eager float32, 3-D convolutions on (B, C, T, H, W), nothing kept from step to step. It
shares no code with `turbo_vaed.distill` but which clips a step takes and the learning rate, so it
is a second opinion on losses and gradients too.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain_decoder import PlainDecoder
from turbo_vaed.models import DecoderConfig


class Teacher(Protocol):
    """What the loop asks of a teacher; `turbo_vaed.models.teachers.Teacher` is one."""

    def encode(self, video: Tensor) -> Tensor: ...

    def decode_with_features(self, latents: Tensor, names: Sequence[str]) -> Any: ...


class PlainStudent(nn.Module):
    """The student in 3-D convolutions and, for training, its projections to the teacher's features.

    `heads` is two 1x1x1 convolutions for each of `config.aligned_blks_indices`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = PlainDecoder(config)
        self.aligned = config.aligned_blks_indices
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width, projected, 1), nn.Conv3d(projected, projected, 1))
            for width, projected in config.aligned_feature_projection_dim
        )

    @property
    def aligned_blocks(self) -> list[str]:
        """Names of the blocks that are aligned with the teacher's."""
        return [f"up_block_{i - 1}" if i else "mid_block" for i in self.aligned]

    def forward(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, C, t, h, w) -> video (B, 3, T, H, W), and projected states by block name."""
        blocks = [self.decoder.mid_block, *self.decoder.up_blocks]
        states: dict[int, Tensor] = {}

        def keep(i: int) -> Any:
            return lambda _module, _inputs, output: states.__setitem__(i, output)

        hooks = [blocks[i].register_forward_hook(keep(i)) for i in self.aligned]
        video = self.decoder(latents)
        for hook in hooks:
            hook.remove()
        projected = [head(states[i]) for i, head in zip(self.aligned, self.heads, strict=True)]
        return video, dict(zip(self.aligned_blocks, projected, strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a `turbo_vaed.distill.student.Student`, whose heads are 2-D."""
        own = self.state_dict()
        given = {plain_name(name): tensor for name, tensor in state.items()}
        self.load_state_dict({name: x.reshape(own[name].shape) for name, x in given.items()})


def plain_name(name: str) -> str:
    """What a weight of a `turbo_vaed.distill.student.Student` is called here."""
    return name.replace("heads.heads.", "heads.")


def shuffled(x: Tensor, like: Tensor) -> Tensor:
    """A projected feature at the teacher's resolution: channels to rows and columns, and to frames
    (the first dropped), as many as (B, C, T', H', W') `like` has more of."""
    factor_h, factor_t = like.shape[3] // x.shape[3], 2 if like.shape[2] > x.shape[2] else 1
    if factor_h == 1:
        return x
    b, _, t, h, w = x.shape
    x = x.reshape(b, like.shape[1], factor_t, 2, 2, t, h, w)
    x = torch.einsum("bcfyxthw->bctfhywx", x).reshape(b, -1, t * factor_t, 2 * h, 2 * w)
    return x[:, :, factor_t - 1 :]


def gradient_loss(video: Tensor, source: Tensor) -> Tensor:
    """Mean absolute error of the differences of neighbours, over time, rows and columns."""
    each = [(video.diff(dim=d) - source.diff(dim=d)).abs().mean() for d in (2, 3, 4)]
    return (each[0] + each[1] + each[2]) / 3


def losses(
    student: PlainStudent,
    latents: Tensor,
    source: Tensor,
    teacher_video: Tensor,
    teacher_features: Mapping[str, Tensor],
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The parts and their weighted sum, `loss`.

    Args:
        weights: of `source`, `teacher`, `perceptual` and `feature`; one of weight 0 is left out.
    """
    video, projected = student(latents)
    parts: dict[str, Tensor] = {}
    if weights["source"]:
        parts["source"] = F.l1_loss(video, source)
    if weights["teacher"]:
        parts["teacher"] = F.l1_loss(video, teacher_video)
    if weights["perceptual"]:
        parts["perceptual"] = gradient_loss(video, source)
    if weights["feature"]:
        pairs = [(shuffled(projected[name], f), f) for name, f in teacher_features.items()]
        parts["feature"] = torch.stack([F.mse_loss(ours, f) for ours, f in pairs]).sum()
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return {"loss": total, **parts}


class PlainLoop:
    """Student, its average, AdamW, and the steps."""

    def __init__(
        self,
        student: PlainStudent,
        teacher: Teacher,
        *,
        weights: Mapping[str, float],
        betas: tuple[float, float],
        weight_decay: float,
        ema_decay: float,
    ) -> None:
        self.student, self.teacher, self.weights = student, teacher, weights
        self.ema_decay, self.steps = ema_decay, 0
        self.ema = copy.deepcopy(student.decoder).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            student.parameters(), betas=betas, weight_decay=weight_decay
        )

    def step(self, source: Tensor, learning_rate: float) -> float:
        """One step on crops of the source (B, 3, T, H, W) in [-1, 1]; returns the loss."""
        latents = self.teacher.encode(source)
        taught = self.teacher.decode_with_features(latents, self.student.aligned_blocks)
        self.optimizer.zero_grad()
        parts = losses(self.student, latents, source, taught.video, taught.features, self.weights)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        # Averaging warms up, so that a short run's average is not its start.
        decay = min(self.ema_decay, (self.steps + 1) / (self.steps + 10))
        with torch.no_grad():
            for mean, now in zip(
                self.ema.parameters(), self.student.decoder.parameters(), strict=True
            ):
                mean.lerp_(now, 1 - decay)
        self.steps += 1
        return parts["loss"].item()


def read_source(video: Any, clips: Sequence[int], size: int, seed: tuple[int, ...]) -> Tensor:
    """A crop of each clip, anywhere in it: (B, 3, T, size, size) in [-1, 1].

    Args:
        video: the Zarr array, uint8 (N, T, H, W, 3).
        size: in pixels.
        seed: of where the crops lie.
    """
    rng, (_, _, height, width, _), crops = np.random.default_rng(seed), video.shape, []
    for clip in clips:
        row, column = rng.integers(height - size + 1), rng.integers(width - size + 1)
        crops.append(np.asarray(video[clip, :, row : row + size, column : column + size]))
    pixels = torch.from_numpy(np.stack(crops)).float()
    return pixels.permute(0, 4, 1, 2, 3).contiguous() / 127.5 - 1
