"""A customer judged on made-up clips, with a random teacher and student: for evaluate to gate."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from tests import configs
from tests.exports import exported_once
from tests.shared import made_once
from turbo_vaed.dataset.clip_arrays import create_clip_array
from turbo_vaed.dataset.manifest import COLUMNS, write_manifest
from turbo_vaed.devices._runtimes import open_program
from turbo_vaed.devices.measurement import Measurement
from turbo_vaed.devices.teacher import TeacherTimes
from turbo_vaed.export.targets import targets_of
from turbo_vaed.gate import assessment, baseline, parity
from turbo_vaed.gate.packages import package_folder
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder, load_decoder, save_decoder
from turbo_vaed.stages import evaluate, export, gate, params
from turbo_vaed.workspace import Workspace

SPLITS = ("train", "test", "val", "test", "test")
TESTS = [1, 3, 4]
FRAMES, SIZE = 5, 32
LATENTS = (8, 3, 4, 4)
STUDENT = DecoderConfig(  # few layers, for each is lowered; every kind: tests/export
    latent_channels=8,
    decoder_block_out_channels=(16,),
    decoder_layers_per_block=(1, 1),
    spatio_temporal_scaling=(True,),
    decoder_spatio_only=(False,),
    decoder_is_dw_conv=(True, True),
    patch_size=4,
)
TEACHER = "assets/teachers/random"


def make_workspace(root: Path, teacher: Path) -> Workspace:
    """A customer with everything that `evaluate` needs, made without the stages before it."""
    rng = np.random.default_rng(0)
    configs.copy_to(root)
    workspace = Workspace.load(root, "demo")
    thresholds = dataclasses.replace(
        workspace.params.thresholds,
        min_psnr=1.0, min_psnr_retention=0.1, min_ssim=-1.0, min_ms_ssim=-1.0, min_worst_psnr=0.01,
        max_flicker=1e6, min_detail_retention=-1.0, min_fps=0.1,
        max_cold_start_seconds=60, max_latency_ratio=100,
    )  # fmt: skip
    params = dataclasses.replace(
        workspace.params,
        thresholds=thresholds,
        encode=dataclasses.replace(workspace.params.encode, teacher_weights=TEACHER),
        # Tests share the machine with others: no time is unreliable for it.
        gate=dataclasses.replace(
            workspace.params.gate,
            max_warmup=1,
            min_samples=3,
            max_samples=3,
            max_spread=100.0,
            max_background_cpu_share=1.0,
        ),
        export=dataclasses.replace(workspace.params.export, targets=("executorch-xnnpack/fp32",)),
    )
    workspace = dataclasses.replace(workspace, params=params)

    workspace.folder("validate").mkdir(parents=True)
    files = [("a.mp4", "ok", "ff"), ("b.mp4", "ok", "aa"), ("c.mp4", "quarantined", "00")]
    rows = [
        {**dict.fromkeys(COLUMNS), "path": path, "status": status, "sha256": sha256, "bytes": 1}
        for path, status, sha256 in files
    ]
    write_manifest(
        pd.DataFrame(rows).astype(COLUMNS), workspace.folder("validate") / "manifest.parquet"
    )

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
        workspace.folder(stage).mkdir()
        group = zarr.open_group(str(workspace.folder(stage) / store), mode="w", zarr_format=3)
        for name in names:
            data = stored[name]
            array = create_clip_array(
                group, name, clips=5, shape=data.shape[1:], dtype=data.dtype, is_compressed=True
            )
            for clip in TESTS if name == "reconstruction" else range(5):
                array[clip] = data[clip]
    clips = [
        {"index": i, "path": "ab"[i % 2] + ".mp4", "start_frame": 9 * i, "split": split}
        for i, split in enumerate(SPLITS)
    ]
    text = json.dumps({"frames": FRAMES, "size": SIZE, "clips": clips})
    (workspace.folder("clip") / "clips.json").write_text(text)

    torch.manual_seed(0)
    student = TurboVaedDecoder(STUDENT)
    save_decoder(student, workspace.folder("distill") / "student")
    shutil.copytree(teacher, root / TEACHER)
    return workspace


@pytest.fixture(autouse=True)
def exports(tmp_path_factory):
    """The same student is exported again and again here."""
    with exported_once(tmp_path_factory):
        yield


@pytest.fixture(scope="session")
def judged(tmp_path_factory, tiny_teacher):
    """The three stages, run once, with what they returned and what the device put out."""

    def make(folder: Path) -> None:
        workspace = make_workspace(folder / "root", tiny_teacher)
        params.run(workspace)
        section = partial(Workspace.for_stage, workspace.root, workspace.customer)
        figures = SimpleNamespace(evaluate=evaluate.run(section("evaluate")))
        with exported_once(tmp_path_factory):
            figures.export = export.run(section("export"))

        def keep(device, package, latents, **arguments):
            measurement = measure_on(device, package, latents, **arguments)
            shutil.copy(arguments["out_folder"] / "decoded.npy", folder)
            return measurement

        measure_on = assessment.measure_on
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assessment, "measure_on", keep)
            figures.gate = gate.run(section("gate"))
        (folder / "judged.pickle").write_bytes(pickle.dumps((workspace, figures)))

    folder = made_once(tmp_path_factory, "judged", make)
    workspace, figures = pickle.loads((folder / "judged.pickle").read_bytes())
    return SimpleNamespace(workspace=workspace, figures=figures, decoded=folder / "decoded.npy")


DEVICE_SHAPE = (5, 64, 96)
FURTHER_SHAPE = (9, 48, 32)


@pytest.fixture(scope="session")
def shaped(judged, tmp_path_factory):
    """The judged customer with programs for a longer, higher video, and for a wider one that the
    device's apps decode at once: the stage export, run once, and what it returned."""

    def make(folder: Path) -> None:
        shutil.copytree(judged.workspace.root, folder / "root")
        params = judged.workspace.params
        params = dataclasses.replace(
            params,
            export=dataclasses.replace(params.export, shapes=(FURTHER_SHAPE,)),
            device=dataclasses.replace(params.device, shape=DEVICE_SHAPE),
        )
        workspace = dataclasses.replace(judged.workspace, root=folder / "root", params=params)
        with exported_once(tmp_path_factory), pytest.MonkeyPatch.context() as patch:
            patch.setattr(parity, "decode", decode_here)
            figures = export.run(workspace)
        (folder / "shaped.pickle").write_bytes(pickle.dumps((workspace, figures)))

    folder = made_once(tmp_path_factory, "shaped", make)
    workspace, figures = pickle.loads((folder / "shaped.pickle").read_bytes())
    return SimpleNamespace(workspace=workspace, figures=figures)


