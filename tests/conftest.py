"""What every test may use: small videos, made on the spot."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import videos
from tests.shared import made_once
from turbo_vaed.runtime import garbage

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# One thread per process, as a worker computes: sums in another order are other numbers.
os.environ["OMP_NUM_THREADS"] = "1"

# As the Makefile has it: hundreds of processes start, each in half the time with kept byte code.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

garbage.collect_rarely()
garbage.skip_last_collections()

# Nothing phones home, whoever starts the tests: as the Makefile sets it.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# No test asserts times, and on a busy machine the first example of one takes long.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

LONGEST = ("tests/e2e", "tests/export", "tests/drills", "tests/stages", "tests/devices")
"""Folders that begin first, so that no worker is left alone with one of them at the end."""

MakeVideo = Callable[..., Path]


SLOW_FIXTURES = {"browser", "judged", "on_ray", "own_postgres", "postgres", "ray_cluster", "server"}
"""Those that start a server or a browser, or that export: a test that takes one is slow."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In the fast loop a file of slow tests alone is not imported: exporters take seconds."""
    if "not slow" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    marked = ("pytestmark = pytest.mark.slow\n", "pytestmark = [pytest.mark.slow")
    return any(mark in collection_path.read_text(encoding="utf-8") for mark in marked) or None


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((i for i, at in enumerate(LONGEST) if item.nodeid.startswith(at)), len(LONGEST))

    for item in items:
        variants = item.name.partition("[")[2].rstrip("]").split("-")
        is_on_a_server = {"postgresql", "bucket"} & set(variants)
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())) or is_on_a_server:
            item.add_marker(pytest.mark.slow)
    items.sort(key=rank)
    gc.collect()
    gc.freeze()  # what collecting the tests imported lives to the end


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """`tests.videos.make_video`."""
    return videos.make_video


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LTX-Video VAE of few weights, saved as diffusers saves it: 8 channels, 4x8x8."""

    def make(folder: Path) -> None:
        import torch
        from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo

        torch.manual_seed(0)
        module = AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 16),
            decoder_block_out_channels=(8, 16),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, True),
            decoder_spatio_temporal_scaling=(True, True),
            decoder_inject_noise=(False,) * 3,
            downsample_type=("conv",) * 2,
            upsample_residual=(False,) * 2,
            upsample_factor=(1,) * 2,
            patch_size=2,
        )
        module.latents_mean.fill_(0.5)
        module.latents_std.fill_(2.0)
        module.save_pretrained(folder)

    return made_once(tmp_path_factory, "tiny-teacher", make)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables: once, and a copy for each test."""

    def make(folder: Path) -> None:
        from turbo_vaed.registry.client import open_tracking

        open_tracking(f"sqlite:///{folder}/new/mlflow.db")

    return made_once(tmp_path_factory, "mlflow", make) / "new" / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URL of an MLflow store without runs."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A Ray of two CPUs for all tests of this process that lose no machine; nobody has joined."""
    from tests.ray_head import ray_head

    with ray_head() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def on_ray(ray_cluster: Cluster) -> Iterator[None]:
    """This process has joined `ray_cluster`."""
    import ray

    ray.init(address=ray_cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    for actor in ray.util.list_named_actors(all_namespaces=True):
        ray.kill(ray.get_actor(**actor))  # Ray Data's poll for as long as the cluster lives
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 (moto's) that answers on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a fresh bucket; every AWS client of the test finds it by the environment."""
    import boto3

    given = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "TURBO_VAED_ARRAY_CACHE": str(tmp_path / "array-cache"),
    }
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"
