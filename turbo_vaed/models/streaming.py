"""Decoding chunk by chunk, in memory that does not grow with the video.

Shapes: B batch, C channels, T video frames, t latent frames, H W video, h w latent.

In time nothing is computed twice: every convolution keeps the frames that its next chunk needs
(`timeline.Chunked`), and the last frames of a chunk come with the next one. In space, where one
frame alone does not fit, tiles are decoded with all the latents around them that their pixels
depend on; that is far (`halo`), so use as few tiles as fit. The frames are those of one-shot
decoding: computed, not blended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise, tee

import torch
from torch import Tensor

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.decoder import Step, TurboVaedDecoder
from turbo_vaed.models.layers import fold_frames, unfold_frames
from turbo_vaed.models.timeline import Chunked

_FRAMES_AT_ONCE = 2
"""A pair for Winograd. More are no faster, and the layer at work holds each several times over."""

Flow = Iterator[tuple[list[Tensor], bool]]
"""Frames (n*B, C, H, W) on their way, and whether they are the last. They come in a list of one,
out of which the next layer takes them: a generator that waits would keep its own alive."""


def stream(
    decoder: TurboVaedDecoder,
    latents: Tensor | Iterable[Tensor],
    *,
    chunk: int = 1,
    tile: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Decode as `decoder` does, without gradients, in pieces (B, 3, n, H, W) as they are complete.

    Memory does not grow with the length of the video. The frames are those of one call of the
    decoder up to rounding: each is computed once, from all that it depends on, of which a part
    lies ahead, so the first piece comes some latent frames late. Best on a decoder made
    `for_inference`: another makes its 2-D kernels again for every few frames.

    Args:
        latents: (B, C, t, h, w), or such chunks one after another, where not even the latents fit.
        chunk: latent frames at a time, of a tensor.
        tile: (h, w) at most so many latents at a time, where one frame does not fit.

    Raises:
        ValueError: a shape that is not the config's, no chunk at all, or a tile that is smaller
            than what its pixels depend on.
    """
    if chunk < 1:
        raise ValueError(f"chunk: found {chunk}, allowed: 1 latent frame or more")
    reach = halo(decoder.config)
    if tile is not None and min(tile) < reach:
        raise ValueError(
            f"tile: found {tile[0]}x{tile[1]} latents, allowed: {reach} or more each way, which "
            "is how far a pixel sees; smaller tiles would mostly decode their surroundings"
        )
    if isinstance(latents, Tensor):
        decoder.check(latents)
    pieces = torch.split(latents, chunk, dim=2) if isinstance(latents, Tensor) else latents
    return _stream(decoder, _checked(decoder, pieces), chunk, tile)


@torch.no_grad()
def _stream(
    decoder: TurboVaedDecoder, pieces: Iterator[Tensor], chunk: int, tile: tuple[int, int] | None
) -> Iterator[Tensor]:
    first = next(pieces)
    tiles = _tiles(decoder.config, first.shape, tile)
    whole = chain([first], pieces)
    # `tee` holds back up to 57 pieces, so it is not asked for one.
    owns = tee(whole, len(tiles)) if len(tiles) > 1 else [whole]
    lanes = [_lane(decoder, t.cut(own), chunk) for t, own in zip(tiles, owns, strict=True)]
    scale = decoder.config.spatial_compression
    *_, height, width = first.shape
    for parts in zip(*lanes, strict=True):
        if len(tiles) == 1:
            yield parts[0]
            continue
        video = parts[0].new_empty(*parts[0].shape[:3], height * scale, width * scale)
        for t, part in zip(tiles, parts, strict=True):
            kept = part[..., t.kept_rows(scale), t.kept_columns(scale)]
            video[..., _scaled(t.rows, scale), _scaled(t.columns, scale)] = kept
        yield video


def _lane(decoder: TurboVaedDecoder, pieces: Iterator[Tensor], chunk: int) -> Iterator[Tensor]:
    """The frames (B, 3, n, H, W) of one tile: a chain of layers, each with its own timeline."""
    first = next(pieces)
    batch = first.shape[0]
    flow, limit = _with_last(chain([first], pieces)), chunk
    for _, steps in decoder.blocks():
        for step in steps:
            flow = _through(step, flow, batch, min(limit, _FRAMES_AT_ONCE))
            limit *= getattr(step, "time_factor", 1)
    for box, _ in flow:
        yield unfold_frames(box.pop(), batch)