@pytest.fixture
def shaped_copy(shaped, tmp_path):
    """`shaped` in a place of its own, to be judged."""
    shutil.copytree(shaped.workspace.root, tmp_path / "root")
    return dataclasses.replace(shaped.workspace, root=tmp_path / "root")


@pytest.fixture
def in_this_process(monkeypatch):
    """The stage export runs programs here, and not in a process each that loads PyTorch."""
    monkeypatch.setattr(parity, "decode", decode_here)


def decode_here(package, latents_npy, *, out_folder, timeout_seconds):
    run = open_program(package.runtime, package.program_path, 1)
    videos = [run(latents[None]) for latents in np.load(latents_npy)]
    np.save(out_folder / "decoded.npy", np.concatenate(videos))


@pytest.fixture
def judged_copy(judged, tmp_path):
    """The same customer in a place of its own, to be damaged."""
    shutil.copytree(judged.workspace.root, tmp_path / "root")
    return dataclasses.replace(judged.workspace, root=tmp_path / "root")


@pytest.fixture
def remeasured(judged, monkeypatch, files):
    """A gate that takes the measurement made before, with what the device put out changed."""
    document = files.read(judged.workspace, "gate", "measurement.json")

    def patch(change=lambda decoded: decoded):
        def again(device, package, latents, *, out_folder, **arguments):
            np.save(out_folder / "decoded.npy", change(np.load(judged.decoded)))
            return Measurement.from_json(document)

        monkeypatch.setattr(assessment, "measure_on", again)
        times = TeacherTimes(machine="a processor", seconds=(1.0, 2.0, 3.0))
        monkeypatch.setattr(baseline, "measure_teacher", lambda *a, **k: times)

    return patch


@pytest.fixture(scope="session")
def files() -> SimpleNamespace:
    """What a test reads and damages a customer's files with."""
    return SimpleNamespace(
        read=read, stored=stored, student_video=student_video,
        shorten=shorten, rewrite_clips=rewrite_clips, package=package,
    )  # fmt: skip


def read(workspace: Workspace, stage: str, name: str) -> dict:
    return json.loads((workspace.folder(stage) / name).read_text())


def stored(workspace: Workspace, stage: str, store: str, name: str) -> np.ndarray:
    return zarr.open_group(str(workspace.folder(stage) / store), mode="r")[name][:]


def student_video(workspace: Workspace) -> np.ndarray:
    """(3, T, H, W, 3) uint8 of the test clips, by PyTorch and with nothing of the stages."""
    decoder = load_decoder(workspace.folder("distill") / "student").eval()
    latents = torch.from_numpy(stored(workspace, "encode", "latents.zarr", "latents")[TESTS])
    with torch.no_grad():
        video = decoder(latents).clamp(-1, 1)
    return ((video + 1) / 2 * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()


def package(workspace: Workspace) -> Path:
    """The package of the first target."""
    return package_folder(workspace, targets_of(workspace.params.export)[0])


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rewrite_clips(workspace: Workspace, change) -> None:
    document = read(workspace, "clip", "clips.json")
    document["clips"] = change(document["clips"])
    (workspace.folder("clip") / "clips.json").write_text(json.dumps(document))
