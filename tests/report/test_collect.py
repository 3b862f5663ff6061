"""What of a work folder is read, and what is left out."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from turbo_vaed.config.stages import STAGES
from turbo_vaed.report.context import Failure, ReportContext
from turbo_vaed.report.page import render, write_report

Gather = Callable[..., ReportContext]


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(work, tmp_path / "demo"))


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_of_an_older_run_are_left_out_from_the_failed_stage_on(
    work: Path, gather: Gather, stage: str
) -> None:
    found = gather(work, failure=Failure(stage=stage, error="it broke"))
    shown = {
        "validate": found.validation, "clip": found.clips, "encode": found.latents,
        "distill": found.history, "evaluate": found.evaluation, "gate": found.verdict,
    }  # fmt: skip
    reached = [name for name, output in shown.items() if output is not None]
    assert reached == [name for name in STAGES[: STAGES.index(stage)] if name != "export"]
    assert found.package is None  # what ships is the gate's choice
    assert found.problems == ()
    assert f'data-stage="{stage}"' in render(found)


@pytest.mark.parametrize("reached", range(len(STAGES) + 1))
def test_a_run_that_stopped_anywhere_has_a_page(
    copy: Path, gather: Gather, tmp_path: Path, reached: int
) -> None:
    for stage in STAGES[reached:]:
        shutil.rmtree(copy / stage, ignore_errors=stage == "export")  # which the page does not read
    found = gather(copy)
    assert found.problems == ()
    page = write_report(found, tmp_path / "report.html").read_text()
    assert (found.verdict is None) == (reached < len(STAGES))
    assert page.count("<video") == (0 if reached < 2 else 2)


def test_an_empty_folder_has_a_page(tmp_path: Path, gather: Gather) -> None:
    failure = Failure(stage="validate", error="no folder /data/acme")
    page = render(gather(tmp_path, failure=failure))
    assert "no folder /data/acme" in page and "<video" not in page


def test_data_rejected_by_validate_is_on_the_page(copy: Path, gather: Gather) -> None:
    (copy / "validate").rename(copy / "validate.rejected")
    failure = Failure(stage="validate", error="too little good video")
    assert "moov atom" in render(gather(copy, failure=failure))
    assert gather(copy, failure=Failure(stage="clip", error="x")).validation is None


def test_rejected_data_of_an_older_run_is_not_on_the_page(copy: Path, gather: Gather) -> None:
    shutil.copytree(copy / "validate", copy / "validate.rejected")
    document = json.loads((copy / "validate.rejected" / "validation.json").read_text())
    (copy / "validate.rejected" / "validation.json").write_text(json.dumps(document | {"ok": 99}))
    found = gather(copy).validation
    assert found is not None and found["ok"] == 2


def test_the_estimate_stands_next_to_the_cost(copy: Path, gather: Gather) -> None:
    assert 'id="estimate"' not in render(gather(copy))
    document = {"low_usd": "0.01", "likely_usd": "0.0125", "high_usd": "0.03",
                "basis": "at 0.1 s a step", "seconds": 9.0, "steps": 400}  # fmt: skip
    (copy / "estimate.json").write_text(json.dumps(document))
    found = render(gather(copy)).partition('id="estimate"')[2].partition("</span>")[0]
    assert re.findall(r"\$[\d.]*\d", found) == ["$0.01250", "$0.01000", "$0.03000", "$0.01331"]
    assert "at 0.1 s a step" in found
    (copy / "estimate.json").write_text("{")
    assert gather(copy).problems[0].startswith("estimate.json ")


@pytest.mark.parametrize(
    "name",
    ["validate/manifest.parquet", "validate/validation.json", "clip/clips.json",
     "encode/latents.json", "distill/history.json", "evaluate/evaluation.json",
     "gate/package/package.json", "gate/measurement.json", "gate/verdict.json"],
)  # fmt: skip
def test_a_truncated_output_is_named_on_the_page(copy: Path, gather: Gather, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:20])
    found = gather(copy)
    (problem,) = found.problems
    assert problem.startswith(f"{name} ") and problem in html.unescape(render(found))


def test_a_gate_of_an_earlier_version_is_on_the_page(copy: Path, gather: Gather) -> None:
    for name in ("verdict.json", "choice.json"):
        path, text = copy / "gate" / name, (copy / "gate" / name).read_text()
        document = json.loads(text.replace('"rationale"', '"because"'))
        for one in document.get("candidates", []):
            one |= {"result": "cannot tell", "distrust": "busy host"}
        path.write_text(json.dumps(document))
    found = gather(copy)
    assert found.problems == () and found.verdict is not None
    assert all(check["rationale"] for check in found.verdict["checks"])
    assert found.choice is not None
    for one in found.choice["candidates"]:
        assert (one["result"], one["unreliable_reason"]) == ("inconclusive", "busy host")
    assert "busy host" in render(found)


def test_frames_of_other_clips_are_not_on_the_page(copy: Path, gather: Gather) -> None:
    group = zarr.open_group(copy / "gate" / "frames.zarr", mode="a")
    group.attrs["indices"] = [0, *group.attrs["indices"][1:]]
    found = gather(copy)
    (problem,) = found.problems
    assert found.shots == () and "[0, " in problem and problem in html.unescape(render(found))


def test_frames_are_matched_by_index_not_by_place(copy: Path, gather: Gather) -> None:
    straight = {shot.index: shot.phone_psnr for shot in gather(copy, shots=5).shots}
    group = zarr.open_group(copy / "gate" / "frames.zarr", mode="a")
    video = group["video"][:]
    group["video"][:] = video[::-1]
    group.attrs["indices"] = group.attrs["indices"][::-1]
    assert {shot.index: shot.phone_psnr for shot in gather(copy, shots=5).shots} == straight


def test_best_median_worst_and_their_psnr(work: Path, gather: Gather) -> None:
    found = gather(work, shots=5)
    clips = json.loads((work / "evaluate" / "evaluation.json").read_text())["clips"]
    ranked = sorted((c["student"]["psnr"] for c in clips), reverse=True)
    shown = {shot.label: shot.phone_psnr for shot in found.shots}
    assert shown["Best clip"] == pytest.approx(ranked[0], abs=1e-4)
    assert shown["Median clip"] == pytest.approx(ranked[2], abs=1e-4)
    assert shown["Worst clip"] == pytest.approx(ranked[-1], abs=1e-4)
    assert [s.phone_psnr for s in found.shots] == sorted(shown.values(), reverse=True)
    assert found.worst is not None and found.worst.label == "Worst clip"


def test_a_single_shot_is_the_worst_clip(work: Path, gather: Gather) -> None:
    assert [shot.label for shot in gather(work, shots=1).shots] == ["Worst clip"]


def test_customer_and_use_case_come_from_the_folder(work: Path, gather: Gather) -> None:
    found = gather(work)
    assert (found.customer, found.use_case) == ("demo", "education")


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    work: Path, gather: Gather, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = gather(work)
    object.__setattr__(broken, "evaluation", {"clips": []})
    with pytest.raises(KeyError):
        write_report(broken, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
