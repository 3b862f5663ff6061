"""Stages whose workers cannot read this machine's disk, but a bucket (moto's)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import zarr

from tests import encoded
from tests.drills.stage import fit_here
from turbo_vaed.cluster import nodes
from turbo_vaed.cluster.session import worker_session
from turbo_vaed.costs import Ledger
from turbo_vaed.distill import train
from turbo_vaed.errors import UserError
from turbo_vaed.metering.storage_charges import charge_arrays
from turbo_vaed.models import load_decoder
from turbo_vaed.planning import worker_files
from turbo_vaed.planning.worker_files import (
    CLIPS,
    LATENTS,
    TEACHER,
    check_reach,
    for_workers,
    remove_unused,
    shared_now,
)
from turbo_vaed.settings import Settings
from turbo_vaed.stages import distill, encode
from turbo_vaed.storage.published import stored_files
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow


def customer(root: Path, teacher: Path, **changes: Any) -> Workspace:
    """`tests.encoded.customer` on a cluster of a known price, with the teacher's targets."""
    root.mkdir(exist_ok=True)
    made = encoded.customer(root, teacher)
    priced = dataclasses.replace(made.params.prices, cluster_usd_per_hour=Decimal("0.1"))
    changed = dataclasses.replace(made.params.distill, weight_teacher=0.5, **changes)
    params = dataclasses.replace(made.params, prices=priced, distill=changed)
    return dataclasses.replace(made, params=params)


def student(workspace: Workspace) -> dict[str, torch.Tensor]:
    return load_decoder(workspace.folder("distill") / "student").state_dict()


def furthest(one: Workspace, other: Workspace) -> float:
    ours, theirs = student(one), student(other)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.fixture
def shared(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where arrays and checkpoints are shared; the prefix of the arrays."""
    monkeypatch.setenv("TURBO_VAED_ARRAYS", f"{s3_url}/arrays")
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", f"{s3_url}/checkpoints")
    return f"{s3_url}/arrays"


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is this process."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(train, "_fit", fit_here(train.train_worker))
    for module, name in ((distill, "worker_session"), (nodes, "ray_session")):
        monkeypatch.setattr(module, name, lambda *_: nullcontext())


def test_a_student_from_a_bucket_is_the_one_from_files(
    tmp_path: Path, tiny_teacher: Path, without_ray: None, shared: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Recomputed targets, so that the teacher is read from the bucket as well."""
    from_bucket = customer(tmp_path / "a", tiny_teacher, teacher_targets="recompute")
    distill.run(from_bucket)
    found = stored_files(f"{shared}/demo")
    assert {one.path.split("/arrays/demo/")[1].split("/")[0] for one in found} == {
        "clip", "encode", "teacher"
    }  # fmt: skip
    uploaded_at = [one.changed_at for one in found]
    monkeypatch.delenv("TURBO_VAED_ARRAYS")
    from_files = customer(tmp_path / "b", tiny_teacher, teacher_targets="recompute")
    distill.run(from_files)
    assert not (from_files.work / "shared.json").exists()
    assert furthest(from_bucket, from_files) <= 1e-6
    monkeypatch.setenv("TURBO_VAED_ARRAYS", shared)
    settings = Settings.from_environment(from_bucket.root)
    for what in (CLIPS, LATENTS, TEACHER):
        for_workers(from_bucket, settings, what)
    assert [one.changed_at for one in stored_files(f"{shared}/demo")] == uploaded_at


def test_what_lies_in_the_bucket_is_charged_and_removed_once_nobody_reads_it(
    tmp_path: Path, tiny_teacher: Path, without_ray: None, shared: str
) -> None:
    workspace = customer(tmp_path / "a", tiny_teacher)
    prices = dataclasses.replace(
        workspace.params.prices,
        bucket_usd_per_gb_month=Decimal(720), transfer_out_usd_per_gb=Decimal("0.09"),
    )  # fmt: skip
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, prices=prices)
    )
    settings = Settings.from_environment(workspace.root)
    url = for_workers(workspace, settings, CLIPS)
    ended = datetime.now(UTC) + timedelta(hours=10)
    size = sum(one.size_bytes for one in stored_files(f"{shared}/demo"))
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        began = ended - timedelta(hours=2)
        usd = charge_arrays(workspace, ledger, settings, run="r", began=began, ended=ended)
        assert usd == pytest.approx(Decimal(size) * 2 / 10**9, rel=Decimal("1e-6"))
        assert charge_arrays(workspace, ledger, settings, run="r", began=began, ended=ended) == 0
        (row,) = ledger.charges(run="r")
        assert (row.resource, row.unit, row.stage) == ("bucket (arrays)", "GB-month", "distill")
    (workspace.folder("clip") / "clips.json").write_text('{"clips": []}')
    assert for_workers(workspace, settings, CLIPS) != url
    assert stored_files(url)
    assert remove_unused(workspace, settings) > 0
    assert not stored_files(url)
    assert stored_files(shared_now(workspace)["urls"][CLIPS])
    fresh = dataclasses.replace(workspace, root=tmp_path / "b")
    assert remove_unused(fresh, settings) == 0, "another checkout knows of none"


