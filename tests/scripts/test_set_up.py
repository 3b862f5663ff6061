"""`make setup` and `make poc`: which Python is taken, and what a failure ends with."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_environment.sh"


@pytest.fixture
def path(tmp_path):
    """A folder to be all of PATH: nothing in it but a shell and what the script calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "rm", "mkdir", "ln"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def add_program(path: Path, name: str, body: str) -> None:
    (path / name).write_text(f"#!{shutil.which('sh')}\n{body}\n")
    (path / name).chmod(0o755)


def add_python(path: Path, name: str, version: str, *, has_venv: bool = True) -> None:
    """A stand-in that answers its version, and makes environments with itself as their Python."""
    make = 'mkdir -p "$4/bin"; ln -sf "$0" "$4/bin/python"; echo made-by-$0 > "$4/log"'
    answer = f"echo {version}" if has_venv else "exit 1"
    add_program(path, name, f'if [ "$1" = -c ]; then {answer}; else {make}; fi')


def set_up(path: Path, python: str = "") -> tuple[int, Path | None, str]:
    """Exit code, which program made the environment (None: none did), what was printed."""
    venv = path.parent / "venv"
    answer = subprocess.run(
        ["sh", SCRIPT, venv],
        env={"PATH": str(path), "PYTHON": python},
        capture_output=True,
        text=True,
    )
    log = venv / "log"
    made_by = Path(log.read_text().strip().removeprefix("made-by-")) if log.is_file() else None
    return answer.returncode, made_by, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        ({"python3": "3.11"}, "python3"),
        ({"python3": "3.14", "python3.12": "3.12", "python3.13": "3.13"}, "python3.12"),
        ({"python3": "3.13", "python3.11": "3.11"}, "python3.11"),
        ({"python3": "3.9", "python3.13": "3.13"}, "python3.13"),
    ],
)
def test_the_best_tested_python_on_path_is_taken(path, present, taken):
    for name, version in present.items():
        add_python(path, name, version)
    assert set_up(path)[:2] == (0, path / taken)


def test_a_python_without_venv_or_that_does_not_start_is_skipped(path):
    add_program(path, "python3.11", "echo 'command not found' >&2; exit 127")
    add_python(path, "python3.12", "3.12", has_venv=False)
    add_python(path, "python3.13", "3.13")
    assert set_up(path)[:2] == (0, path / "python3.13")


def test_uv_brings_one_where_none_fits(path):
    add_python(path, "python3", "3.14")
    add_program(
        path, "uv", 'for last; do :; done; mkdir -p "$last"; echo "made-by-$*" > "$last/log"'
    )
    code, made_by, printed = set_up(path)
    assert code == 0
    assert "--python 3.11" in str(made_by)
    assert "uv brings 3.11" in printed


def test_without_any_python_or_uv_set_up_names_what_is_needed(path):
    code, made_by, printed = set_up(path)
    assert (code, made_by) == (1, None)
    assert "uv" in printed


def test_a_python_given_by_name_is_used_or_refused(path):
    add_python(path, "python3.11", "3.11")
    add_python(path, "python3.9", "3.9")
    add_python(path, "python3.13", "3.13")
    code, made_by, printed = set_up(path, "python3.9")
    assert (code, made_by) == (1, None)
    assert "3.9" in printed
    assert set_up(path, "python3.13")[:2] == (0, path / "python3.13")


def test_an_existing_environment_is_left_as_it_is(path):
    add_python(path, "python3.12", "3.12")
    assert set_up(path)[:2] == (0, path / "python3.12")
    add_python(path, "python3.11", "3.11")
    assert set_up(path)[:2] == (0, path / "python3.12")
    assert set_up(path, "python3.11")[:2] == (0, path / "python3.11")


def test_an_environment_without_pip_is_made_again(path):
    add_python(path, "python3.12", "3.12")
    set_up(path)
    bare = 'case "$2" in *pip) exit 1;; esac; echo 3.12'
    add_program(path.parent / "venv" / "bin", "bare", bare)
    (path.parent / "venv" / "bin" / "bare").replace(path.parent / "venv" / "bin" / "python")
    add_python(path, "python3.11", "3.11")
    assert set_up(path)[:2] == (0, path / "python3.11")


def test_pyproject_and_the_script_name_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    begin = "Programming Language :: Python :: "
    versions = " ".join(one.removeprefix(begin) for one in project["classifiers"])
    assert f'SUPPORTED="{versions}"' in SCRIPT.read_text()
    assert project["requires-python"] == ">=3.11,<3.14"


@pytest.mark.parametrize(("code", "kind"), [(0, ""), (1, "refused"), (2, "mistake"), (3, "fault")])
def test_make_prints_the_code_that_a_run_ended_with(tmp_path, code, kind):
    add_program(tmp_path, "turbo-vaed", f"exit {code}")
    answer = subprocess.run(
        ["make", "--file", ROOT / "Makefile", "--old-file=setup", f"BIN={tmp_path}", "poc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == (2 if code else 0)  # make knows no other
    assert (f"exited with {code}" in answer.stderr) == bool(code)
    assert kind in answer.stderr


def test_a_commit_is_checked_by_what_make_lint_runs():
    (recipe,) = re.findall(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    checks = {line.strip().removeprefix("$(BIN)/").split()[0] for line in recipe.splitlines()}
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert checks <= {entry.split()[0].removeprefix(".venv/bin/") for entry in entries}
