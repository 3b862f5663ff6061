"""The short drills; `make drills` carries out all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.drills import drills, faults
from tests.drills.drills import DRILLS, carry_out
from turbo_vaed.distill.checkpoints import Checkpoint

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow

BY_NAME = {drill.name: drill for drill in DRILLS}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The undisturbed run."""
    return drills.undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_a_killed_process_and_its_last_checkpoint_cut_short(
    tmp_path: Path, reference: Checkpoint
) -> None:
    outcome = carry_out(BY_NAME["checkpoint cut short"], tmp_path, reference)
    assert outcome.steps_lost >= drills.CHECKPOINT_EVERY


def test_s3_that_is_down(tmp_path: Path, reference: Checkpoint) -> None:
    drill = replace(BY_NAME["S3 down"], run=partial(drills.s3_down, seconds=2.0))
    assert carry_out(drill, tmp_path, reference).steps_lost == 0


def test_a_nan_in_the_loss(tmp_path: Path, reference: Checkpoint) -> None:
    assert carry_out(BY_NAME["NaN in the loss"], tmp_path, reference).steps_lost == 0


def test_a_data_chunk_that_is_missing(tmp_path: Path, reference: Checkpoint) -> None:
    outcome = carry_out(BY_NAME["data chunk missing"], tmp_path, reference)
    assert 0 < outcome.steps_lost <= drills.CHECKPOINT_EVERY


def test_a_disk_that_is_full(tmp_path: Path, reference: Checkpoint) -> None:
    assert carry_out(BY_NAME["disk full"], tmp_path, reference).steps_lost == 0


def test_one_of_two_workers_that_is_killed(
    tmp_path: Path, reference: Checkpoint, ray_cluster: Cluster
) -> None:
    """On the Ray of the other tests: no machine is lost."""
    carry_out(BY_NAME["worker of two killed"], tmp_path, reference, faults.Machines(ray_cluster))
