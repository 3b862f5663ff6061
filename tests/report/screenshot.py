"""A picture of a page, taken by a headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from turbo_vaed.errors import Fault, UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--no-default-browser-check", "--hide-scrollbars",
)  # fmt: skip
"""Nothing is fetched, asked or drawn beyond the page."""


def find_browser() -> str:
    """The path of a Chromium.

    Raises:
        UserError: there is none on the PATH.
    """
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise UserError(
        f"no browser for a screenshot: looked for {', '.join(BROWSERS)} on the PATH; "
        "install one, for instance with: apt install chromium"
    )


def screenshot(
    html_path: Path, png_path: Path, width: int, height: int, *, timeout_seconds: float = 60
) -> Path:
    """Write the top `width` x `height` pixels of a page as a PNG and return its path.

    Chromium's window is at least 500 pixels wide; a narrower picture shows the page's left part.

    Raises:
        UserError: no page, no browser, or an impossible size.
        Fault: the browser took no picture.
    """
    if not html_path.is_file():
        raise UserError(f"{html_path}: no such page; write the report first")
    if width < 1 or height < 1:
        raise UserError(f"screenshot of {width} x {height} pixels; both must be at least 1")
    browser = find_browser()
    png_path.parent.mkdir(parents=True, exist_ok=True)
    png_path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser, *QUIET_FLAGS, f"--user-data-dir={profile}",
            f"--window-size={width},{height}", f"--screenshot={png_path.resolve()}",
            html_path.resolve().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise Fault(f"{browser} took no picture in {timeout_seconds:g} s") from None
    if done.returncode or not png_path.is_file():
        raise Fault(
            f"{browser} took no picture of {html_path} (exit {done.returncode}): "
            f"{done.stderr.strip()[-500:]}"
        )
    return png_path
