"""The shapes that a student is exported for, and latents that fit them.

Shapes: N clips, C channels, t latent frames, h w latent; T H W video.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turbo_vaed.config.schema import Params
from turbo_vaed.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from turbo_vaed.models import DecoderConfig

LatentShape = tuple[int, int, int, int, int]
"""(1, C, t, h, w)."""


def further_shapes(params: Params, config: DecoderConfig) -> list[LatentShape]:
    """Latent shapes of `export.shapes` and of the gate's device, without the clips' own.

    Raises:
        UserError: the student decodes no latents to such a video.
    """
    found: list[LatentShape] = []
    wanted = [("export.shapes", shape) for shape in params.export.shapes]
    if params.device.shape is not None:
        wanted.append((f"devices.{params.device.name}.shape", params.device.shape))
    done = {(params.clip.frames, params.clip.size, params.clip.size)}
    for where, shape in wanted:
        if shape in done:
            continue
        done.add(shape)
        try:
            found.append(config.latent_shape(*shape))
        except ValueError as error:
            raise UserError(f"{where}: {list(shape)}: {error}") from None
    return found


def fitted(latents: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Latents (N, C, t, h, w) repeated and cut to the last three of `shape`, (1, C, t, h, w): for a
    program of another shape than the clips'. The seams are as good a test as any latents."""
    import numpy as np

    times = [-(-want // have) for want, have in zip(shape[2:], latents.shape[2:], strict=True)]
    t, h, w = shape[2:]
    return np.ascontiguousarray(np.tile(latents, (1, 1, *times))[:, :, :t, :h, :w])
