"""Pictures of a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.report.screenshot import screenshot
from turbo_vaed.errors import Fault, UserError


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "a page.html"
    path.write_text("<body style='margin:0;background:#2457d6'><div style='height:9999px'></div>")
    return path


@pytest.mark.slow
def test_a_screenshot_has_the_requested_size(page: Path, tmp_path: Path) -> None:
    found = screenshot(page, tmp_path / "new" / "page.png", 900, 500)
    with Image.open(found) as image:
        assert image.size == (900, 500)
        colours = image.convert("RGB").getcolors()
    assert colours == [(900 * 500, (0x24, 0x57, 0xD6))]  # no scrollbar


def test_without_a_browser_the_error_has_the_command_to_install_one(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install chromium"):
        screenshot(page, tmp_path / "page.png", 900, 500)


def test_a_missing_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.html"):
        screenshot(tmp_path / "no.html", tmp_path / "page.png", 900, 500)


def test_an_impossible_size_is_refused(page: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 x 500"):
        screenshot(page, tmp_path / "page.png", 0, 500)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["exit 0", "echo cannot draw >&2; exit 1", "sleep 30"])
def test_a_browser_that_takes_no_picture_is_a_fault(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake = tmp_path / "bin" / "chromium"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    old = tmp_path / "page.png"
    old.write_bytes(b"an older picture")
    with pytest.raises(Fault, match=re.escape(str(fake))):
        screenshot(page, old, 900, 500, timeout_seconds=2)
    assert not old.exists()
