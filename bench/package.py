"""Packages: time, size and parity of each target against the plain formulation in PyTorch.

Run: python bench/package.py [--help]. Its last line is JSON, also written to bench/results.
Speed: the LTX student at published width, random weights, 17x256x256, one thread; all programs and
the plain 5-D float32 decoder (`plain_decoder.py`) in one process, in turns; medians. int8 has all
its layers in int8 there: of random weights none is known to need float.
Parity and the time of export: the student of `make poc` on test clips, by the stage `export`
itself, which runs every package. Needs work/demo.

Shapes: B batch, C channels, t latent frames, h w latent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.decode import cpu_name, latents_for, plain, psnr, student  # noqa: E402
from turbo_vaed.devices._runtimes import OPENERS, open_program  # noqa: E402
from turbo_vaed.export import ExportJob, Target, all_targets, export_package  # noqa: E402
from turbo_vaed.stages import export  # noqa: E402
from turbo_vaed.workspace import Workspace  # noqa: E402

FRAMES, SIDE = 17, 256


def key(target: str) -> str:
    """`executorch-xnnpack/int8` as `executorch_xnnpack_int8`."""
    return target.replace("-", "_").replace("/", "_")


def speeds(targets: list[str], rounds: int) -> dict[str, Any]:
    """By target: seconds of one decode, its ratio to the plain decoder's, size and parity."""
    torch.set_num_threads(1)
    decoder = student("ltx")
    latents = latents_for(decoder, FRAMES, SIDE, SIDE)
    reference = plain(decoder)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        runs: dict[str, Callable[[], Any]] = {"plain": partial(reference, latents)}
        sizes: dict[str, int] = {}
        given = latents.numpy()
        for name in targets:
            target = Target.parse(name)
            say(f"exporting {name}")
            with torch.inference_mode(mode=False):
                package = export_package(
                    target,
                    Path(scratch) / target.folder_name,
                    ExportJob(
                        decoder=decoder,
                        latent_shape=tuple(latents.shape),
                        precision=target.precision,
                        folder=Path(scratch) / f"{target.folder_name}.program",
                        calibration=[latents.clone()],
                    ),
                )
            sizes[name] = package.size_bytes
            program = open_program(target.runtime, package.program_path, 1)
            runs[name] = partial(program, given)
        expected = reference(latents)
        parity = {
            name: psnr(torch.from_numpy(run()), expected)
            for name, run in runs.items()
            if name != "plain"
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        for turn in range(rounds):  # each in each place: what ran before weighs up to 15 %
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                run = runs[name]
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
            say(f"round {turn + 1} of {rounds}")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    full = {target.partition("/")[0]: sizes[target] for target in targets if "/fp32" in target}
    found: dict[str, Any] = {"plain": {"seconds": round(medians.pop("plain"), 4)}}
    for name, median in medians.items():
        whole = full.get(name.partition("/")[0])
        found[key(name)] = {
            "seconds": round(median, 4),
            "plain_seconds": found["plain"]["seconds"],
            "ratio_vs_plain": round(found["plain"]["seconds"] / median, 2),
            "size_mb": round(sizes[name] / 1e6, 2),
            "size_share_of_fp32": None if whole is None else round(sizes[name] / whole, 3),
            "random_weights_parity_db": round(parity[name], 1),
        }
    return found


def trained(targets: list[str]) -> dict[str, Any]:
    """Parity of the demo's student on test clips, and the seconds of export and running."""
    with tempfile.TemporaryDirectory() as scratch:
        # A place of its own: the stage replaces what is there.
        workspace = Workspace.load(ROOT, "demo")
        for stage in ("clip", "encode", "distill"):
            if not workspace.folder(stage).is_dir():
                sys.exit(f"{workspace.folder(stage)} is not there; run `make poc` first")
        place = Path(scratch) / "work" / "demo"
        place.mkdir(parents=True)
        for stage in ("clip", "encode", "distill"):
            (place / stage).symlink_to(workspace.folder(stage).resolve())
        any_parity = dataclasses.replace(workspace.params.export.min_parity_db, fp16=1.0)
        section = dataclasses.replace(
            workspace.params.export, targets=tuple(targets), min_parity_db=any_parity
        )
        params = dataclasses.replace(workspace.params, export=section)
        elsewhere = dataclasses.replace(workspace, root=Path(scratch), params=params)
        start = time.perf_counter()
        figures = export.run(elsewhere)
        seconds = time.perf_counter() - start
    return {
        "export_and_verify_seconds": round(seconds, 1),
        "targets": {
            key(name): {
                "parity_db": figures[f"{name} dB from PyTorch"],
                "size_mb": figures[f"{name} MB"],
            }
            for name in targets
        },
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns that are timed")
    parser.add_argument("--parts", nargs="+", default=["speed", "trained"],
                        choices=["speed", "trained"])  # fmt: skip
    parser.add_argument("--targets", nargs="+", choices=all_targets(),
                        help="all, where not given; timed are those that run here")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/package.json")
    given = parser.parse_args()
    targets = given.targets or list(all_targets())
    document: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    if "speed" in given.parts:
        document.update(speeds([t for t in targets if runs_here(t)], given.rounds))
        document["speed_measured_on"] = machine()
        write(document, given.out)
    if "trained" in given.parts:
        found = trained(targets)
        document["trained_tiny_student"] = {**found, "measured_on": machine()}
        for name, figures in found["targets"].items():
            document.setdefault(name, {})["parity_db"] = figures["parity_db"]
    write(document, given.out)
    print(json.dumps(document))


def runs_here(target: str) -> bool:
    return target.partition("/")[0] in OPENERS


def write(document: dict[str, Any], out: Path) -> None:
    """Keep what was measured so far."""
    document["executorch_xnnpack"] = document.get("executorch_xnnpack_fp32", {})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What a part was measured on."""
    names = ("torch", "executorch", "torchao", "ai-edge-litert", "onnxruntime", "coremltools")
    return {
        "threads": 1,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    main()
