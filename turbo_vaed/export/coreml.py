"""A decoder as a Core ML program (.mlpackage, ML Program) for iOS 17 and later: float16 inside,
float32 latents in and float32 video out.

coremltools converts on Linux, where nothing of Core ML runs: `mil.py` executes what was written.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from turbo_vaed.export.graph import graph_of
from turbo_vaed.runtime.import_noise import quiet_imports

if TYPE_CHECKING:
    from torch import nn

    from turbo_vaed.export.export_job import ExportJob

PROGRAM_NAME = "decoder.mlpackage"
PRECISIONS = ("fp16",)
MODEL = "com.apple.CoreML/model.mlmodel"
"""Below a package's `Data`: the program; its weights lie next to it."""
_DEBUG_FILE = "executorch_debug_handle_mapping.json"


def export_coreml(job: ExportJob) -> Path:
    """Write the folder `decoder.mlpackage`: `latents` of the job's shape in, `video` out.

    Raises:
        ValueError: the shape or the latent scaling does not fit the decoder.
    """
    import torch

    model = _converted(graph_of(job), torch.zeros(job.latent_shape))
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / PROGRAM_NAME
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=".coreml-") as scratch:
        made = Path(scratch) / PROGRAM_NAME  # coremltools wants this ending
        model.save(str(made))
        make_reproducible(made)
        shutil.rmtree(path, ignore_errors=True)
        return made.rename(path)


def _converted(graph: nn.Module, latents: Any) -> Any:
    """The coremltools model of a graph."""
    import numpy as np
    import torch

    silent = contextlib.redirect_stderr(io.StringIO())  # progress bars, one per group of passes
    with quiet_imports(), warnings.catch_warnings(), silent, torch.no_grad():
        warnings.simplefilter("ignore")
        import coremltools as ct

        exported = torch.export.export(graph, (latents,)).run_decompositions({})
        return ct.convert(
            exported,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16,
            inputs=[ct.TensorType(name="latents", shape=tuple(latents.shape), dtype=np.float32)],
            outputs=[ct.TensorType(name="video", dtype=np.float32)],
            skip_model_load=True,
        )


def make_reproducible(package: Path) -> None:
    """Take out what differs from one conversion to the next: date, random names, debug handles."""
    with quiet_imports():
        from coremltools.proto import Model_pb2

    (package / _DEBUG_FILE).unlink(missing_ok=True)
    path = package / "Data" / MODEL
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    path.write_bytes(spec.SerializeToString(deterministic=True))
    path.chmod(0o644)
    manifest = package / "Manifest.json"
    found = json.loads(manifest.read_text())
    names = {old: str(uuid5(NAMESPACE_URL, item["path"])) for old, item in
             found["itemInfoEntries"].items()}  # fmt: skip
    found["itemInfoEntries"] = {names[old]: item for old, item in found["itemInfoEntries"].items()}
    found["rootModelIdentifier"] = names[found["rootModelIdentifier"]]
    manifest.write_text(json.dumps(found, indent=4, sort_keys=True) + "\n")
