"""`turbo-vaed teacher show` and `encode`; what asks the hub: tests/models/teachers/test_hub.py."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from turbo_vaed import cli
from turbo_vaed.cli.teacher import fetch
from turbo_vaed.errors import UserError
from turbo_vaed.models import DecoderConfig
from turbo_vaed.models.sizing import count_parameters
from turbo_vaed.models.teachers import load_teacher

TEACHER = Path(__file__).parents[2] / "assets/teachers/tiny-ltx"


@pytest.mark.slow
def test_encode_writes_the_latents_of_the_middle_of_the_picture(
    monkeypatch, capsys, tmp_path, tiny_teacher, make_video
) -> None:
    """Those that the teacher makes of the first frames, as PyAV reads them."""
    video = make_video(tmp_path / "v.mp4", frames=12, width=160, height=144)
    out = tmp_path / "latents.npy"
    verb = ["turbo-vaed", "teacher", "encode", str(tiny_teacher), str(video), str(out)]
    options = ["--family", "ltx-video", "--frames", "9", "--size", "32"]
    monkeypatch.setattr(sys, "argv", [*verb, *options])
    assert cli.main() == 0
    assert "float32 (8, 3, 4, 4)" in capsys.readouterr().out
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:9]
    square = np.stack(frames)[:, 56:88, 64:96]
    clip = torch.from_numpy(square).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    expected = load_teacher("ltx-video", tiny_teacher).encode(clip)[0].numpy()
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("9", "256"), r"v\.mp4: found 160x144 pixels, --size .*256x256"),
        (("13", "32"), r"v\.mp4: found 12 frames, --frames .*13"),
        (("10", "32"), r"v\.mp4: .*found 10 frames, allowed"),
    ],
)
def test_encode_refuses_a_video_that_does_not_fit(
    monkeypatch, capsys, tmp_path, tiny_teacher, make_video, options, message
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=12, width=160, height=144)
    verb = ["turbo-vaed", "teacher", "encode", str(tiny_teacher), str(video), str(tmp_path / "o")]
    frames, size = options
    arguments = ["--family", "ltx-video", "--frames", frames, "--size", size]
    monkeypatch.setattr(sys, "argv", [*verb, *arguments])
    assert cli.main() == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o.npy").exists()


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
    for fact in ("ltx-video", "4k+1", "multiples of 8", "5793116", "student widths"):
        assert fact in out


def test_a_share_that_is_too_small_is_reported_as_impossible(show) -> None:
    arguments = (str(TEACHER), "--family", "ltx-video", "--fraction", "0.001", "--format", "json")
    code, out, _ = show(*arguments)
    assert code == 0
    student = json.loads(out)["student"]
    assert "0.001" in student["impossible"]
    assert "config" not in student


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((str(TEACHER), "--family", "vae"), 2, "'vae'; known: ltx-video"),
        ((str(TEACHER), "--family", "mochi"), 2, "AutoencoderKLMochi, but of AutoencoderKLLTX"),
        (("no/such-folder", "--family", "mochi"), 2, "'no/such-folder'"),
        ((str(TEACHER),), 2, "--family"),
        *(
            ((str(TEACHER), "--family", "ltx-video", "--fraction", share), 2, f"{value}; allowed:")
            for share, value in (("2", "2.0"), ("nan", "nan"), ("0", "0.0"), ("-0.1", "-0.1"))
        ),
    ],
)
def test_a_users_mistake_is_refused_by_its_argument(
    show, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = show(*arguments)
    assert found == code
    assert message in err


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "a\0b", "a b", "a\n", "ä", "a" * 101]
)
def test_a_name_that_is_not_a_plain_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--name .*\b100\b"):
        fetch(tmp_path, f"org/tiny@{'0' * 40}", "wan-2.1", name)


@pytest.mark.parametrize(
    "model", ["org/name/../teachers/tiny", "org/name/./vae", "org/name/.git", "../name", "org/.."]
)
def test_a_hub_id_with_path_parts_that_begin_with_a_dot_is_refused(
    tmp_path: Path, show, model: str
) -> None:
    hub_id = f"{model}@{'0' * 40}"
    with pytest.raises(UserError, match=f"{re.escape(repr(hub_id))}.* a dot"):
        fetch(tmp_path, hub_id, "wan-2.1", "mine")
    assert not list(tmp_path.iterdir())
    code, _, err = show(hub_id, "--family", "wan-2.1")
    assert (code, repr(hub_id) in err) == (2, True)


@pytest.mark.parametrize("model", ["org/a--b", "org/x.git", "org/a..b", f"org/{'a' * 100}"])
def test_a_name_that_the_hub_does_not_allow_is_refused(tmp_path: Path, model: str) -> None:
    hub_id = f"{model}@{'0' * 40}"
    with pytest.raises(UserError, match=f"{re.escape(repr(hub_id))} .*name on the hub"):
        fetch(tmp_path, hub_id, "wan-2.1", "mine")


@pytest.mark.parametrize("verb", ["show", "fetch"])
def test_help_describes_hub_ids(monkeypatch, capsys, verb: str) -> None:
    monkeypatch.setattr(sys, "argv", ["turbo-vaed", "teacher", verb, "--help"])
    assert cli.main() == 0
    assert "ORG/NAME" in capsys.readouterr().out
