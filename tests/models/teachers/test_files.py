"""A teacher's files: what is read, and what is refused, when described and when loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import for_every
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.teachers import describe_teacher, load_teacher, read_spec
from turbo_vaed.models.teachers.diffusers_vae import ROWS
from turbo_vaed.models.teachers.files import TeacherFiles

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
Edit = Callable[..., Path]


@pytest.fixture
def edit(make_teacher, tmp_path: Path) -> Edit:
    """`edit(family, **changes)`: a copy of its teacher with the config changed; None: removed."""

    def edit(family: str = "ltx-video", **changes: object) -> Path:
        source = make_teacher(family)
        config = {**json.loads((source / CONFIG).read_text()), **changes}
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / CONFIG).write_text(json.dumps(config))
        (tmp_path / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())
        return tmp_path

    return edit


def assert_refused(family: str, folder: Path | str, error: type[Exception], message: str) -> None:
    """From the files alone, and when it is loaded."""
    for call in (describe_teacher, load_teacher, read_spec):
        with pytest.raises(error, match=message):
            call(family, folder)


def shard(folder: Path) -> tuple[Path, Path]:
    """Split the weights of a folder in two, as large ones are published."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        save_file({k: v for k, v in tensors.items() if where[k] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder / names[0], folder / names[1]


def test_an_unknown_family_lists_the_known(tmp_path: Path) -> None:
    assert_refused("wan", tmp_path, UserError, "family 'wan'; known: ltx-video, .*, dc-ae-video")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused("mochi", tmp_path / "none", UserError, r"/none .*config\.json.*teacher fetch")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "vae.pt", "a.ckpt", "b.pth"])
def test_pickled_weights_are_refused_even_with_safetensors_present(edit: Edit, name: str) -> None:
    folder = edit()
    (folder / name).write_bytes(pickle.dumps({"a": 1}))
    assert_refused("ltx-video", folder, UserError, rf"\({name}\)")
    (folder / WEIGHTS).unlink()
    assert_refused("ltx-video", folder, UserError, rf"\({name}\)")


def test_a_truncated_or_foreign_weights_file_is_refused(edit: Edit) -> None:
    folder = edit()
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[:-100], whole[:10], b"", b"not safetensors" * 100):
        (folder / WEIGHTS).write_bytes(content)
        assert_refused("ltx-video", folder, CorruptFile, WEIGHTS)
    (folder / WEIGHTS).unlink()
    assert_refused("ltx-video", folder, CorruptFile, WEIGHTS)


def test_a_broken_or_foreign_config_is_refused(edit: Edit) -> None:
    message = r"AutoencoderKLLTXVideo, .*AutoencoderKLMochi; .*encode\.teacher_family"
    assert_refused("ltx-video", edit(_class_name="AutoencoderKLMochi"), UserError, message)
    assert_refused(
        "ltx-video", edit(_class_name=None), UserError, "AutoencoderKLLTXVideo, .*unnamed"
    )
    folder = edit()
    for text, message in (
        ("{", r"config\.json"),
        ("[]", r"config\.json"),
        ('{"_class_name": "AutoencoderKLLTXVideo"}', "lacks latent_channels, patch_size"),
    ):
        (folder / CONFIG).write_text(text)
        assert_refused("ltx-video", folder, CorruptFile, message)
    (folder / CONFIG).unlink()
    assert_refused("ltx-video", folder, CorruptFile, r"config\.json")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("ltx-video", {"timestep_conditioning": True}, "timestep conditioning"),
        ("ltx-video", {"decoder_inject_noise": [True, False, False]}, "injected noise"),
        ("ltx-2", {"timestep_conditioning": True}, "timestep conditioning"),
        ("ltx-video", {"patch_size_t": 2}, "patch_size_t is 2; only 1"),
        ("wan-2.1", {"is_residual": True}, r"wan-2\.2"),
        ("wan-2.2", {"is_residual": False}, r"wan-2\.1"),
        ("wan-2.1", {"temperal_downsample": [False, False, True]}, "time 2 to 1; only 4"),
        ("cogvideox", {"temporal_compression_ratio": 8}, "ratio is 8; only 4"),
        ("hunyuan-video", {"temporal_compression_ratio": 8}, "ratio is 8; only 4"),
    ],
)
def test_an_unsupported_variant_of_a_family_is_refused(
    edit: Edit, family: str, changes: dict[str, object], message: str
) -> None:
    folder = edit(family, **changes)
    assert_refused(family, folder, UserError, rf"config\.json .*\b{family}: .*{message}")


