"""evaluate, export and gate on made-up clips, with a random teacher and student, for real."""

import dataclasses
import hashlib
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from turbo_vaed.dataset.manifest import COLUMNS, write_manifest
from turbo_vaed.devices import Measurement
from turbo_vaed.errors import CorruptFile, Fault
from turbo_vaed.export import load_package
from turbo_vaed.gate import read_verdict
from turbo_vaed.metrics import clip_quality
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.poc import Poc
from turbo_vaed.stages import evaluate, export, gate
from turbo_vaed.tracker import Tracker

SPLITS = ("train", "test", "val", "test", "test")
TESTS = [1, 3, 4]
FRAMES, SIZE = 5, 32
LATENTS = (8, 3, 4, 4)
STUDENT = DecoderConfig(  # every kind of layer, at a size that lowers in seconds
    latent_channels=8,
    decoder_block_out_channels=(16, 24),
    decoder_layers_per_block=(1, 1, 1),
    spatio_temporal_scaling=(True, False),
    decoder_spatio_only=(False, False),
    decoder_is_dw_conv=(False, False, True),
    decoder_dw_kernel_size=5,
    patch_size=4,
)
PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


def make_poc(root: Path) -> Poc:
    """A customer with everything that `evaluate` needs, made without the stages before it."""
    rng = np.random.default_rng(0)
    shutil.copy(PARAMS, root / "params.yaml")
    poc = Poc.load(root, "demo")
    thresholds = dataclasses.replace(
        poc.params.thresholds,
        min_psnr=1.0, min_psnr_retention=0.1, min_ssim=0.0, min_ms_ssim=0.0, min_worst_psnr=1.0,
        max_cold_start_seconds=60, max_latency_ratio=100,
    )  # fmt: skip
    params = dataclasses.replace(
        poc.params,
        thresholds=thresholds,
        encode=dataclasses.replace(poc.params.encode, teacher_weights="teacher"),
        gate=dataclasses.replace(poc.params.gate, warmup=1, samples=3),
    )
    poc = dataclasses.replace(poc, params=params)

    poc.folder("validate").mkdir(parents=True)
    files = [("a.mp4", "ok", "ff"), ("b.mp4", "ok", "aa"), ("c.mp4", "quarantined", "00")]
    rows = [
        {**dict.fromkeys(COLUMNS), "path": path, "status": status, "sha256": sha256, "bytes": 1}
        for path, status, sha256 in files
    ]
    write_manifest(pd.DataFrame(rows).astype(COLUMNS), poc.folder("validate") / "manifest.parquet")

    y, x = np.mgrid[:SIZE, :SIZE]
    base = 128 + 80 * np.sin(x / 9) * np.cos(y / 7)
    video = base[None, None, :, :, None] + rng.normal(0, 8, (5, FRAMES, SIZE, SIZE, 3))
    blurred = video + rng.normal(0, 1, video.shape) * np.arange(2, 12, 2).reshape(5, 1, 1, 1, 1)
    stored = {"video": video, "reconstruction": blurred}
    stored = {k: v.clip(0, 255).round().astype(np.uint8) for k, v in stored.items()}
    stored["latents"] = rng.normal(size=(5, *LATENTS)).astype(np.float32)
    for stage, store, names in (
        ("clip", "clips.zarr", ["video"]),
        ("encode", "latents.zarr", ["latents", "reconstruction"]),
    ):
        poc.folder(stage).mkdir()
        group = zarr.open_group(str(poc.folder(stage) / store), mode="w", zarr_format=3)
        for name in names:
            data = stored[name]
            group.create_array(name, data=data, chunks=(1, *data.shape[1:]))
    clips = [
        {"index": i, "path": "ab"[i % 2] + ".mp4", "start_frame": 9 * i, "split": split}
        for i, split in enumerate(SPLITS)
    ]
    text = json.dumps({"frames": FRAMES, "size": SIZE, "clips": clips})
    (poc.folder("clip") / "clips.json").write_text(text)

    torch.manual_seed(0)
    student = TurboVaedDecoder(STUDENT)
    student.save_pretrained(poc.folder("distill") / "student")
    save_teacher(root / "teacher")
    return poc


