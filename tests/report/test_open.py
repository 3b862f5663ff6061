"""`turbo-vaed report open`: which page it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import configs
from turbo_vaed import cli
from turbo_vaed.workspace import Workspace

ROOT = Path(__file__).parents[2]


def test_report_open_finds_the_page_of_a_run_that_did_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs.copy_to(tmp_path)
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["turbo-vaed", "report", "open", "demo"])
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def call() -> tuple[int, str, str]:
        return (cli.main(), *capsys.readouterr())

    workspace = Workspace.load(tmp_path, "demo")
    code, out, err = call()
    assert (code, out, opened) == (2, "", []) and "turbo-vaed poc demo" in err

    workspace.not_started.parent.mkdir(parents=True)
    workspace.not_started.touch()
    assert call() == (0, f"{workspace.not_started}\n", "")
    assert opened == [workspace.not_started.as_uri()]

    workspace.report.touch()
    code, out, err = call()
    assert (code, out) == (0, f"{workspace.report}\n")
    assert str(workspace.not_started) in err and err.count("\n") == 1

    workspace.not_started.unlink()
    assert call() == (0, f"{workspace.report}\n", "")
    assert opened[1:] == [workspace.report.as_uri()] * 2
