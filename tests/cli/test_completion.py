"""What a shell completes, called as bash and zsh call it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from turbo_vaed import cli
from turbo_vaed.cli import completion
from turbo_vaed.config.stages import STAGES

BIN = Path(sys.executable).parent


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two customers."""
    (tmp_path / "params.yaml").write_text(
        "customers:\n  acme: {source: a}\n  zenith: {source: z}\n"
    )
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def ask(checkout, monkeypatch, capsys):
    """`ask(*words)`: what bash is given for a line of these words, the last being typed."""

    def run(*words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(["turbo-vaed", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_TURBO_VAED_COMPLETE", "complete_bash")
        monkeypatch.setattr(sys, "argv", ["turbo-vaed"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out.split()

    return run


@pytest.mark.parametrize(
    "words",
    [("poc", ""), ("gate", "explain", ""), ("cost", "report", "--customer", "")],
)
def test_customers_of_this_checkout_are_completed(ask, words):
    assert ask(*words) == ["acme", "zenith"]


def test_commands_and_partial_words_are_completed(ask):
    assert "roi" in ask("cost", "")
    assert ask("poc", "z") == ["zenith"]
    assert ask("stage", "e") == [stage for stage in STAGES if stage.startswith("e")]


def test_the_script_for_bash_completes(checkout):
    script = """
        eval "$(_TURBO_VAED_COMPLETE=source_bash turbo-vaed)"
        COMP_WORDS=(turbo-vaed poc ""); COMP_CWORD=2
        $(complete -p turbo-vaed | sed 's/.*-F \\([^ ]*\\) .*/\\1/') turbo-vaed "" poc
        echo "${COMPREPLY[@]}"
    """
    answer = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["acme", "zenith"]


@pytest.mark.parametrize("text", ["customers: [", "", "customers:\n", "- 1\n", "customers: 3\n"])
def test_a_file_that_cannot_be_read_completes_nothing(checkout, text):
    (checkout / "params.yaml").write_text(text)
    assert completion.customers("") == []


def test_hundreds_of_customers_are_completed_at_once(checkout):
    lines = [
        f"  customer-{n:03}:\n    source: a\n    distill: {{steps: {n}}}\n" for n in range(300)
    ]
    (checkout / "params.yaml").write_text("customers:\n" + "".join(lines))
    start = time.process_time()
    assert len(completion.customers("customer-1")) == 100
    assert time.process_time() - start < 0.5
