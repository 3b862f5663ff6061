"""The family dc-ae-video: folders, the promises of its spec, features, refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models import PRESETS, AlignmentHeads, TurboVaedDecoder
from turbo_vaed.models.dc_ae import PUBLISHED, DcAe, DcAeConfig
from turbo_vaed.models.teachers import Teacher, dc_ae_video, describe_teacher, load_teacher

FAMILY = "dc-ae-video"
DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "golden" / "dc-ae-teacher-small.safetensors"
TINY = json.loads((DATA / "tiny-teachers" / "dc-ae-video.json").read_text())
BLOCKS = ("mid_block", *(f"up_block_{i}" for i in range(6)))


@pytest.fixture(scope="module")
def tiny(make_teacher: Callable[[str], Path]) -> Path:
    """A folder with a tiny random teacher."""
    return make_teacher(FAMILY)


@pytest.fixture(scope="module")
def teacher(tiny: Path) -> Teacher:
    return load_teacher(FAMILY, tiny)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A folder of one's own to damage."""
    return shutil.copytree(tiny, tmp_path / "teacher")


def assert_refused(folder: Path, error: type[Exception], message: str) -> None:
    """From the files alone, and when it is loaded."""
    for call in (describe_teacher, load_teacher):
        with pytest.raises(error, match=message):
            call(FAMILY, folder)


def test_a_teachers_folder_gives_the_published_numbers(tmp_path: Path) -> None:
    with safe_open(GOLDEN, framework="pt") as file:
        (tmp_path / "config.json").write_text(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if "weights." in k}
    save_file(weights, tmp_path / "model.safetensors")
    teacher = load_teacher(FAMILY, tmp_path)
    latents, video = teacher.encode(tensors["video"]), teacher.decode(tensors["latents"])
    torch.testing.assert_close(latents, tensors["latents"], atol=1e-4, rtol=0)
    torch.testing.assert_close(video, tensors["decoded"], atol=1e-4, rtol=0)


def test_the_facts_agree_with_the_network(tiny: Path, teacher: Teacher) -> None:
    facts = describe_teacher(FAMILY, tiny)
    spec = facts.latent_spec
    assert (facts.family, facts.sha256, spec) == (FAMILY, teacher.sha256, teacher.latent_spec)
    decoder = teacher.module.get_submodule("decoder")
    assert spec.decoder_parameters == sum(p.numel() for p in decoder.parameters())
    assert (spec.channels, spec.compression_t, spec.compression_h, spec.compression_w) == (
        16,
        4,
        32,
        32,
    )
    assert (spec.mean, spec.std) == ((0.0,) * 16, (0.5,) * 16)
    assert not any(p.requires_grad for p in teacher.module.parameters())


def test_the_published_file_needs_no_config(tmp_path: Path) -> None:
    """Its header alone, before a hole as long as the weights: no number of it is read."""
    with torch.device("meta"):
        network = DcAe(PUBLISHED["dc-ae-f32t4c128"])
    header, end = {}, 0
    for name, tensor in network.state_dict().items():
        start, end = end, end + tensor.numel()
        header[name] = {"dtype": "U8", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "F32T4C128_AE.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    _, spec = dc_ae_video.read(FAMILY, tmp_path)
    assert round(spec.decoder_parameters / 1e6, 2) == 239.02
    assert spec.latent_shape(32, 256, 256) == (128, 8, 8, 8)
    assert spec.scaling == (1 / 0.493,) * 128


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 32, 64), (12, 64, 32), (16, 32, 32)])
def test_shapes_agree_with_the_spec(teacher: Teacher, frames: int, height: int, width: int) -> None:
    spec = teacher.latent_spec
    assert spec.legal_frames(frames) and spec.legal_size(height, width)
    video = torch.rand(2, 3, frames, height, width) * 2 - 1
    latents = teacher.encode(video)
    assert tuple(latents.shape) == (2, *spec.latent_shape(frames, height, width))
    assert teacher.decode(latents).shape == video.shape
    assert tuple(video.shape[1:]) == spec.video_shape(*latents.shape[2:])


def test_a_sample_of_the_code_equals_its_mean(teacher: Teacher) -> None:
    video = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    mean, sample = teacher.encode(video), teacher.encode(video, torch.Generator().manual_seed(1))
    assert torch.equal(mean, sample)


def test_the_requested_dtype_is_used(tiny: Path) -> None:
    rough = load_teacher(FAMILY, tiny, torch.bfloat16)
    latents = rough.encode(torch.zeros(1, 3, 8, 32, 32))
    assert latents.dtype == rough.decode(latents).dtype == torch.bfloat16


# --- features ---


def test_features_are_the_stages_deepest_first(teacher: Teacher) -> None:
    assert teacher.block_names == BLOCKS
    latents = torch.randn(2, 16, 3, 1, 2)
    video, features = teacher.decode_with_features(latents, BLOCKS)
    assert torch.equal(video, teacher.decode(latents))
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "mid_block": (32, 3, 1, 2),
        "up_block_0": (32, 3, 1, 2),
        "up_block_1": (32, 6, 2, 4),
        "up_block_2": (32, 12, 4, 8),
        "up_block_3": (16, 12, 8, 16),
        "up_block_4": (8, 12, 16, 32),
        "up_block_5": (8, 12, 32, 64),
    }
    decoder = teacher.module.get_submodule("decoder")
    with torch.inference_mode():
        again = decoder.get_submodule("project_out")(features["up_block_5"])
        first = decoder.get_submodule("project_in")(latents)
    assert torch.equal(again, video) and torch.equal(first, features["mid_block"])
    assert list(teacher.decode_with_features(latents, ["up_block_1"]).features) == ["up_block_1"]