def test_checkpoints_must_not_stay_on_nodes_that_share_no_disk(
    tmp_path: Path, tiny_teacher: Path, without_ray: None, shared: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    workspace = customer(tmp_path / "a", tiny_teacher)
    check_reach(workspace, Settings.from_environment(workspace.root))
    monkeypatch.delenv("TURBO_VAED_CHECKPOINTS")
    with pytest.raises(UserError, match="TURBO_VAED_CHECKPOINTS"):
        check_reach(workspace, Settings.from_environment(workspace.root))
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", shared)
    monkeypatch.setenv("TURBO_VAED_ARRAYS", "s3://no-such-bucket/x")
    with pytest.raises(UserError, match="no-such-bucket"):
        check_reach(workspace, Settings.from_environment(workspace.root))


def test_nodes_that_do_not_see_a_file_are_found(on_ray: None, tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    assert worker_files._nodes_without(tmp_path / "probe") == []
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    assert worker_files._nodes_without(tmp_path / "none") == [node["NodeManagerAddress"]]


BLINDFOLD = """
import os, sys

data, code, hides_code = os.environ["HIDDEN_FROM_WORKERS"].split(":")

def hide(event, arguments):
    if event not in ("open", "os.listdir", "os.scandir") or not arguments:
        return
    if isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if path.startswith(data) or (path.startswith(code) and os.path.exists(hides_code)):
            raise FileNotFoundError(2, "hidden from workers", path)

sys.addaudithook(hide)
"""
"""`sitecustomize` of what the cluster starts: a folder of the driver that is not there and, once
a file says so, the package in its checkout neither."""


@pytest.fixture
def blind_cluster(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two nodes that see nothing below `tmp_path/a`, each with a cache of its own; the address."""
    from tests.ray_head import ray_head, started

    (tmp_path / "blindfold").mkdir()
    (tmp_path / "blindfold" / "sitecustomize.py").write_text(BLINDFOLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "blindfold"))
        code = Path(__file__).parents[2] / "turbo_vaed"
        hidden = f"{tmp_path}/a/:{code}/:{tmp_path}/hides-code"
        patch.setenv("HIDDEN_FROM_WORKERS", hidden)
        with ray_head(cpus=1) as cluster:
            started(lambda: cluster.add_node(num_cpus=1))
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster.address


@pytest.mark.nightly
@pytest.mark.timeout(1800)  # a minute for each start of workers where the machine is busy
def test_encoding_and_distillation_on_nodes_that_see_no_file_of_the_driver(
    tmp_path: Path, tiny_teacher: Path, blind_cluster: str, s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Latents, cached targets and checkpoints come back; the student is that from files, which the
    nodes see below `tmp_path/b`."""
    by_files = customer(tmp_path / "b", tiny_teacher, teacher_targets="cache")
    check_reach(by_files, Settings.from_environment(by_files.root))
    distill.run(by_files)

    blind = customer(tmp_path / "a", tiny_teacher, teacher_targets="cache")
    with pytest.raises(UserError, match=r"cannot see .*TURBO_VAED_ARRAYS"):
        check_reach(blind, Settings.from_environment(blind.root))
    monkeypatch.setenv("TURBO_VAED_ARRAYS", f"{s3_url}/arrays")
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", f"{s3_url}/checkpoints")
    settings = Settings.from_environment(blind.root)
    check_reach(blind, settings)
    (tmp_path / "hides-code").touch()
    with worker_session(settings):
        home = ray.remote(lambda: importlib.import_module("turbo_vaed.errors").__file__)
        assert "/runtime_resources/" in ray.get(home.remote()), "this machine's, sent there"
    expected = zarr.open_array(str(blind.folder("encode") / "latents.zarr"), path="latents")[:]
    with worker_session(settings):  # as `run_metered` does
        encode.run(blind)
    latents = zarr.open_array(str(blind.folder("encode") / "latents.zarr"), path="latents")[:]
    assert abs(latents - expected).max() <= 1e-6
    uploaded = stored_files(f"{s3_url}/arrays/demo/encode")
    distill.run(blind)
    assert furthest(by_files, blind) <= 1e-6
    assert not (blind.work / "targets").exists()
    kinds = {one.path.split("/")[-1] for one in stored_files(f"{s3_url}/arrays/demo/targets")}
    assert "targets.json" in kinds
    again = stored_files(f"{s3_url}/arrays/demo/encode")
    assert again == uploaded, "what workers wrote is what workers read"
