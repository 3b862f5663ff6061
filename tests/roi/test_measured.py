"""What of a run becomes an input of its return on investment, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.roi import made_up
from tests.roi.made_up import COST, ROOT, charge
from turbo_vaed.config.schema import RoiParams
from turbo_vaed.costs import Ledger
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.roi.inputs import INPUTS
from turbo_vaed.roi.measured import DEMO_TEACHERS, cost_of_poc, roi_of_run

Documents = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def assumptions() -> RoiParams:
    return made_up.shipped_assumptions()


@pytest.fixture
def documents() -> Documents:
    """The three that a run leaves, to be changed at will."""
    return made_up.documents()


def test_measurements_are_read_per_minute_of_video(
    documents: Documents, assumptions: RoiParams
) -> None:
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    teacher, student = (roi.input(f"{who}_seconds_per_minute") for who in ("teacher", "student"))
    clips = Decimal(60 * 25) / 9  # a minute, 25 fps, 9 frames a clip
    for one, samples in ((teacher, (".308", ".310", ".322")), (student, (".128", ".131", ".142"))):
        for value, sample in zip((one.low, one.likely, one.high), samples, strict=True):
            assert round(value, 9) == round(Decimal(sample) * clips, 9)
    assert round(roi.likely.latent_values_per_minute, 6) == round(32 * 3 * 64 * clips, 6)
    assert roi.likely.clip_megapixels == Decimal("0.004096")
    assert roi.likely.package_bytes == 4_310_220
    assert roi.likely.poc_usd == Decimal("1.25")
    assert "gate/measurement.json teacher_latency_seconds" in teacher.source
    assert "gate/measurement.json latency_seconds" in student.source
    busy = {
        **documents,
        "measurement": {**documents["measurement"], "unreliable_reason": "it was busy"},
    }
    for one in roi_of_run(**busy, cost=COST, assumptions=assumptions).inputs:
        is_time = one.name.endswith("_seconds_per_minute")
        assert ("it was busy" in one.source) == is_time, one.name
    documents["measurement"]["threads"] = 2  # as long on twice the threads is twice the work
    twice = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    assert twice.likely.teacher_seconds_per_minute == 2 * roi.likely.teacher_seconds_per_minute


PHONES = [("adb", "Pixel 8, arm64-v8a, Android 15"), ("device-farm", "Galaxy S24, arm64-v8a"),
          ("apple", "iPhone 16 Pro, iOS 19, CPU_AND_NE")]  # fmt: skip


@pytest.mark.parametrize(("kind", "machine"), PHONES)
def test_a_measured_phone_is_not_scaled_by_assumptions(
    documents: Documents, assumptions: RoiParams, kind: str, machine: str
) -> None:
    documents["measurement"] |= {
        "device": "theirs", "device_kind": kind, "machine": machine, "threads": 4
    }  # fmt: skip
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    one, student = roi.input("phone_speedup"), roi.input("student_seconds_per_minute")
    assert (one.low, one.likely, one.high, one.kind) == (1, 1, 1, "measured")
    assert "theirs" in one.source and "device_kind" in one.source
    clips = Decimal(60 * 25) / 9
    assert round(student.likely, 9) == round(Decimal(".131") * clips, 9)  # whatever its threads
    assert machine in student.source and "theirs" in student.source
    teacher = roi.input("teacher_seconds_per_minute")
    assert round(teacher.likely, 9) == round(Decimal(".310") * 4 * clips, 9)
    assert machine not in teacher.source  # which is the phone's
    assert roi.input("gpu_speedup").kind == "assumed"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"device_kind": "host"},
        {"device": "studio", "device_kind": "apple", "machine": "Apple M3, macOS 15, CPU_AND_NE"},
        {"device": "theirs", "machine": "Pixel 8, arm64-v8a, Android 15"},  # of before the kind
    ],
)
def test_a_device_that_is_not_a_phone_is_scaled_to_one(
    documents: Documents, assumptions: RoiParams, changes: dict[str, str]
) -> None:
    documents["measurement"] |= {**changes, "threads": 2}
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    one, assumed = roi.input("phone_speedup"), assumptions.phone_speedup
    assert (one.low, one.likely, one.high) == (assumed.low, assumed.likely, assumed.high)
    assert one.kind == "assumed"
    student = roi.input("student_seconds_per_minute")
    assert round(student.likely, 9) == round(Decimal(".131") * 2 * 60 * 25 / 9, 9)


def test_a_teacher_timed_on_a_gpu_is_not_scaled_by_assumptions(
    documents: Documents, assumptions: RoiParams
) -> None:
    documents["measurement"] |= {
        "teacher_gpu_latency_seconds": [0.004, 0.002, 0.003], "teacher_gpu": "NVIDIA L4",
        "threads": 2,
    }  # fmt: skip
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    one, teacher = roi.input("gpu_speedup"), roi.input("teacher_seconds_per_minute")
    assert (one.low, one.likely, one.high, one.kind) == (1, 1, 1, "measured")
    assert "NVIDIA L4" in one.source
    clips = Decimal(60 * 25) / 9
    for value, sample in zip(
        (teacher.low, teacher.likely, teacher.high), (".002", ".003", ".004"), strict=True
    ):
        assert round(value, 9) == round(Decimal(sample) * clips, 9)
    assert "teacher_gpu_latency_seconds" in teacher.source
    assert roi.likely.gpu_seconds_per_minute == teacher.likely * roi.likely.scale
    assert roi.input("phone_speedup").kind == "assumed"
    student = roi.input("student_seconds_per_minute")
    assert round(student.likely, 9) == round(Decimal(".131") * 2 * clips, 9)


def test_a_failed_gpu_measurement_falls_back_to_the_assumption(
    documents: Documents, assumptions: RoiParams
) -> None:
    documents["measurement"]["teacher_gpu_failed"] = "CUDA out of memory"
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    assert roi.input("gpu_speedup").likely == assumptions.gpu_speedup.likely
    assert "CUDA out of memory" in roi.input("teacher_seconds_per_minute").source


def test_the_teachers_machine_is_named_where_the_package_ran_elsewhere(
    documents: Documents, assumptions: RoiParams
) -> None:
    documents["measurement"] |= {
        "device": "pixel", "device_kind": "adb", "machine": "Pixel 8", "teacher_machine": "EPYC"
    }  # fmt: skip
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    assert "EPYC" in roi.input("teacher_seconds_per_minute").source
    assert "Pixel 8" in roi.input("student_seconds_per_minute").source


def test_the_range_of_gpus_reaches_to_what_this_project_measured(assumptions: RoiParams) -> None:
    """Of the published teachers at 512x512: the H200's frames a second over one CPU thread's."""
    cpu, gpu = (
        json.loads((ROOT / f"bench/results/decode{which}.json").read_text())
        for which in ("", "_gpu")
    )
    ratios = []
    for name in ("ltx", "hunyuan", "cogvideox"):
        seconds = cpu[name]["seconds"]["teacher_fp32"] * cpu["threads"]
        on_thread = cpu[name]["frames"] / seconds * (cpu[name]["side"] / 512) ** 2
        ratios.append(gpu[f"{name}:512x512"]["fps"]["teacher"] / on_thread)
    one = assumptions.gpu_speedup
    assert float(one.high) == pytest.approx(max(ratios), rel=0.02)
    assert f"{round(min(ratios), -1):,.0f} to {round(max(ratios), -1):,.0f} times" in one.source


@pytest.mark.parametrize(
    ("absent", "source"),
    [("clips", "clip/clips.json"), ("package", "gate/package/package.json"),
     ("measurement", "gate/measurement.json"), ("cost", "ledger")],
)  # fmt: skip
def test_missing_measurements_are_named_and_never_zero(
    documents: Documents, assumptions: RoiParams, absent: str, source: str
) -> None:
    given: dict[str, Any] = {**documents, "cost": COST, absent: None}
    with pytest.raises(UserError, match=source):
        roi_of_run(**given, assumptions=assumptions)


def test_a_measurement_without_the_teacher_is_refused(
    documents: Documents, assumptions: RoiParams
) -> None:
    del documents["measurement"]["teacher_latency_seconds"]
    with pytest.raises(UserError, match="teacher_latency_seconds"):
        roi_of_run(**documents, cost=COST, assumptions=assumptions)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("measurement", "latency_seconds"), []),
        (("measurement", "latency_seconds"), [0.1, 0]),
        (("measurement", "teacher_latency_seconds"), [0.1, float("nan")]),
        (("measurement", "threads"), None),
        (("measurement", "package_sha256"), "another"),
        (("clips", "clips"), []),
        (("clips", "clips"), [{"fps": None}]),
        (("package", "io"), {}),
        (("package", "io", "video_shape"), [1, 3, 0, 64, 64]),
        (("package", "io", "latent_shape"), [32, 3, 8, 8]),
        (("package", "size_bytes"), "many"),
    ],
)
def test_impossible_figures_are_refused(
    documents: Documents, assumptions: RoiParams, place: tuple[str, ...], value: object
) -> None:
    changed: Any = copy.deepcopy(documents)
    part = changed
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(CorruptFile, match="again"):
        roi_of_run(**changed, cost=COST, assumptions=assumptions)


def test_the_cost_is_everything_ever_charged_to_the_customer(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert cost_of_poc(ledger, "acme") is None
        ledger.add_all([
            charge("a", "acme", "0.50"), charge("b", "acme", "0.30", "wasted"),
            charge("c", "other", "7"),
        ])  # fmt: skip
        found = cost_of_poc(ledger, "acme")
    assert found is not None
    assert found.low == found.likely == found.high == Decimal("0.80")
    assert "2 runs" in found.source and "$0.30" in found.source


def test_a_demo_teachers_times_are_marked(documents: Documents, assumptions: RoiParams) -> None:
    def sources(teacher_sha256: str) -> dict[str, str]:
        roi = roi_of_run(**documents, cost=COST, assumptions=assumptions,
                         latents={"teacher_sha256": teacher_sha256})  # fmt: skip
        return {one.name: one.source for one in roi.inputs}

    theirs, demo = sources("theirs"), sources(DEMO_TEACHERS[0])
    assert {name for name in INPUTS if theirs[name] != demo[name]} == {
        "teacher_seconds_per_minute", "student_seconds_per_minute",
    }  # fmt: skip


def test_every_assumption_has_its_key_and_its_source(
    documents: Documents, assumptions: RoiParams
) -> None:
    roi = roi_of_run(**documents, cost=COST, assumptions=assumptions)
    for one in roi.inputs:
        assert one.kind == INPUTS[one.name].kind
        if one.kind == "assumed":
            source = getattr(assumptions, one.name).source
            assert one.source == f"roi.{one.name}: {source}"


def test_every_shipped_teacher_is_known_as_a_demos() -> None:
    weights = sorted((ROOT / "assets/teachers").glob("*/training.json"))
    assert weights
    for path in weights:  # `make teacher` writes the digest that `encode` records
        assert json.loads(path.read_text())["sha256"] in DEMO_TEACHERS, path
        content = (path.parent / "diffusion_pytorch_model.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() in DEMO_TEACHERS, path
