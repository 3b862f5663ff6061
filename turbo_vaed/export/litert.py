"""A decoder as a LiteRT program (.tflite), made in an environment of its own.

litert-torch wants other versions than the rest of the project, so it lives in `.venv-litert`
(`make litert`) and is started as a child process. What goes there is a graph that knows no model,
saved by `torch.export` (both environments have the same PyTorch); what comes back is the program.

fp32, fp16 (weights in half precision, computed in float32) and int8 (weights per channel,
activations quantised as they come, so that nothing is calibrated; `_litert_child.py` says what
stays float).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.errors import UserError
from turbo_vaed.export.graph import ExportError, graph_of
from turbo_vaed.runtime.isolated import ChildFailed, run_command
from turbo_vaed.settings import litert_environment

if TYPE_CHECKING:
    from torch import nn

    from turbo_vaed.export.export_job import ExportJob

PROGRAM_NAME = "decoder.tflite"
PRECISIONS = ("fp32", "fp16", "int8")
CONVERTERS = ("litert-torch", "litert-converter", "ai-edge-quantizer")
"""What makes the program, in the environment of its own."""
TIMEOUT_SECONDS = 1800.0
"""Of one conversion; a tiny student's takes half a minute."""
_CHILD = Path(__file__).with_name("_litert_child.py")


def export_litert(job: ExportJob) -> Path:
    """Write `decoder.tflite` into the job's folder: latents of its shape in, video out, float32.

    Raises:
        UserError: the converter's environment is not there.
        ValueError: the shape or the latent scaling does not fit the decoder.
        ExportError: the converter failed; its last words are in the message.
    """
    graph = graph_of(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".litert-") as scratch:
        program = Path(scratch) / PROGRAM_NAME
        program.write_bytes(_converted(graph, job.latent_shape, Path(scratch)))
        if job.precision != "fp32":
            _child("quantise", str(program), job.precision)
        return program.replace(job.folder / PROGRAM_NAME)


_last: tuple[str, bytes] | None = None
"""The float program that was made last, by what it was made of: the three precisions begin with
the same one, which takes half a minute."""


def _converted(graph: nn.Module, shape: tuple[int, ...], scratch: Path) -> bytes:
    """The float program of a graph."""
    global _last
    key = _key(graph, shape)
    if _last is None or _last[0] != key:
        saved, program = scratch / "graph.pt2", scratch / "float.tflite"
        _save(graph, shape, saved)
        _child("convert", str(saved), str(program))
        if not program.is_file():
            raise ExportError("the LiteRT converter ended well and left no program")
        _last = key, program.read_bytes()
    return _last[1]


def _key(graph: nn.Module, shape: tuple[int, ...]) -> str:
    """A digest of what the graph computes: its layers, its numbers and the latents' shape."""
    digest = hashlib.sha256(f"{graph}{shape}".encode())
    for name, tensor in graph.state_dict(keep_vars=False).items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def converter_versions() -> Mapping[str, str]:
    """Versions of what makes the program, by name.

    Raises:
        UserError: the converter's environment is not there, or not complete.
    """
    _python()
    places = [str(place) for place in litert_environment().glob("lib/python*/site-packages")]
    found = {d.metadata["Name"]: d.version for d in distributions(path=places)}
    if missing := [name for name in CONVERTERS if name not in found]:
        raise UserError(
            f"{litert_environment()}: without {', '.join(missing)}; make it again with: make litert"
        )
    return {name: found[name] for name in CONVERTERS}


def _python() -> Path:
    python = litert_environment() / "bin" / "python"
    if not python.is_file():
        raise UserError(
            f"{python}: no such file; LiteRT programs are made in an environment of their own. "
            "Make it with `make litert` (1.8 GB), or take the litert targets out of export.targets"
        )
    return python


def _save(graph: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    import torch

    with torch.no_grad():
        exported = torch.export.export(graph, (torch.zeros(shape),))
    torch.export.save(exported, path)


def _child(*arguments: str) -> None:
    """Run `_litert_child.py` in the converter's environment; an ExportError where it fails."""
    command = [str(_python()), str(_CHILD), *arguments]
    try:
        run_command(command, timeout_seconds=TIMEOUT_SECONDS, what="the LiteRT converter")
    except ChildFailed as error:
        raise ExportError(str(error)) from None
