"""A decoder as an ONNX program, for ONNX Runtime: float32, opset 20, of one fixed shape."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.export.graph import ExportError, graph_of
from turbo_vaed.runtime.files import atomic_file
from turbo_vaed.runtime.import_noise import quiet_imports

if TYPE_CHECKING:
    from torch import nn

    from turbo_vaed.export.export_job import ExportJob

PROGRAM_NAME = "decoder.onnx"
PRECISIONS = ("fp32",)
OPSET = 20


def export_onnx(job: ExportJob) -> Path:
    """Write `decoder.onnx` into the job's folder: `latents` of its shape in, `video` out.

    Raises:
        ValueError: the shape or the latent scaling does not fit the decoder.
        ExportError: ONNX's checker refuses what was made.
    """
    import torch

    program = _bare(_converted(graph_of(job), torch.zeros(job.latent_shape)))
    path = job.folder / PROGRAM_NAME
    with atomic_file(path) as temporary:
        temporary.write_bytes(program.SerializeToString(deterministic=True))
    return path


def _converted(graph: nn.Module, latents: Any) -> Any:
    """The ModelProto of a graph, checked."""
    import torch

    with quiet_imports(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's exporter about itself
        import onnx

        made = torch.onnx.export(
            torch.export.export(graph, (latents,)),
            (latents,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["latents"],
            output_names=["video"],
            verbose=False,
        )
    assert made is not None  # it is None where a file was asked for
    program = made.model_proto
    try:
        onnx.checker.check_model(program, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker refuses the program: {error}") from error
    return program


def _bare(program: Any) -> Any:
    """The program without what only debugs it: the exporter writes stack traces, with paths."""
    parts = [program, program.graph, *program.graph.node, *program.graph.value_info]
    parts += [*program.graph.initializer, *program.graph.input, *program.graph.output]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return program
