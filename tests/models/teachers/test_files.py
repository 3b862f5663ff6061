"""A teacher's files: what is read, and what is refused, when described and when loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def assert_refused(family: str, folder: Path | str, error: type[Exception], said: str) -> None:
    """From the files alone, and when it is loaded."""
    for call in (describe_teacher, load_teacher, read_spec):
        with pytest.raises(error, match=said):
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


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert_refused("mochi", tmp_path / "none", UserError, "folder .*none does not exist; put conf")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "vae.pt", "a.ckpt", "b.pth"])
def test_pickled_weights_are_refused_beside_safetensors_too(edit: Edit, name: str) -> None:
    folder = edit()
    (folder / name).write_bytes(pickle.dumps({"a": 1}))
    assert_refused("ltx-video", folder, UserError, rf"pickled weights \({name}\).* convert")
    (folder / WEIGHTS).unlink()
    assert_refused("ltx-video", folder, UserError, rf"pickled weights \({name}\).* convert")


def test_a_truncated_or_foreign_weights_file(edit: Edit) -> None:
    folder = edit()
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[:-100], whole[:10], b"", b"not safetensors" * 100):
        (folder / WEIGHTS).write_bytes(content)
        assert_refused("ltx-video", folder, CorruptFile, rf"(?s){WEIGHTS} cannot be read.*restore")
    (folder / WEIGHTS).unlink()
    assert_refused("ltx-video", folder, CorruptFile, f"{WEIGHTS} cannot be read")


def test_a_broken_or_foreign_config(edit: Edit) -> None:
    said = "not the config of a AutoencoderKLLTXVideo, but of AutoencoderKLMochi; name the family"
    assert_refused("ltx-video", edit(_class_name="AutoencoderKLMochi"), UserError, said)
    assert_refused("ltx-video", edit(_class_name=None), UserError, "but of an unnamed class")
    folder = edit()
    for text, said in (
        ("{", r"config\.json"),
        ("[]", r"config\.json"),
        ('{"_class_name": "AutoencoderKLLTXVideo"}', "lacks latent_channels, patch_size"),
    ):
        (folder / CONFIG).write_text(text)
        assert_refused("ltx-video", folder, CorruptFile, said)
    (folder / CONFIG).unlink()
    assert_refused("ltx-video", folder, CorruptFile, r"config\.json cannot be read")


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("ltx-video", {"timestep_conditioning": True}, "timestep conditioning"),
        ("ltx-video", {"decoder_inject_noise": [True, False, False]}, "injected noise"),
        ("ltx-2", {"timestep_conditioning": True}, "timestep conditioning"),
        ("ltx-video", {"patch_size_t": 2}, "patch_size_t is 2; only 1"),
        ("wan-2.1", {"is_residual": True}, "that is the family wan-2.2"),
        ("wan-2.2", {"is_residual": False}, "that is the family wan-2.1"),
        ("wan-2.1", {"temperal_downsample": [False, False, True]}, "time 2 to 1; only 4"),
        ("cogvideox", {"temporal_compression_ratio": 8}, "ratio is 8; only 4"),
        ("hunyuan-video", {"temporal_compression_ratio": 8}, "ratio is 8; only 4"),
    ],
)
def test_a_variant_that_cannot_be_a_teacher(
    edit: Edit, family: str, changes: dict[str, object], said: str
) -> None:
    folder = edit(family, **changes)
    assert_refused(family, folder, UserError, f"is no teacher of the family {family}: .*{said}")


def test_statistics_that_are_not_those_of_the_channels(edit: Edit) -> None:
    folder = edit("wan-2.1", latents_mean=[0.0] * 5)
    assert_refused("wan-2.1", folder, CorruptFile, "latents_mean has 5 values for 4 channels")


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("hunyuan-video", {"latent_channels": "4"}, "latent_channels is '4'; allowed: a whole"),
        ("hunyuan-video", {"latent_channels": True}, "latent_channels is 'True'; allowed: a whole"),
        ("hunyuan-video", {"latent_channels": 0}, "latent_channels is '0'; allowed: a whole"),
        ("hunyuan-video", {"latent_channels": 10**12}, "latent_channels is '10+'; allowed"),
        (
            "hunyuan-video",
            {"scaling_factor": "x"},
            "scaling_factor is 'x'; allowed: a number above",
        ),
        ("hunyuan-video", {"scaling_factor": 0}, "scaling_factor is '0'; allowed: a number above"),
        ("hunyuan-video", {"scaling_factor": float("nan")}, "scaling_factor is 'nan'; allowed"),
        ("hunyuan-video", {"shift_factor": []}, r"shift_factor is '\[\]'; allowed: a finite"),
        ("hunyuan-video", {"spatial_compression_ratio": 7.5}, "spatial_compression_ratio is '7.5'"),
        (
            "ltx-video",
            {"decoder_spatio_temporal_scaling": 5},
            "decoder_.*scaling is '5'; allowed: a list of",
        ),
        (
            "ltx-video",
            {"decoder_spatio_temporal_scaling": [2]},
            "decoder_.*scaling is '.2.'; allowed: a list",
        ),
        ("ltx-video", {"timestep_conditioning": "no"}, "timestep_conditioning is 'no'; allowed"),
        ("ltx-2", {"upsample_type": ["up", "spatial"]}, r"upsample_type is .* list of spatial"),
        ("ltx-2", {"upsample_type": ["spatial"]}, "upsample_type has 1 entries, decoder_.* 2"),
        ("cogvideox", {"block_out_channels": 3}, "block_out_channels is '3'; allowed: a list"),
        ("mochi", {"temporal_expansions": [1, "2", 3]}, "temporal_expansions is .* a list"),
        ("wan-2.1", {"latents_mean": "abcd"}, "latents_mean is 'abcd'; allowed: a list of finite"),
        ("wan-2.1", {"latents_mean": []}, r"latents_mean is '\[\]'; allowed: a list of finite"),
        ("wan-2.1", {"latents_std": list("abcd")}, "latents_std is .* numbers above 0"),
        ("wan-2.1", {"latents_std": [1, 0, 1, 1]}, "latents_std is .* numbers above 0"),
    ],
)
def test_a_value_that_cannot_be(
    edit: Edit, family: str, changes: dict[str, object], said: str
) -> None:
    folder = edit(family, **changes)
    assert_refused(family, folder, CorruptFile, rf"config\.json is no config of a \w+: {said}")


@pytest.mark.parametrize("family", ROWS)
def test_channels_that_are_not_those_of_the_weights(edit: Edit, family: str) -> None:
    key = ROWS[family].channels
    folder = edit(family, **{key: 7, "latents_mean": [0.0] * 7, "latents_std": [1.0] * 7})
    said = rf"{key} is 7, but the weights decoder\.conv_in\S* take [48] channels"
    assert_refused(family, folder, CorruptFile, said)


def test_what_diffusers_cannot_build(edit: Edit) -> None:
    for changes in ({"norm_num_groups": 0}, {"layers_per_block": "two"}, {"layers_per_block": []}):
        with pytest.raises(CorruptFile, match="do not make a AutoencoderKLHunyuanVideo: "):
            load_teacher("hunyuan-video", edit("hunyuan-video", **changes))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("latents_std", torch.zeros(8), "latents_std has 0.0, not above 0"),
        ("latents_std", torch.full((8,), torch.nan), "latents_std has nan, not above 0"),
        ("latents_mean", torch.full((8,), torch.inf), "latents_mean has inf, not a finite number"),
        ("latents_mean", torch.zeros(()), "latents_mean has 1 values for 8 channels"),
        ("latents_mean", torch.zeros(16), "latents_mean has 16 values for 8 channels"),
    ],
)
def test_statistics_in_the_weights(edit: Edit, name: str, values: torch.Tensor, said: str) -> None:
    folder = edit()
    save_file({**load_file(folder / WEIGHTS), name: values}, folder / WEIGHTS)
    assert_refused("ltx-video", folder, CorruptFile, said)


def test_statistics_of_different_lengths(edit: Edit) -> None:
    folder = edit("cosmos", latents_std=[1.0] * 8)
    assert_refused("cosmos", folder, CorruptFile, "latents_mean has 12 values, latents_std 8")


def test_the_spec_alone_needs_no_digest(make_teacher, monkeypatch) -> None:
    folder = make_teacher("ltx-video")
    wanted = describe_teacher("ltx-video", folder).latent_spec
    monkeypatch.setattr(TeacherFiles, "sha256", _not_to_be_called)
    assert read_spec("ltx-video", folder) == wanted


def _not_to_be_called(_files: TeacherFiles) -> str:
    raise AssertionError("the whole weights are read")


def test_weights_without_the_statistics(edit: Edit) -> None:
    folder = edit()
    tensors = load_file(folder / WEIGHTS)
    del tensors["latents_std"]
    save_file(tensors, folder / WEIGHTS)
    assert_refused("ltx-video", folder, CorruptFile, "has no weights latents_std")


def test_weights_that_do_not_fit_the_config(edit: Edit) -> None:
    folder = edit()
    tensors = load_file(folder / WEIGHTS)
    weight = tensors.pop("decoder.conv_in.conv.weight")
    said = r"(?s)do not make a AutoencoderKLLTXVideo.*Missing key.*decoder\.conv_in\.conv\.weight"
    for given, message in (
        (tensors, said),
        ({**tensors, "decoder.conv_in.conv.weight": weight[:8]}, "(?s)do not make.*size mismatch"),
        (
            {**tensors, "decoder.conv_in.conv.weight": weight, "more": torch.zeros(1)},
            "(?s)do not make.*Unexpected key.*more",
        ),
    ):
        save_file({k: v.contiguous() for k, v in given.items()}, folder / WEIGHTS)
        with pytest.raises(CorruptFile, match=message):
            load_teacher("ltx-video", folder)


def test_shards_are_one_teacher(edit: Edit, make_teacher) -> None:
    folder = edit("wan-2.1")
    shards = shard(folder)
    whole = load_teacher("wan-2.1", make_teacher("wan-2.1"))
    split = load_teacher("wan-2.1", folder)
    assert split.latent_spec == whole.latent_spec
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(split.encode(video), whole.encode(video))
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in shards)
    assert split.sha256 == hashlib.sha256(digests.encode()).hexdigest()


def test_shards_that_are_broken(edit: Edit) -> None:
    folder = edit("wan-2.1")
    first, second = shard(folder)
    kept = second.read_bytes()
    second.write_bytes(kept[:-10])
    assert_refused("wan-2.1", folder, CorruptFile, f"{second.name} cannot be read")
    second.unlink()
    assert_refused("wan-2.1", folder, CorruptFile, f"{second.name} cannot be read")
    for index, said in (
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": f"../{first.name}"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "weights.bin"}}, "no safetensors file beside it"),
    ):
        (folder / INDEX).write_text(json.dumps(index))
        assert_refused("wan-2.1", folder, CorruptFile, said)


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