def test_statistics_that_do_not_match_the_channels_are_refused(edit: Edit) -> None:
    folder = edit("wan-2.1", latents_mean=[0.0] * 5)
    assert_refused("wan-2.1", folder, CorruptFile, "latents_mean has 5 values for 4 channels")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("hunyuan-video", {"latent_channels": "4"}, "latent_channels .*'4'"),
        ("hunyuan-video", {"latent_channels": True}, "latent_channels .*'True'"),
        ("hunyuan-video", {"latent_channels": 0}, "latent_channels .*'0'"),
        ("hunyuan-video", {"latent_channels": 10**12}, "latent_channels .*'10+'"),
        ("hunyuan-video", {"scaling_factor": "x"}, "scaling_factor .*'x'"),
        ("hunyuan-video", {"scaling_factor": 0}, "scaling_factor .*'0'"),
        ("hunyuan-video", {"scaling_factor": float("nan")}, "scaling_factor .*'nan'"),
        ("hunyuan-video", {"shift_factor": []}, r"shift_factor .*'\[\]'"),
        ("hunyuan-video", {"spatial_compression_ratio": 7.5}, "spatial_compression_ratio .*'7.5'"),
        (
            "ltx-video",
            {"decoder_spatio_temporal_scaling": 5},
            "decoder_spatio_temporal_scaling .*'5'",
        ),
        (
            "ltx-video",
            {"decoder_spatio_temporal_scaling": [2]},
            r"decoder_spatio_temporal_scaling .*'\[2\]'",
        ),
        ("ltx-video", {"timestep_conditioning": "no"}, "timestep_conditioning .*'no'"),
        ("ltx-2", {"upsample_type": ["up", "spatial"]}, "upsample_type .*'up'"),
        (
            "ltx-2",
            {"upsample_type": ["spatial"]},
            "upsample_type .*1 .*decoder_spatio_temporal_scaling 2",
        ),
        ("cogvideox", {"block_out_channels": 3}, "block_out_channels .*'3'"),
        ("mochi", {"temporal_expansions": [1, "2", 3]}, "temporal_expansions .*'2'"),
        ("wan-2.1", {"latents_mean": "abcd"}, "latents_mean .*'abcd'"),
        ("wan-2.1", {"latents_mean": []}, r"latents_mean .*'\[\]'"),
        ("wan-2.1", {"latents_std": list("abcd")}, "latents_std .*'a'"),
        ("wan-2.1", {"latents_std": [1, 0, 1, 1]}, r"latents_std .*\[1, 0, 1, 1\]"),
    ],
)
def test_an_impossible_value_in_the_config_is_refused_by_its_key(
    edit: Edit, family: str, changes: dict[str, object], message: str
) -> None:
    folder = edit(family, **changes)
    assert_refused(family, folder, CorruptFile, rf"config\.json .*{message}")


@for_every(ROWS)
def test_channels_that_do_not_match_the_weights_are_refused(edit: Edit, family: str) -> None:
    key = ROWS[family].channels
    folder = edit(family, **{key: 7, "latents_mean": [0.0] * 7, "latents_std": [1.0] * 7})
    assert_refused(
        family, folder, CorruptFile, rf"{key} is 7, .*decoder\.conv_in\S* .*[48] channels"
    )


def test_a_config_that_diffusers_cannot_build_is_refused(edit: Edit) -> None:
    for changes in ({"norm_num_groups": 0}, {"layers_per_block": "two"}, {"layers_per_block": []}):
        with pytest.raises(CorruptFile, match=r"config\.json .*AutoencoderKLHunyuanVideo: "):
            load_teacher("hunyuan-video", edit("hunyuan-video", **changes))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("latents_std", torch.zeros(8), "latents_std has 0.0"),
        ("latents_std", torch.full((8,), torch.nan), "latents_std has nan"),
        ("latents_mean", torch.full((8,), torch.inf), "latents_mean has inf"),
        ("latents_mean", torch.zeros(()), "latents_mean has 1 values for 8 channels"),
        ("latents_mean", torch.zeros(16), "latents_mean has 16 values for 8 channels"),
    ],
)
def test_invalid_statistics_in_the_weights_are_refused(
    edit: Edit, name: str, values: torch.Tensor, message: str
) -> None:
    folder = edit()
    save_file({**load_file(folder / WEIGHTS), name: values}, folder / WEIGHTS)
    assert_refused("ltx-video", folder, CorruptFile, message)


