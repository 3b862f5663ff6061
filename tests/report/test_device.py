"""The box of the device: the same times as elsewhere on the page, and what disturbed them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turbo_vaed.report import wording
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
    return dict(wording.device_facts(found))


def chosen(found: ReportContext, timed: dict[str, Any]) -> ReportContext:
    """With these times in the table of the packages."""
    assert found.choice is not None
    keys = ("median_latency_seconds", "latency_interval_seconds")
    candidates = [
        {**one, **{key: timed[key] for key in keys}} for one in found.choice["candidates"]
    ]
    return dataclasses.replace(found, choice={**found.choice, "candidates": candidates})


def figures(text: str) -> list[str]:
    """Its numbers, in order."""
    return re.findall(r"\d+(?:\.\d+)?", text)


def cells(page: str, section: str, tag: str) -> list[str]:
    part = page.split(f'id="{section}"')[1].split("</section>")[0]
    return re.findall(rf"<{tag}\b[^>]*>([^<]*)</{tag}>", part)


def test_a_package_has_one_latency_on_the_page(work: Path, gather: Gather) -> None:
    found = chosen(measured(gather(work), **TIMED), TIMED)
    latency = facts(found)["Package, one clip"]
    assert figures(latency) == ["36.2", "95", "32.4", "41.4", "30", "3", "2"]
    page = render(found)
    printed = cells(page, "packages", "td")
    assert "36.2 ms" in printed and "32.4 to 41.4 ms" in printed
    assert latency in cells(page, "checks", "dd")


def test_times_at_the_devices_own_shape_are_not_labelled_as_a_clips(
    work: Path, gather: Gather
) -> None:
    used = {
        "shape": "9x720x1280", "latency_seconds": [0.5, 0.52], "confidence": 0.95,
        "median_latency_seconds": 0.51, "latency_interval_seconds": [0.5, 0.52],
        "cold_start_seconds": 0.3, "background_cpu_share": 0.04,
    }  # fmt: skip
    found = chosen(measured(gather(work), **TIMED, on_device=used), used)
    (latency,) = (value for name, value in facts(found).items() if "9x720x1280" in name)
    assert figures(latency) == ["510.0", "95", "500.0", "520.0", "2"]
    page = render(found)
    assert any("9x720x1280" in cell for cell in cells(page, "packages", "th"))
    assert "One clip" not in cells(page, "packages", "th")
    assert "510.0 ms" in cells(page, "packages", "td")
    assert "9x720x1280" in page.partition('class="chart packages"')[2].partition("</svg>")[0]


def test_an_old_measurement_has_the_interval_of_its_runs(work: Path, gather: Gather) -> None:
    found = gather(work)
    assert found.measurement is not None
    old = {
        key: value
        for key, value in found.measurement.items()
        if key not in ("median_latency_seconds", "latency_interval_seconds", "confidence")
    }
    latency = facts(dataclasses.replace(found, measurement=old))["Package, one clip"]
    assert figures(latency) == ["131.0", "95", "128.0", "142.0", "5", "2"]


def test_times_have_the_picture_size_they_were_taken_at(work: Path, gather: Gather) -> None:
    """24 frames a second of one size are none of a larger one."""
    found = measured(gather(work), on_device=None)
    assert found.clips is not None and found.measurement is not None
    size = found.clips["size"]
    assert f" {found.clips['frames']}x{size}x{size} " in wording.measurement_conditions(found)
    assert wording.measurement_conditions(found) in render(found)
    larger = measured(found, on_device={**found.measurement, "shape": "9x720x1280"})
    assert " 9x720x1280 " in wording.measurement_conditions(larger)
    assert wording.measurement_conditions(dataclasses.replace(found, measurement=None)) == ""


def test_each_background_cpu_share_names_what_it_disturbed(work: Path, gather: Gather) -> None:
    found, name = gather(work), "Background CPU share"
    assert name not in facts(found)
    package = measured(found, background_cpu_share=0.017)
    assert figures(facts(package)[name]) == ["1.7"]
    both = measured(package, teacher_background_cpu_share=0.51)
    parts = facts(both)[name].split(", ")
    assert [("package" in part, "teacher" in part, *figures(part)) for part in parts] == [
        (True, False, "1.7"), (False, True, "51.0"),
    ]  # fmt: skip
    used = {"shape": "9x64x96", "latency_seconds": [0.5], "cold_start_seconds": 0.3,
            "background_cpu_share": 0.2}  # fmt: skip
    three = facts(measured(both, on_device=used))[name].split(", ")
    assert [figures(part)[0] for part in three] == ["1.7", "20.0", "51.0"]
    assert "9x64x96" in three[1]
