"""Programs that tests of other things than exporters need: each is exported once in a test run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from tests.shared import shared_folder
from turbo_vaed.export import ExportJob, targets


@contextmanager
def exported_once(factory: pytest.TempPathFactory) -> Iterator[None]:
    """In the block, what any test process has exported before is copied: the same weights, for the
    same shape, precision, calibration and scaling. That exporters write the same bytes each time
    is a test of its own."""
    folder = shared_folder(factory) / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, runtime in targets.RUNTIMES.items():
            export = _remembered(runtime, folder)
            patch.setitem(targets.RUNTIMES, name, replace(runtime, export=export))
        yield


def _remembered(runtime: targets.Runtime, folder: Path):
    def export(job: ExportJob) -> Path:
        stored = folder / f"{runtime.name}-{_key(job)}"
        with FileLock(f"{stored}.lock"):
            if not stored.exists():
                made = runtime.export(job)
                stored.mkdir()
                _copy(made, stored / made.name)
                return made
        (program,) = stored.iterdir()
        job.folder.mkdir(parents=True, exist_ok=True)
        return _copy(program, job.folder / program.name)

    return export


def _copy(source: Path, target: Path) -> Path:
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    return Path(copy(source, target))


def _key(job: ExportJob) -> str:
    """A digest of all that decides a program."""
    scaling = [None if v is None else list(v) for v in (job.latent_mean, job.latent_std)]
    facts = [job.decoder.config.to_published(), job.latent_shape, job.precision, scaling]
    tensors = [*job.decoder.state_dict().values()]
    if job.precision == "int8":
        facts.append(job.least_parity_db)
        tensors += job.calibration
    digest = hashlib.sha256(json.dumps(facts).encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