def save_teacher(folder: Path) -> None:
    from diffusers import AutoencoderKLLTXVideo

    teacher = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        downsample_type=("conv",) * 3,
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=2,
    )
    teacher.save_pretrained(folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The three stages, run once; with what they returned, told the tracker and measured."""
    told = {}
    poc = make_poc(tmp_path_factory.mktemp("root"))
    poc = dataclasses.replace(poc, tracker=Tracker(metrics=lambda m, step: told.update(m)))
    figures = SimpleNamespace(evaluate=evaluate.run(poc), export=export.run(poc))
    kept = tmp_path_factory.mktemp("kept")

    def keep(package, latents, **arguments):
        measurement = gate_measure(package, latents, **arguments)
        shutil.copy(arguments["out_folder"] / "decoded.npy", kept)
        return measurement

    gate_measure = gate.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "measure", keep)
        figures.gate = gate.run(poc)
    return SimpleNamespace(poc=poc, figures=figures, told=told, decoded=kept / "decoded.npy")


@pytest.fixture
def copy(done, tmp_path):
    """The same customer in a place of its own, to be damaged."""
    shutil.copytree(done.poc.root, tmp_path / "root")
    return dataclasses.replace(done.poc, root=tmp_path / "root")


def read(poc: Poc, stage: str, name: str) -> dict:
    return json.loads((poc.folder(stage) / name).read_text())


def stored(poc: Poc, stage: str, store: str, name: str) -> np.ndarray:
    return zarr.open_group(str(poc.folder(stage) / store), mode="r")[name][:]


def student_video(poc: Poc) -> np.ndarray:
    """(3, T, H, W, 3) uint8 of the test clips, by PyTorch and with nothing of the stages."""
    decoder = TurboVaedDecoder.from_pretrained(poc.folder("distill") / "student").eval()
    latents = torch.from_numpy(stored(poc, "encode", "latents.zarr", "latents")[TESTS])
    with torch.no_grad():
        video = decoder(latents).clamp(-1, 1)
    return ((video + 1) / 2 * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()


# evaluate


def test_evaluation_is_of_the_test_clips_only(done):
    evaluation = read(done.poc, "evaluate", "evaluation.json")
    assert [clip["index"] for clip in evaluation["clips"]] == TESTS
    assert [clip["path"] for clip in evaluation["clips"]] == ["b.mp4", "b.mp4", "a.mp4"]
    assert [clip["start_frame"] for clip in evaluation["clips"]] == [9, 27, 36]
    assert evaluation["worst_share"] == done.poc.params.evaluate.worst_share


def test_evaluation_figures_are_those_of_the_metrics(done):
    evaluation = read(done.poc, "evaluate", "evaluation.json")
    source = stored(done.poc, "clip", "clips.zarr", "video")
    teacher = stored(done.poc, "encode", "latents.zarr", "reconstruction")
    student = student_video(done.poc)
    for i, clip in enumerate(evaluation["clips"]):
        expected = {
            "teacher": clip_quality(teacher[clip["index"]], source[clip["index"]]),
            "student": clip_quality(student[i], source[clip["index"]]),
        }
        for who, quality in expected.items():
            assert clip[who] == pytest.approx(quality, abs=1e-3)
    for who in ("teacher", "student"):
        for name in ("psnr", "ssim", "ms_ssim"):
            values = [clip[who][name] for clip in evaluation["clips"]]
            assert evaluation[who][name]["mean"] == pytest.approx(statistics.mean(values))
            assert evaluation[who][name]["worst"] == pytest.approx(min(values))
    worst = min(evaluation["clips"], key=lambda clip: clip["student"]["psnr"])
    assert evaluation["worst_clip"] == worst["index"]


def test_retention_is_student_over_teacher(done):
    evaluation = read(done.poc, "evaluate", "evaluation.json")
    for name, share in evaluation["retention"].items():
        means = (evaluation[who][name]["mean"] for who in ("student", "teacher"))
        assert share == pytest.approx(next(means) / next(means))
    assert done.figures.evaluate["psnr_retention"] == evaluation["retention"]["psnr"]


def test_evaluation_does_not_depend_on_the_batch_size(done, copy):
    params = dataclasses.replace(copy.params.evaluate, batch_size=3)
    other = dataclasses.replace(copy, params=dataclasses.replace(copy.params, evaluate=params))
    evaluate.run(other)
    found, expected = (read(poc, "evaluate", "evaluation.json") for poc in (other, done.poc))
    for a, b in zip(found["clips"], expected["clips"], strict=True):
        assert a["student"] == pytest.approx(b["student"], abs=1e-3)


def test_stages_tell_the_tracker(done):
    assert done.told["test_student_psnr"] == done.figures.evaluate["student_psnr"]
    assert done.told["gate_latency_ratio"] == done.figures.gate["latency_ratio"]
    json.dumps(vars(done.figures), allow_nan=False)  # plain enough for Prefect


def test_a_student_of_nan_is_a_fault_and_leaves_the_old_evaluation_alone(copy):
    before = read(copy, "evaluate", "evaluation.json")
    poison(copy)
    with pytest.raises(Fault, match=r"NaN or infinity for test clips \[1, 3\]"):
        evaluate.run(copy)
    assert read(copy, "evaluate", "evaluation.json") == before
    assert not (copy.work / ".evaluate.partial").exists()


def poison(poc: Poc) -> None:
    path = poc.folder("distill") / "student" / "model.safetensors"
    weights = load_file(path)
    config = (path.parent / "config.json").read_text()
    weights["decoder.conv_in.conv.bias"][0] = float("nan")
    save_file(weights, path, metadata={"config": config, "format": "pt"})


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: shutil.rmtree(p.folder("clip") / "clips.zarr"), "clips.zarr"),
        (lambda p: shutil.rmtree(p.folder("encode") / "latents.zarr" / "latents"), "latents"),
        (lambda p: shorten(p.folder("clip") / "clips.json"), "clips.json"),
        (lambda p: shorten(p.folder("distill") / "student" / "model.safetensors"), "distill"),
        (lambda p: shutil.rmtree(p.folder("distill")), "distill"),
        (lambda p: rewrite_clips(p, lambda clips: clips[:4]), "clips.json 4 clips"),
        (
            lambda p: rewrite_clips(p, lambda clips: [{**c, "split": "val"} for c in clips]),
            "no test clip",
        ),
    ],
)
@pytest.mark.parametrize("stage", [evaluate, export])
def test_a_damaged_input_is_named(copy, stage, damage, message):
    damage(copy)
    name = stage.__name__.rpartition(".")[2]
    shutil.rmtree(copy.folder(name))
    with pytest.raises(CorruptFile, match=message):
        stage.run(copy)
    assert not copy.folder(name).exists()


def rewrite_clips(poc: Poc, change) -> None:
    document = read(poc, "clip", "clips.json")
    document["clips"] = change(document["clips"])
    (poc.folder("clip") / "clips.json").write_text(json.dumps(document))


# export


def test_package_takes_one_clip_of_these_latents(done):
    package = load_package(done.poc.folder("export") / "package")
    assert package.io.latent_shape == (1, *LATENTS)
    assert package.io.video_shape == (1, 3, FRAMES, SIZE, SIZE)
    assert [p.name for p in done.poc.folder("export").iterdir()] == ["package"]
    assert done.figures.export["package_sha256"] == package.sha256
    assert done.figures.export["package_mb"] == pytest.approx(package.size_bytes / 1e6, abs=1e-3)


# gate


def test_gate_keeps_the_frames_of_the_device(done):
    group = zarr.open_group(str(done.poc.folder("gate") / "frames.zarr"), mode="r")
    assert group.attrs["indices"] == TESTS
    frames = group["video"][:].astype(int)
    assert frames.shape == (3, FRAMES, SIZE, SIZE, 3)
    assert np.abs(frames - student_video(done.poc)).max() <= 1
    names = {path.name for path in done.poc.folder("gate").iterdir()}
    assert names == {"frames.zarr", "measurement.json", "verdict.json"}


def test_verdict_is_of_these_bytes_and_measurements(done):
    poc = done.poc
    verdict = read_verdict(poc.folder("gate") / "verdict.json")
    document = read(poc, "gate", "measurement.json")
    evaluation = read(poc, "evaluate", "evaluation.json")
    measurement = Measurement.from_json(document)
    package = load_package(poc.folder("export") / "package")
    assert (verdict.customer, verdict.use_case) == ("demo", "education")
    assert verdict.result == "passes", verdict.failed
    assert verdict.package_sha256 == measurement.package_sha256 == package.sha256
    assert verdict.data_sha256 == hashlib.sha256(b"aa\nff").hexdigest()
    assert verdict.git_revision == "unknown"  # the temporary root is no checkout

    measured = {check.name: check.measured for check in verdict.checks}
    clips = document["quality_clips"]
    mean_psnr = statistics.mean(clip["psnr"] for clip in clips)
    assert measured["psnr"] == pytest.approx(mean_psnr)
    assert measured["worst_psnr"] == pytest.approx(min(clip["psnr"] for clip in clips))
    teacher_psnr = evaluation["teacher"]["psnr"]["mean"]
    assert measured["psnr_retention"] == pytest.approx(mean_psnr / teacher_psnr)
    assert measured["ssim"] == pytest.approx(statistics.mean(clip["ssim"] for clip in clips))
    assert measured["ms_ssim"] == pytest.approx(statistics.mean(c["ms_ssim"] for c in clips))
    assert measured["psnr"] == pytest.approx(evaluation["student"]["psnr"]["mean"], abs=0.01)
    assert measured["parity_psnr"] == document["parity_psnr_db"]
    assert measured["package_mb"] == package.size_bytes / 1e6
    assert measured["peak_memory_mb"] == measurement.peak_memory_bytes / 1e6
    assert measured["cold_start_seconds"] == measurement.cold_start_seconds
    latencies = (measurement.latency_seconds, document["teacher_latency_seconds"])
    assert [len(samples) for samples in latencies] == [3, 3]
    ratio = statistics.median(latencies[0]) / statistics.median(latencies[1])
    assert measured["latency_ratio"] == pytest.approx(ratio)


def test_package_agrees_with_pytorch(done):
    """Against its own floats: parity in the verdict is real, not the cap and not of rounding."""
    parity = read(done.poc, "gate", "measurement.json")["parity_psnr_db"]
    decoder = TurboVaedDecoder.from_pretrained(done.poc.folder("distill") / "student").eval()
    latents = torch.from_numpy(stored(done.poc, "encode", "latents.zarr", "latents")[TESTS])
    with torch.no_grad():
        expected = torch.cat([decoder(one[None]) for one in latents]).double().numpy()
    errors = ((np.load(done.decoded) - expected) / 2) ** 2
    assert parity == pytest.approx(min(100, -10 * np.log10(errors.mean((1, 2, 3, 4)).max())), abs=2)
    assert parity >= 60


@pytest.fixture
def remeasured(done, monkeypatch):
    """A gate that takes the measurement made before, with what the device put out changed."""
    document = read(done.poc, "gate", "measurement.json")

    def patch(change=lambda decoded: decoded):
        def again(package, latents, *, out_folder, **arguments):
            np.save(out_folder / "decoded.npy", change(np.load(done.decoded)))
            return Measurement.from_json(document)

        monkeypatch.setattr(gate, "measure", again)
        monkeypatch.setattr(gate, "measure_teacher", lambda *a, **k: (1.0, 2.0, 3.0))

    return patch


def failed_checks(poc: Poc) -> set[str]:
    verdict = read_verdict(poc.folder("gate") / "verdict.json")
    assert (verdict.result == "fails") == bool(verdict.failed)
    return {check.name for check in verdict.failed}


def test_a_failing_verdict_is_a_whole_result(copy, remeasured):
    remeasured()
    strict = dataclasses.replace(copy.params.thresholds, min_ssim=1.0, max_package_mb=0.001)
    copy = dataclasses.replace(copy, params=dataclasses.replace(copy.params, thresholds=strict))
    figures = gate.run(copy)
    assert failed_checks(copy) == {"ssim", "package_mb"}
    assert figures["result"] == "fails"
    assert len(figures["failed"]) == 2
    assert (copy.folder("gate") / "frames.zarr").is_dir()


def test_quality_is_of_what_the_device_put_out(copy, remeasured):
    """A device that inverts one clip fails parity, though PyTorch's own output is as before."""

    def invert(decoded):
        decoded[1] = -decoded[1]
        return decoded

    remeasured(invert)
    before = read(copy, "gate", "measurement.json")["quality_clips"]
    gate.run(copy)
    after = read(copy, "gate", "measurement.json")["quality_clips"]
    assert failed_checks(copy) == {"parity_psnr"}
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_device_that_puts_out_nan_fails_and_is_no_fault(copy, remeasured, value):
    def spoil(decoded):
        decoded[2, 0, 0, 0, 0] = value
        return decoded

    remeasured(spoil)
    gate.run(copy)
    quality = {"psnr_retention", "psnr", "ssim", "ms_ssim", "worst_psnr", "parity_psnr"}
    assert failed_checks(copy) == quality
    assert read(copy, "gate", "measurement.json")["quality"] is None


def test_the_git_revision_is_that_of_the_checkout(copy, remeasured):
    remeasured()
    for command in (
        ["init", "-q"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m"],
    ):
        subprocess.run(["git", *command], cwd=copy.root, check=True)
    gate.run(copy)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=copy.root, text=True).strip()
    assert read_verdict(copy.folder("gate") / "verdict.json").git_revision == head


def test_the_data_hash_is_of_good_files_and_not_of_their_names(copy, remeasured):
    remeasured()
    path = copy.folder("validate") / "manifest.parquet"
    manifest = pd.read_parquet(path)
    write_manifest(manifest.iloc[::-1].assign(path=["z", "y", "x"]), path)
    gate.run(copy)
    verdicts = [read_verdict(copy.folder("gate") / "verdict.json")]
    write_manifest(manifest.assign(status="ok"), path)
    gate.run(copy)
    verdicts.append(read_verdict(copy.folder("gate") / "verdict.json"))
    assert verdicts[0].data_sha256 == hashlib.sha256(b"aa\nff").hexdigest()
    assert verdicts[1].data_sha256 == hashlib.sha256(b"00\naa\nff").hexdigest()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p.folder("evaluate") / "evaluation.json").unlink(), "evaluation.json"),
        (lambda p: shorten(p.folder("evaluate") / "evaluation.json"), "evaluation.json"),
        (lambda p: rewrite_clips(p, lambda c: [*c[:4], {**c[4], "split": "val"}]), "other clips"),
        (lambda p: shorten(p.folder("export") / "package" / "decoder.pte"), "decoder.pte"),
    ],
)
def test_a_damaged_input_of_the_gate_is_named(copy, damage, message):
    damage(copy)
    shutil.rmtree(copy.folder("gate"))
    with pytest.raises(CorruptFile, match=message):
        gate.run(copy)
    assert not copy.folder("gate").exists()
    assert not (copy.work / ".gate.partial").exists()


def test_a_damaged_teacher_is_named(copy, remeasured, monkeypatch):
    whole = gate.measure_teacher
    remeasured()
    monkeypatch.setattr(gate, "measure_teacher", whole)
    shorten(copy.root / "teacher" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CorruptFile, match="teacher"):
        gate.run(copy)
