"""Programs opened by the runtime that they are for, behind one call: latents in, video out.

Shapes: B batch, C channels, t latent frames, h w latent; T H W video.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Latents (B, C, t, h, w) to video (B, 3, T, H, W), an array of its own in each call."""


def open_program(runtime: str, program: Path, threads: int) -> Run:
    """Load a program into this process, with so many threads.

    Raises:
        ValueError: no such runtime runs on this host.
    """
    if runtime not in OPENERS:
        raise ValueError(f"runtime: found {runtime!r}, allowed on this host: {', '.join(OPENERS)}")
    return OPENERS[runtime](program, threads)


def _litert(program: Path, threads: int) -> Run:
    # XNNPACK takes what it can of the graph; its kernels are the ones of an Android phone's CPU.
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(program), num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter.set_tensor(given["index"], latents)
        interpreter.invoke()
        video: NDArray[np.float32] = interpreter.get_tensor(made["index"])  # a copy
        return video

    return run


OPENERS: dict[str, Callable[[Path, int], Run]] = {
    "litert": _litert,
}
"""By the runtime of a package's target. Imports are inside: a process opens one of them."""
