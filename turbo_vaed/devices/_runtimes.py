"""Programs opened by the runtime that they are for, behind one call: latents in, video out.

Shapes: B batch, C channels, t latent frames, h w latent; T H W video.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Latents (B, C, t, h, w) to video (B, 3, T, H, W), an array of its own in each call."""


_IMPORTS = {
    "executorch-xnnpack": ("torch", "executorch.extension.pybindings._C"),
    "litert": ("ai_edge_litert.interpreter",),
    "onnx": ("onnxruntime",),
}


def prepare(runtime: str) -> None:
    """Import the libraries of a runtime, which an app has loaded before it opens a program."""
    for name in _IMPORTS.get(runtime, ()):
        importlib.import_module(name)


def open_program(runtime: str, program: Path, threads: int) -> Run:
    """Load a program into this process, with so many threads.

    Raises:
        ValueError: no such runtime runs on this host.
    """
    if runtime not in OPENERS:
        raise ValueError(f"runtime: found {runtime!r}, allowed on this host: {', '.join(OPENERS)}")
    return OPENERS[runtime](program, threads)


def _executorch(program: Path, threads: int) -> Run:
    import torch

    # The bindings themselves: `executorch.runtime` also loads the exporter, 13 s of imports.
    from executorch.extension.pybindings import (  # type: ignore[import-untyped, unused-ignore]
        _C as executorch,
    )

    executorch._unsafe_reset_threadpool(threads)
    if (found := executorch._threadpool_get_thread_count()) != threads:
        raise RuntimeError(f"the runtime has {found} threads, {threads} were asked for")
    loaded = executorch._load_program(
        str(program), program_verification=executorch.Verification.InternalConsistency
    )
    method = loaded.load_method("forward")
    # ScalarType of the ExecuTorch runtime.
    kinds = {6: torch.float32, 5: torch.float16}
    dtype = kinds[loaded.method_meta("forward").input_tensor_meta(0).dtype()]

    def run(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        (video,) = method([torch.from_numpy(latents).to(dtype)])
        out: NDArray[np.float32] = video.float().numpy()  # outputs are copies already
        return out

    return run


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


def _onnx(program: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session = onnxruntime.InferenceSession(
        str(program), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()

    def run(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        (video,) = session.run(None, {given.name: latents})
        out: NDArray[np.float32] = video
        return out

    return run


OPENERS: dict[str, Callable[[Path, int], Run]] = {
    "executorch-xnnpack": _executorch,
    "litert": _litert,
    "onnx": _onnx,
}
"""By the runtime of a package's target. Imports are inside: a process opens one of them."""
