"""A machine without what a run needs is refused before the run, in one sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from turbo_vaed.errors import Fault, UserError
from turbo_vaed.planning import environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with room on its disk, whatever this machine has."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=environment.MIN_FREE_BYTES)
    )
    root = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


def check(root: Path) -> None:
    environment.check_environment(root, root / "work" / "demo")


def test_a_valid_checkout_is_left_as_it_is(checkout):
    before = sorted(checkout.iterdir())
    check(checkout)
    assert sorted(checkout.iterdir()) == before


def test_a_machine_without_git_is_refused(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(UserError, match=r"git .*start"):
        check(checkout)


def test_git_that_does_not_answer_is_a_fault(checkout, monkeypatch):
    def hang(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(environment.subprocess, "run", hang)
    with pytest.raises(Fault, match=re.escape(str(checkout))):
        check(checkout)


def test_a_folder_without_a_repository_is_refused(checkout):
    shutil.rmtree(checkout / ".git")
    with pytest.raises(UserError, match="git init"):
        check(checkout)


@pytest.mark.parametrize("name", ["work", "state", ".dvc", "work/demo"])
def test_a_folder_that_cannot_be_written_is_refused(checkout, name):
    folder = checkout / name
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to("/proc")  # where root cannot make files either
    with pytest.raises(UserError, match=re.escape(str(folder))):
        check(checkout)


def test_a_nearly_full_disk_is_a_fault(checkout, monkeypatch):
    free = environment.MIN_FREE_BYTES - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(Fault, match="GB free"):
        check(checkout)
