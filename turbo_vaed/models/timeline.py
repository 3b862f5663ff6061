"""The frames next to a frame in time: all frames at once, or chunk by chunk.

Shapes: frames are folded into the batch with time outermost, (T*B, C, H, W).

A convolution over time asks its timeline for the frames around those that it got. `Whole` has
them all, and repeats the first and the last. `Chunked` keeps of each layer what the next chunk
will need: a layer that reaches k frames ahead gives its output k frames late, and nothing is
computed twice. The two give the same frames.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Timeline(Protocol):
    """What the layers ask for; every call stands for a place in the network."""

    batch: int
    """B: entries per frame."""

    def pad(self, x: Tensor, reach: int) -> Tensor:
        """The frames x with `reach` further ones on either side, where they are known."""

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """Those frames of x that belong to the frames y."""

    def drop_first(self, x: Tensor, frames: int) -> Tensor:
        """The frames x without the first of the video."""


class Whole:
    """All frames of a video at once."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def pad(self, x: Tensor, reach: int) -> Tensor:
        """(T*B, C, H, W) -> ((T + 2*reach)*B, C, H, W)."""
        if not reach:
            return x
        if torch.is_grad_enabled():  # slices have gradients of their own, zeros all over but there
            frames = torch.split(x, self.batch)
            return torch.cat([frames[0]] * reach + [*frames] + [frames[-1]] * reach)
        first, last = x[: self.batch], x[-self.batch :]
        return torch.cat([first] * reach + [x] + [last] * reach)

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """x as it is."""
        return x

    def drop_first(self, x: Tensor, frames: int) -> Tensor:
        """(T*B, C, H, W) -> ((T - frames)*B, C, H, W)."""
        return x[frames * self.batch :]


class Chunked:
    """One chunk of a video after another; a layer may get, and give, no frame at all.

    The network must make the same calls in the same order for every chunk: `next_chunk` goes
    back to the first of them.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.is_last = False
        self.kept: list[Tensor | None] = []
        self._dropped: list[int] = []
        self._tensor_at = self._count_at = 0

    def next_chunk(self, *, is_last: bool) -> None:
        """Begin the next chunk; the last one brings every frame that is still due."""
        assert not self.is_last, "the last chunk is through"
        self.is_last = is_last
        self._tensor_at = self._count_at = 0

    def pad(self, x: Tensor, reach: int) -> Tensor:
        """What was kept, then x; the first and the last frame of the video are repeated."""
        if not reach:
            return x
        kept, batch = self._take(), self.batch
        if kept is None and not x.shape[0]:
            self._keep(None)
            return x
        parts = [x] if kept is None else [kept, x]
        if kept is None:
            parts = [x[:batch]] * reach + parts
        if self.is_last:
            parts += [(x if x.shape[0] else parts[0])[-batch:]] * reach
        x = torch.cat(parts)
        # The frames before the next output's window are through with.
        outputs = max(0, x.shape[0] - 2 * reach * batch)
        self._keep(x[outputs:])
        return x

    def align(self, x: Tensor, y: Tensor) -> Tensor:
        """As many of the oldest frames as y has; the rest waits."""
        kept = self._take()
        x = x if kept is None else torch.cat([kept, x])
        self._keep(x[y.shape[0] :])
        return x[: y.shape[0]]

    def drop_first(self, x: Tensor, frames: int) -> Tensor:
        """x without what is left to drop."""
        if self._count_at == len(self._dropped):
            self._dropped.append(0)
        now = min(frames - self._dropped[self._count_at], x.shape[0] // self.batch)
        self._dropped[self._count_at] += now
        self._count_at += 1
        return x[now * self.batch :]

    def _take(self) -> Tensor | None:
        if self._tensor_at == len(self.kept):
            self.kept.append(None)
        return self.kept[self._tensor_at]

    def _keep(self, x: Tensor | None) -> None:
        """A copy, where the last one was if it fits: new ones each time would riddle the heap."""
        old = self.kept[self._tensor_at]
        if self.is_last or x is None:
            self.kept[self._tensor_at] = None
        elif old is not None and old.shape == x.shape:
            old.copy_(x)
        else:
            self.kept[self._tensor_at] = x.clone()
        self._tensor_at += 1