def test_statistics_of_different_lengths_are_refused(edit: Edit) -> None:
    folder = edit("cosmos", latents_std=[1.0] * 8)
    assert_refused("cosmos", folder, CorruptFile, "latents_mean has 12 values, latents_std 8")


def test_the_spec_alone_needs_no_digest(make_teacher, monkeypatch) -> None:
    folder = make_teacher("ltx-video")
    wanted = describe_teacher("ltx-video", folder).latent_spec
    monkeypatch.setattr(TeacherFiles, "sha256", _not_to_be_called)
    assert read_spec("ltx-video", folder) == wanted


def _not_to_be_called(_files: TeacherFiles) -> str:
    raise AssertionError("the whole weights are read")


def test_weights_without_statistics_are_refused(edit: Edit) -> None:
    folder = edit()
    tensors = load_file(folder / WEIGHTS)
    del tensors["latents_std"]
    save_file(tensors, folder / WEIGHTS)
    assert_refused("ltx-video", folder, CorruptFile, "no .*latents_std")


def test_weights_that_do_not_fit_the_config_are_refused(edit: Edit) -> None:
    folder = edit()
    tensors = load_file(folder / WEIGHTS)
    weight = tensors.pop("decoder.conv_in.conv.weight")
    name = "decoder.conv_in.conv.weight"
    for given, problem in (
        (tensors, rf"Missing key.*{re.escape(name)}"),
        ({**tensors, name: weight[:8]}, rf"size mismatch.*{re.escape(name)}"),
        ({**tensors, name: weight, "more": torch.zeros(1)}, "Unexpected key.*more"),
    ):
        save_file({k: v.contiguous() for k, v in given.items()}, folder / WEIGHTS)
        with pytest.raises(CorruptFile, match=f"(?s)AutoencoderKLLTXVideo.*{problem}"):
            load_teacher("ltx-video", folder)


def test_shards_load_as_one_teacher(edit: Edit, make_teacher) -> None:
    folder = edit("wan-2.1")
    shards = shard(folder)
    whole = load_teacher("wan-2.1", make_teacher("wan-2.1"))
    split = load_teacher("wan-2.1", folder)
    assert split.latent_spec == whole.latent_spec
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(split.encode(video), whole.encode(video))
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in shards)
    assert split.sha256 == hashlib.sha256(digests.encode()).hexdigest()


def test_broken_shards_are_refused(edit: Edit) -> None:
    folder = edit("wan-2.1")
    first, second = shard(folder)
    second.write_bytes(second.read_bytes()[:-10])
    assert_refused("wan-2.1", folder, CorruptFile, second.name)
    second.unlink()
    assert_refused("wan-2.1", folder, CorruptFile, second.name)
    for index, message in (
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": {"a": f"../{first.name}"}}, f"names ../{first.name}"),
        ({"weight_map": {"a": "weights.bin"}}, "names weights.bin"),
    ):
        (folder / INDEX).write_text(json.dumps(index))
        assert_refused("wan-2.1", folder, CorruptFile, f"{INDEX} .*{message}")


def test_the_factory_pickles(make_teacher) -> None:
    """Ray sends it to its workers."""
    folder = make_teacher("ltx-video")
    make = pickle.loads(pickle.dumps(partial(load_teacher, "ltx-video", folder)))
    assert make().sha256 == describe_teacher("ltx-video", folder).sha256


@pytest.mark.slow
def test_loading_is_quiet_and_leaves_logging_as_it_was(make_teacher) -> None:
    """In a process of its own: here diffusers is imported already."""
    code = (
        "import logging, sys; from pathlib import Path\n"
        "from turbo_vaed.models.teachers import load_teacher\n"
        "load_teacher('ltx-video', Path(sys.argv[1]))\n"
        "assert logging.root.manager.disable == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_teacher("ltx-video"))],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
