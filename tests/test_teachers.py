"""`turbo-vaed teacher show`; tests/models/teachers/test_hub.py has the verbs that ask the hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from turbo_vaed import cli
from turbo_vaed.errors import UserError
from turbo_vaed.models import DecoderConfig
from turbo_vaed.models.sizing import count_parameters
from turbo_vaed.teachers import fetch

TEACHER = Path(__file__).parents[1] / "assets/teachers/tiny-ltx"


@pytest.fixture
def show(monkeypatch, capsys):
    """`show(*arguments)` -> (exit code, stdout, stderr)."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["turbo-vaed", "teacher", "show", *arguments])
        code = cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_a_teacher_as_json_names_the_student_for_it(show) -> None:
    arguments = (str(TEACHER), "--family", "ltx-video", "--fraction", "0.1", "--format", "json")
    code, out, _ = show(*arguments)
    assert code == 0
    found = json.loads(out)
    training = json.loads((TEACHER / "training.json").read_text())
    assert found["sha256"] == training["sha256"]
    assert found["latents"]["decoder_parameters"] == training["decoder_parameters"]
    assert found["clips"] == {
        "frames": "4k+1",
        "height": "multiples of 8",
        "width": "multiples of 8",
    }
    student = DecoderConfig.from_published(found["student"]["config"])
    assert count_parameters(student) == found["student"]["parameters"]
    assert found["student"]["parameters"] <= 0.1 * training["decoder_parameters"]


def test_a_teacher_as_a_table(show) -> None:
    code, out, _ = show(str(TEACHER), "--family", "ltx-video")
    assert code == 0
    for said in ("ltx-video", "4k+1", "multiples of 8", "5793116", "student widths"):
        assert said in out


def test_a_share_that_is_too_small_is_told_and_is_no_fault(show) -> None:
    arguments = (str(TEACHER), "--family", "ltx-video", "--fraction", "0.001", "--format", "json")
    code, out, _ = show(*arguments)
    assert code == 0
    student = json.loads(out)["student"]
    assert "smallest student" in student["impossible"]
    assert "config" not in student


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((str(TEACHER), "--family", "vae"), 2, "unknown teacher family 'vae'; known: ltx-video"),
        ((str(TEACHER), "--family", "mochi"), 2, "not the config of a AutoencoderKLMochi"),
        (("no/such-folder", "--family", "mochi"), 2, "'no/such-folder' is no folder, and no model"),
        ((str(TEACHER),), 2, "--family"),
        *(
            ((str(TEACHER), "--family", "ltx-video", "--fraction", share), 2, f"{said}; allowed:")
            for share, said in (("2", "2.0"), ("nan", "nan"), ("0", "0.0"), ("-0.1", "-0.1"))
        ),
    ],
)
def test_users_mistakes(show, arguments: tuple[str, ...], code: int, said: str) -> None:
    found, _, err = show(*arguments)
    assert found == code
    assert said in err


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "a\0b", "a b", "a\n", "ä", "a" * 101]
)
def test_a_name_that_is_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--name .* is not allowed: .* at most 100"):
        fetch(tmp_path, f"org/tiny@{'0' * 40}", "wan-2.1", name)


@pytest.mark.parametrize(
    "model", ["org/name/../teachers/tiny", "org/name/./vae", "org/name/.git", "../name", "org/.."]
)
def test_a_model_that_leads_elsewhere(tmp_path: Path, show, model: str) -> None:
    hub_id = f"{model}@{'0' * 40}"
    with pytest.raises(UserError, match="no part begins with a dot"):
        fetch(tmp_path, hub_id, "wan-2.1", "mine")
    assert not list(tmp_path.iterdir())
    code, _, err = show(hub_id, "--family", "wan-2.1")
    assert (code, "no part begins with a dot" in err) == (2, True)


@pytest.mark.parametrize("model", ["org/a--b", "org/x.git", "org/a..b", f"org/{'a' * 100}"])
def test_a_model_that_the_hub_does_not_allow(tmp_path: Path, model: str) -> None:
    with pytest.raises(UserError, match="is no name on the hub: "):
        fetch(tmp_path, f"{model}@{'0' * 40}", "wan-2.1", "mine")


@pytest.mark.parametrize("verb", ["show", "fetch"])
def test_help(monkeypatch, capsys, verb: str) -> None:
    monkeypatch.setattr(sys, "argv", ["turbo-vaed", "teacher", verb, "--help"])
    assert cli.main() == 0
    assert "ORG/NAME" in capsys.readouterr().out