def test_the_published_student_aligns_with_these_features() -> None:
    """At full width its projected features have the teacher's shapes, block by block."""
    student, latents = PRESETS["turbo-vaed-dc"], torch.zeros(1, 128, 2, 1, 2)
    with torch.no_grad():
        features = TurboVaedDecoder(student).decode_with_features(latents).features
        projected = AlignmentHeads(student)(features)
    with torch.device("meta"):
        network = DcAe(PUBLISHED["dc-ae-f32t4c128"])
    blocks = dc_ae_video.decoder_blocks(network)
    shapes = {}
    for name in projected:
        blocks[name].register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: output.shape})
        )
    network.decode(latents.to("meta"))
    assert list(projected) == ["mid_block", "up_block_0", "up_block_1"]
    assert {name: feature.shape for name, feature in projected.items()} == shapes


# --- refusals ---


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 9, 32, 32), r"found 9 frames.*4k, .*\b8\b.*\b8 and 12"),
        ((1, 3, 4, 32, 32), r"found 4 frames.*4k, .*\b8\b.*\b8 and 12"),
        ((1, 3, 1, 32, 32), r"found 1 frames.*4k, .*\b8\b"),
        ((1, 3, 8, 48, 32), r"found 48x32 pixels.*\b32x32"),
        ((1, 1, 8, 32, 32), r"video: found shape \(1, 1, 8, 32, 32\)"),
    ],
)
def test_videos_of_a_wrong_shape_are_refused(
    teacher: Teacher, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        teacher.encode(torch.zeros(shape))


def test_latents_of_a_wrong_shape_or_value_are_refused(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match=r"latents: found shape .* allowed: \(B, 16, t, h, w\)"):
        teacher.decode(torch.zeros(1, 8, 2, 1, 1))
    with pytest.raises(ValueError, match=r"latents: found 1 frames.*\b2 and 3"):
        teacher.decode(torch.zeros(1, 16, 1, 1, 1))
    with pytest.raises(ValueError, match="latents: found NaN"):
        teacher.decode(torch.full((1, 16, 2, 1, 1), math.nan))
    with pytest.raises(ValueError, match="video: found NaN"):
        teacher.encode(torch.full((1, 3, 8, 32, 32), math.nan))
    with pytest.raises(
        ValueError, match="names: found 'up_block_6', allowed: mid_block, up_block_0"
    ):
        teacher.decode_with_features(torch.zeros(1, 16, 2, 1, 1), ["up_block_6"])


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "no", UserError, r"/no .* F32T4C128_AE\.safetensors")


def test_pickled_weights_are_refused_unread(copy: Path) -> None:
    (copy / "F32T4C128_AE.pt").write_bytes(b"no pickle")
    assert_refused(copy, UserError, r"\(F32T4C128_AE\.pt\)")


def test_two_weights_files_are_refused(copy: Path) -> None:
    shutil.copy(copy / "model.safetensors", copy / "F32T4C128_AE.safetensors")
    assert_refused(copy, UserError, r"F32T4C128_AE\.safetensors and model\.safetensors")


def test_missing_weights_and_a_missing_config_are_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert_refused(copy, CorruptFile, r"config\.json")
    (copy / "model.safetensors").unlink()
    assert_refused(copy, CorruptFile, r"F32T4C128_AE\.safetensors")


def test_truncated_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_refused(copy, CorruptFile, r"model\.safetensors")


def test_missing_and_unexpected_keys_are_listed(copy: Path) -> None:
    weights = DcAe(DcAeConfig.from_published(TINY)).state_dict()
    weights["wings"] = weights.pop("decoder.project_in.main.conv.weight")
    save_file(weights, copy / "model.safetensors")
    assert_refused(
        copy,
        CorruptFile,
        r"missing: decoder\.project_in\.main\.conv\.weight; unexpected: wings",
    )


def test_a_file_of_the_published_name_implies_the_published_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "model.safetensors").rename(copy / "F32T4C128_AE.safetensors")
    assert_refused(copy, CorruptFile, r"shape: .* for \(128, 3, 3, 3, 3\)")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKLLTXVideo", "patch_size": 4}, "_class_name: found 'Auto"),
        (TINY | {"latent_channels": 32}, r"shape: decoder\.project_in"),
        (TINY | {"latent_channels": -1}, "latent_channels: found -1"),
        ({"model_name": "dc-ae-f32c32-in-1.0"}, "model_name: found 'dc-ae-f32c32-in-1.0'"),
        ([], r"config\.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy: Path, config: object, message: str) -> None:
    (copy / "config.json").write_text(json.dumps(config))
    assert_refused(copy, CorruptFile, message)
