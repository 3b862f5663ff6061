from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from turbo_vaed.dataset.expectations import Expectation, ManifestLimits, check_manifest
from turbo_vaed.dataset.manifest import COLUMNS

pytestmark = pytest.mark.slow
LIMITS = ManifestLimits(
    min_seconds=1.0,
    min_side=128,
    max_black_share=0.5,
    max_frozen_share=0.9,
    min_good_videos=1,
    min_good_share=0.5,
)


def row(path: str, **facts: object) -> dict[str, object]:
    good = {
        "path": path, "sha256": path, "bytes": 1, "status": "ok", "width": 128, "height": 256,
        "fps": 25.0, "frames": 25, "seconds": 1.0, "black_share": 0.5, "frozen_share": 0.9,
        "brightness": 0.5, "motion": 0.1, "phash": path,
    }  # fmt: skip
    return {**dict.fromkeys(COLUMNS), **good, **facts}


def unreadable(path: str) -> dict[str, object]:
    nothing = dict.fromkeys(("width", "height", "seconds", "black_share", "frozen_share", "phash"))
    return row(path, status="quarantined", reason="bad", error="bad", **nothing)


def check(docs: Path, *rows: dict[str, object]) -> tuple[pd.DataFrame, dict[str, Expectation]]:
    checked, outcomes = check_manifest(pd.DataFrame(rows).astype(COLUMNS), LIMITS, data_docs=docs)
    return checked.set_index("path"), {o.name: o for o in outcomes}


@pytest.mark.slow
def test_each_rule_quarantines_the_file_that_breaks_it_and_no_other(tmp_path: Path) -> None:
    checked, outcomes = check(
        tmp_path,
        row("at every limit"),
        row("short", seconds=0.99),
        row("small", width=127),
        row("black", black_share=0.51),
        row("frozen", frozen_share=0.91),
        row("copy", duplicate_of="at every limit", status="quarantined", reason="exact copy"),
        unreadable("text.mp4"),
    )
    assert list(checked.index[checked["status"] == "ok"]) == ["at every limit"]
    reasons = checked["reason"].dropna().to_dict()
    values = {
        "short": r"0\.99 s .*\b1 s",
        "small": "127 px.*128 px",
        "black": "51%.*black.*50%",
        "frozen": "91%.*90%",
        "copy": "^exact copy$",
        "text.mp4": "^bad$",
    }
    assert set(reasons) == set(values)
    for path, expected in values.items():
        assert re.search(expected, reasons[path]), reasons[path]
    failed = {name: o.paths for name, o in outcomes.items() if not o.success}
    assert failed == {
        "file decodes": ("text.mp4",),
        "unique content": ("copy",),
        "long enough": ("short",),
        "large enough": ("small",),
        "not black": ("black",),
        "not frozen": ("frozen",),
        "good share": (),
    }
    assert outcomes["good share"].observed == "14%"
    assert outcomes["good videos"].observed == "1"


def test_a_warning_does_not_quarantine(tmp_path: Path) -> None:
    checked, outcomes = check(tmp_path, row("a", phash="00"), row("b", phash="00"), row("c"))
    assert (checked["status"] == "ok").all()
    warning = outcomes["no look-alikes"]
    assert (warning.success, warning.severity, warning.paths) == (False, "warning", ("a", "b"))


def test_a_folder_without_a_readable_file_is_judged_too(tmp_path: Path) -> None:
    checked, outcomes = check(tmp_path, unreadable("a"), unreadable("b"))
    assert (checked["reason"] == "bad").all()
    assert not outcomes["good videos"].success and not outcomes["good share"].success


def test_data_docs_are_written_to_the_given_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    docs = tmp_path / "docs"
    check(docs, row("lecture.mp4"), row("short.mp4", seconds=0.1))
    assert "files" in (docs / "index.html").read_text()
    pages = [page.read_text() for page in (docs / "validations").rglob("*.html")]
    assert len(pages) == 2 and any("short.mp4" in page for page in pages)
    assert list(elsewhere.iterdir()) == []