def _through(step: Step, flow: Flow, batch: int, limit: int) -> Flow:
    """The frames that come out of a layer; it gets at most `limit` at a time."""
    time = Chunked(batch)
    for box, is_last in flow:
        parts = list(torch.split(box.pop(), limit * batch))
        while parts:
            time.next_chunk(is_last=is_last and len(parts) == 1)
            box = [step(parts.pop(0), time)]
            if box[0].shape[0]:
                yield box, time.is_last


def _checked(decoder: TurboVaedDecoder, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    first: torch.Size | None = None
    for piece in pieces:
        decoder.check(piece)
        first = first or piece.shape
        if (piece.shape[:2], piece.shape[3:]) != (first[:2], first[3:]):
            raise ValueError(
                f"latents: found a chunk of shape {tuple(piece.shape)} after one of "
                f"{tuple(first)}, allowed: another number of frames only"
            )
        yield piece
    if first is None:
        raise ValueError("latents: found no chunk, allowed: one or more")


def halo(config: DecoderConfig) -> int:
    """Latents on each side that a pixel depends on: the summed reach of all convolutions."""
    widths = config.decoder_block_out_channels[::-1]
    layers = config.decoder_layers_per_block[::-1]
    reaches = [
        config.decoder_dw_kernel_size // 2 if separable else 1
        for separable in config.decoder_is_dw_conv[::-1]
    ]
    pixel = Fraction(1)  # of the present level, in latents
    total = pixel + 2 * layers[0] * reaches[0]  # conv_in and the middle block
    before = widths[0]
    for i, (width, scales) in enumerate(
        zip(widths, config.spatio_temporal_scaling[::-1], strict=True)
    ):
        if width != before:
            total += 2 * reaches[i + 1] * pixel
        if scales:
            total += pixel
            pixel /= 2
        total += 2 * layers[i + 1] * reaches[i + 1] * pixel
        before = width
    for _ in range(config.patch_size.bit_length() - 1):
        total += pixel
        pixel /= 2
    return math.ceil(total + pixel)


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """A part of the latents' plane, and how far it is padded."""

    rows: slice
    columns: slice
    padded_rows: slice
    padded_columns: slice

    def cut(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """The padded tile of every piece."""
        return (piece[..., self.padded_rows, self.padded_columns] for piece in pieces)

    def kept_rows(self, scale: int) -> slice:
        return _within(self.rows, self.padded_rows, scale)

    def kept_columns(self, scale: int) -> slice:
        return _within(self.columns, self.padded_columns, scale)


def _tiles(config: DecoderConfig, shape: torch.Size, tile: tuple[int, int] | None) -> list[_Tile]:
    height, width = shape[3:]
    tile_height, tile_width = tile or (height, width)
    reach = halo(config)
    return [
        _Tile(rows=rows, columns=columns, padded_rows=padded_rows, padded_columns=padded_columns)
        for rows, padded_rows in _cuts(height, tile_height, reach)
        for columns, padded_columns in _cuts(width, tile_width, reach)
    ]


def _cuts(size: int, tile: int, reach: int) -> list[tuple[slice, slice]]:
    """Parts of nearly equal size, at most `tile` each, and the same with their surroundings."""
    count = math.ceil(size / tile)
    edges = [round(i * size / count) for i in range(count + 1)]
    return [
        (slice(a, b), slice(max(0, a - reach), min(size, b + reach))) for a, b in pairwise(edges)
    ]


def _within(part: slice, padded: slice, scale: int) -> slice:
    return slice((part.start - padded.start) * scale, (part.stop - padded.start) * scale)


def _scaled(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)


def _with_last(pieces: Iterator[Tensor]) -> Flow:
    """The frames of every piece, and whether they are the last."""
    waiting = next(pieces)
    for piece in pieces:
        yield [fold_frames(waiting)], False
        waiting = piece
    yield [fold_frames(waiting)], True
