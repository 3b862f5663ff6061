"""The wording of run pages, against tests/golden/report. `make golden` writes it again."""

from __future__ import annotations

from pathlib import Path

from tests.report import golden


def test_run_pages_read_as_their_golden_files(tmp_path: Path) -> None:
    found = golden.documents(tmp_path)
    assert {path.name for path in golden.FOLDER.iterdir()} == set(found)
    for name, text in found.items():
        assert (golden.FOLDER / name).read_text(encoding="utf-8") == text, name
