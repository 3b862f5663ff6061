"""MLflow stores, servers, packages and verdicts for the tests of the registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gate.made_up import evidence, use_case
from tests.loopback import mlflow_server
from turbo_vaed.export.package import IoSpec, write_package
from turbo_vaed.gate import Verdict, judge, write_verdict

Make = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="session")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real `mlflow server` on a free port of this host."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with mlflow_server(folder) as uri:
        yield uri


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a package and a verdict over it; returns the two paths."""

    def make(
        content: bytes = b"a program",
        *,
        customer: str = "demo",
        psnr_db: float = 30.0,
        needs_approval: bool = False,
        of: str | None = None,
    ) -> tuple[Path, Path]:
        folder = tmp_path / f"stages-{len(list(tmp_path.glob('stages-*')))}"
        folder.mkdir()
        (folder / "decoder.pte").write_bytes(content)
        package = write_package(
            folder / "package",
            folder / "decoder.pte",
            IoSpec(
                latent_shape=(1, 16, 3, 8, 8),
                video_shape=(1, 3, 9, 64, 64),
                frames_per_latent=4,
                first_latent_frames=1,
                halo_frames=(58, 61),
            ),
            tools=("numpy",),
        )
        verdict = _verdict(customer, of or package.sha256, psnr_db, needs_approval)
        return folder / "package", write_verdict(verdict, folder)

    return make


def _verdict(customer: str, sha256: str, psnr_db: float, needs_approval: bool) -> Verdict:
    return judge(
        evidence(
            psnr_db=psnr_db,
            ssim=0.9,
            ms_ssim=0.95,
            worst_psnr_db=25.0,
            teacher_psnr_db=30.0,
            parity_psnr_db=90.0,
            cold_start_seconds=1.0,
            peak_memory_bytes=3e8,
            package_bytes=1e7,
            latency_seconds=0.1,
            teacher_latency_seconds=0.4,
        ),
        customer=customer,
        use_case="inspection",
        thresholds=use_case(
            min_psnr_retention=0.97,
            min_psnr=26.0,
            needs_approval=needs_approval,
        ),
        min_parity_psnr=60.0,
        package_sha256=sha256,
        data_sha256="d" * 64,
        git_revision="0123abc",
        created="2026-11-22T13:00:00+00:00",
    )
