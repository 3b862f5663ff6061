from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.teachers import describe_teacher, load_teacher

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def edit(tiny_teacher: Path, tmp_path: Path):
    """A copy of the teacher with its config changed; the weights are the same file."""

    def edit(**changes: object) -> Path:
        config = json.loads((tiny_teacher / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        (tmp_path / WEIGHTS).write_bytes((tiny_teacher / WEIGHTS).read_bytes())
        return tmp_path

    return edit


def test_the_facts_agree_with_the_network(tiny_teacher: Path) -> None:
    facts = describe_teacher("ltx-video", tiny_teacher)
    teacher = load_teacher("ltx-video", tiny_teacher)
    assert teacher.latent_spec == facts.latent_spec and teacher.sha256 == facts.sha256
    parameters = sum(p.numel() for p in teacher.module.decoder.parameters())
    assert teacher.decoder_parameters == facts.decoder_parameters == parameters
    spec = facts.latent_spec
    assert (spec.channels, spec.compression_t, spec.compression_h, spec.compression_w) == (
        8,
        4,
        8,
        8,
    )
    assert (spec.mean, spec.std) == ((0.5,) * 8, (2.0,) * 8)
    assert not any(p.requires_grad for p in teacher.module.parameters())


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 64), (5, 16, 16), (1, 8, 24)])
def test_the_shapes_are_those_that_the_spec_says(
    tiny_teacher: Path, frames: int, height: int, width: int
) -> None:
    teacher = load_teacher("ltx-video", tiny_teacher)
    spec = teacher.latent_spec
    assert spec.legal_frames(frames) and spec.legal_size(height, width)
    video = torch.rand(2, 3, frames, height, width) * 2 - 1
    latents = teacher.encode(video)
    assert tuple(latents.shape) == (2, *spec.latent_shape(frames, height, width))
    assert teacher.decode(latents).shape == video.shape
    assert not latents.requires_grad


def test_latents_are_the_raw_mean_and_do_not_change_from_call_to_call(tiny_teacher: Path) -> None:
    teacher = load_teacher("ltx-video", tiny_teacher)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        moments = teacher.module.encoder(video)
    torch.testing.assert_close(teacher.encode(video), moments[:, :8])
    torch.testing.assert_close(teacher.encode(video), teacher.encode(video), rtol=0, atol=0)


def test_dtype_is_taken(tiny_teacher: Path) -> None:
    teacher = load_teacher("ltx-video", tiny_teacher, torch.bfloat16, "cpu")
    assert teacher.encode(torch.zeros(1, 3, 1, 8, 8)).dtype == torch.bfloat16


def test_legal_frames_and_sizes(tiny_teacher: Path) -> None:
    spec = describe_teacher("ltx-video", tiny_teacher).latent_spec
    assert [n for n in range(12) if spec.legal_frames(n)] == [1, 5, 9]
    assert spec.legal_size(8, 16) and not spec.legal_size(8, 12) and not spec.legal_size(0, 8)


def test_an_unknown_family_lists_the_known(tmp_path: Path) -> None:
    for call in (describe_teacher, load_teacher):
        with pytest.raises(UserError, match="unknown teacher family 'wan'; known: ltx-video"):
            call("wan", tmp_path)


def test_a_truncated_or_alien_weights_file(edit) -> None:
    folder = edit()
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[:-100], whole[:10], b"", b"not safetensors" * 100):
        (folder / WEIGHTS).write_bytes(content)
        for call in (describe_teacher, load_teacher):
            with pytest.raises(CorruptFile, match=rf"(?s){WEIGHTS} cannot be read.*restore"):
                call("ltx-video", folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CorruptFile, match=f"{WEIGHTS} cannot be read"):
        describe_teacher("ltx-video", folder)


def test_weights_that_do_not_fit_the_config(edit) -> None:
    with pytest.raises(
        CorruptFile, match=r"(?s)do not make a AutoencoderKLLTXVideo.*size mismatch"
    ):
        load_teacher("ltx-video", edit(latent_channels=4))


def test_a_broken_or_foreign_config(edit) -> None:
    with pytest.raises(CorruptFile, match="not the config of a AutoencoderKLLTXVideo"):
        describe_teacher("ltx-video", edit(_class_name="AutoencoderKL"))
    folder = edit()
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"config\.json cannot be read"):
        load_teacher("ltx-video", folder)
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKLLTXVideo"}')
    with pytest.raises(CorruptFile, match="lacks latent_channels, patch_size"):
        describe_teacher("ltx-video", folder)


def test_a_variant_that_needs_a_timestep_or_noise_is_refused(edit) -> None:
    with pytest.raises(UserError, match="timestep conditioning or injected noise"):
        describe_teacher("ltx-video", edit(timestep_conditioning=True))
    with pytest.raises(UserError, match="timestep conditioning or injected noise"):
        describe_teacher("ltx-video", edit(decoder_inject_noise=[True, False, False]))


def test_loading_is_quiet_and_leaves_logging_as_it_was(tiny_teacher: Path) -> None:
    """In a process of its own: here diffusers is imported already."""
    code = (
        "import logging, sys; from pathlib import Path\n"
        "from turbo_vaed.models.teachers import load_teacher\n"
        "load_teacher('ltx-video', Path(sys.argv[1]))\n"
        "assert logging.root.manager.disable == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_teacher)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_factory_pickles(tiny_teacher: Path) -> None:
    make = pickle.loads(pickle.dumps(partial(load_teacher, "ltx-video", tiny_teacher)))
    assert make().sha256 == describe_teacher("ltx-video", tiny_teacher).sha256
