"""The box of the device: the same times as elsewhere on the page, and who disturbed which."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turbo_vaed.report import device
from turbo_vaed.report.context import ReportContext
from turbo_vaed.report.page import render

Gather = Callable[..., ReportContext]
PROCESSES = [[0.032] * 10, [0.036] * 9 + [0.0362], [0.039] * 5 + [0.045] * 5]
"""Their medians' median is not the median of all their runs."""
TIMED = {
    "seconds_by_process": PROCESSES,
    "latency_seconds": [seconds for process in PROCESSES for seconds in process],
    "median_latency_seconds": 0.03624,
    "latency_interval_seconds": [0.0324, 0.0414],
}


def measured(found: ReportContext, **changes: Any) -> ReportContext:
    assert found.measurement is not None
    return dataclasses.replace(found, measurement={**found.measurement, **changes})


def facts(found: ReportContext) -> dict[str, str]:
    return dict(device.facts(found))


def chosen(found: ReportContext, timed: dict[str, Any]) -> ReportContext:
    """With these times in the table of the packages."""
    assert found.choice is not None
    keys = ("median_latency_seconds", "latency_interval_seconds")
    candidates = [
        {**one, **{key: timed[key] for key in keys}} for one in found.choice["candidates"]
    ]
    return dataclasses.replace(found, choice={**found.choice, "candidates": candidates})


def cells(page: str, section: str, tag: str) -> list[str]:
    part = page.split(f'id="{section}"')[1].split("</section>")[0]
    return re.findall(rf"<{tag}\b[^>]*>([^<]*)</{tag}>", part)


def test_a_package_has_one_latency_on_the_page(work: Path, gather: Gather) -> None:
    found = chosen(measured(gather(work), **TIMED), TIMED)
    said = facts(found)["Package, one clip"]
    assert said == (
        "median 36.2 ms (32.4 to 41.4 ms at 95 %), 30 runs in 3 processes, after 2 warm-up runs"
    )
    page = render(found)
    shown = cells(page, "packages", "td")
    assert "36.2 ms" in shown and "32.4 to 41.4 ms" in shown
    assert {"One clip", "Between (95 %)"} <= set(cells(page, "packages", "th"))
    assert said in cells(page, "checks", "dd")


def test_times_at_the_devices_own_shape_are_not_called_a_clips(work: Path, gather: Gather) -> None:
    used = {
        "shape": "9x720x1280", "latency_seconds": [0.5, 0.52], "confidence": 0.95,
        "median_latency_seconds": 0.51, "latency_interval_seconds": [0.5, 0.52],
        "cold_start_seconds": 0.3, "background_cpu_share": 0.04,
    }  # fmt: skip
    found = chosen(measured(gather(work), **TIMED, on_device=used), used)
    assert facts(found)["At 9x720x1280, as apps use it"].startswith(
        "median 510.0 ms (500.0 to 520.0 ms at 95 %), 2 runs"
    )
    page = render(found)
    assert "One run at 9x720x1280" in cells(page, "packages", "th")
    assert "One clip" not in cells(page, "packages", "th")
    assert "510.0 ms" in cells(page, "packages", "td")
    assert "median of one run at 9x720x1280 (ms)" in page


def test_an_old_measurement_has_the_interval_of_its_runs(work: Path, gather: Gather) -> None:
    found = gather(work)
    assert found.measurement is not None
    old = {
        key: value
        for key, value in found.measurement.items()
        if key not in ("median_latency_seconds", "latency_interval_seconds", "confidence")
    }
    said = facts(dataclasses.replace(found, measurement=old))["Package, one clip"]
    assert re.match(r"median 131\.0 ms \(12[89]\.\d to 1[34]\d\.\d ms at 95 %\), 5 runs", said), (
        said
    )


def test_times_say_at_which_size_they_were_taken(work: Path, gather: Gather) -> None:
    """A limit of 24 frames a second is no word about pictures that were not timed."""
    found = measured(gather(work), on_device=None)
    assert found.clips is not None and found.measurement is not None
    size = found.clips["size"]
    said = f"in pictures of {found.clips['frames']}x{size}x{size} (frames, height, width)"
    assert said in device.measured_at(found) and said in render(found)
    larger = measured(found, on_device={**found.measurement, "shape": "9x720x1280"})
    assert "in pictures of 9x720x1280" in device.measured_at(larger)
    assert device.measured_at(dataclasses.replace(found, measurement=None)) == ""


def test_each_share_of_other_processes_says_whose_run_it_disturbed(
    work: Path, gather: Gather
) -> None:
    found = gather(work)
    assert "Other processes took" not in facts(found)
    package = measured(found, background_cpu_share=0.017)
    assert facts(package)["Other processes took"] == "1.7 % while the package was timed"
    both = measured(package, teacher_background_cpu_share=0.51)
    assert facts(both)["Other processes took"] == (
        "1.7 % while the package was timed, 51.0 % while the teacher was timed"
    )
    used = {"shape": "9x64x96", "latency_seconds": [0.5], "cold_start_seconds": 0.3,
            "background_cpu_share": 0.2}  # fmt: skip
    assert facts(measured(both, on_device=used))["Other processes took"] == (
        "1.7 % while the package was timed, 20.0 % while it was timed at 9x64x96, "
        "51.0 % while the teacher was timed"
    )
