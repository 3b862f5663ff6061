"""A decoder as an ExecuTorch program (.pte) that is one Core ML program, for apps on iOS 17 and
later that have ExecuTorch already: float16 inside, float32 latents in and float32 video out.

ExecuTorch's Core ML backend has no runtime for Linux: `unpacked` takes the Core ML program out of
what was written, and `mil.py` executes it.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.export.coreml import make_reproducible
from turbo_vaed.export.executorch import PROGRAM_NAME, count_delegation
from turbo_vaed.export.graph import ExportError, graph_of
from turbo_vaed.runtime.files import atomic_file
from turbo_vaed.runtime.import_noise import quiet_imports, without_treespec_warnings

if TYPE_CHECKING:
    from turbo_vaed.export.export_job import ExportJob

PRECISIONS = ("fp16",)
_BACKEND = "CoreMLBackend"
_MODEL, _METADATA, _DEBUG = "model.mlpackage", "metadata.json", "debug_info.json"
"""Files of the folder that ExecuTorch keeps as one blob."""


def export_executorch_coreml(job: ExportJob) -> Path:
    """Write `decoder.pte`: latents of the job's shape in, video out.

    Raises:
        ValueError: the shape or the latent scaling does not fit the decoder.
        ExportError: Core ML did not take the whole graph as one program.
    """
    import torch

    graph = graph_of(job)
    silent = contextlib.redirect_stderr(io.StringIO())  # progress bars, one per group of passes
    with quiet_imports(), warnings.catch_warnings(), silent, without_treespec_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            exported = torch.export.export(graph, (torch.zeros(job.latent_shape),))
        buffer = _lowered(exported)
    path = job.folder / PROGRAM_NAME
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer)
    return path


def _lowered(exported: Any) -> bytes:
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import (  # type: ignore[import-untyped, unused-ignore]
        CoreMLBackend,
    )
    from executorch.backends.apple.coreml.partition import (  # type: ignore[import-untyped, unused-ignore]
        CoreMLPartitioner,
    )
    from executorch.exir import (  # type: ignore[import-untyped, unused-ignore]
        to_edge_transform_and_lower,
    )

    specs = CoreMLBackend.generate_compile_specs(
        compute_precision=ct.precision.FLOAT16, minimum_deployment_target=ct.target.iOS17
    )
    edge = to_edge_transform_and_lower(
        exported, partitioner=[CoreMLPartitioner(compile_specs=specs)]
    )
    program = edge.exported_program()
    subgraphs, outside = count_delegation(program)
    if subgraphs != 1 or outside:
        found = ", ".join(f"{count} {name}" for name, count in sorted(outside.items()))
        raise ExportError(
            f"Core ML took {subgraphs} subgraphs and left outside: {found or 'nothing'}; expected "
            "the whole graph as one"
        )
    (lowered,) = (
        module
        for module in program.graph_module.children()
        if type(module).__name__ == "LoweredBackendModule"
    )
    lowered._processed_bytes = _same_every_time(lowered._processed_bytes)
    return bytes(edge.to_executorch().buffer)


def _same_every_time(blob: bytes) -> bytes:
    """The blob without what differs from one conversion to the next."""
    from executorch.backends.apple.coreml import (  # type: ignore[import-untyped, unused-ignore]
        executorchcoreml,
    )

    with _folder_of(blob) as folder:
        (folder / _DEBUG).unlink(missing_ok=True)
        make_reproducible(folder / _MODEL)
        digest = sha256()
        for path in sorted((folder / _MODEL).rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
        metadata = json.loads((folder / _METADATA).read_text())
        metadata["identifier"] = f"executorch_{digest.hexdigest()[:32]}"
        (folder / _METADATA).write_text(json.dumps(metadata, sort_keys=True))
        return bytes(executorchcoreml.flatten_directory_contents(str(folder)))


@contextmanager
def _folder_of(blob: bytes) -> Iterator[Path]:
    from executorch.backends.apple.coreml import (  # type: ignore[import-untyped, unused-ignore]
        executorchcoreml,
    )

    with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
        is_one = executorchcoreml.unflatten_directory_contents(blob, scratch)
        found = list(Path(scratch).iterdir())
        if not is_one or len(found) != 1:
            raise ExportError("what Core ML's backend holds is no folder of ExecuTorch's")
        yield found[0]


@contextmanager
def unpacked(program: Path) -> Iterator[Path]:
    """The .mlpackage inside a .pte, as it was written; it is gone with the block.

    Raises:
        ExportError: the program is not one call of Core ML and nothing else.
    """
    with quiet_imports():
        from executorch.exir._serialize._program import (  # type: ignore[import-untyped, unused-ignore]
            deserialize_pte_binary,
        )

    found = deserialize_pte_binary(program.read_bytes()).program
    (plan,) = found.execution_plan
    calls = [type(i.instr_args).__name__ for chain in plan.chains for i in chain.instructions]
    backends = [delegate.id for delegate in plan.delegates]
    if backends != [_BACKEND] or calls != ["DelegateCall"]:
        raise ExportError(
            f"{program}: found delegates {backends} and instructions {calls}, expected one call of "
            f"{_BACKEND}"
        )
    with _folder_of(found.backend_delegate_data[0].data) as folder:
        yield folder / _MODEL
