"""Training steps of the published students on a GPU, at 17x256x256, and what they cost.

Run: python bench/distill_gpu.py [--help]. Its last line is JSON, also written to bench/results
after every student, so that a machine taken away leaves what it has measured.

The recipe is the published one: L1, LPIPS of VGG16, features at the published blocks, AdamW, an
average of the weights, clips one by one. Clips, latents, targets and all networks' weights are
random (their values do not change the work); everything else is a real step. The published loop's
step is put together from its parts, each measured here: the teacher's encoding and decoding, and
the student's step in float32, eager.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.decode import CASES  # noqa: E402
from bench.distill_widths import random_job, steps_of  # noqa: E402
from turbo_vaed.metrics.lpips import Lpips  # noqa: E402

FRAMES, SIDE = {"dc": 16}, 256
PUBLISHED = {
    "weight_source": 1.0,
    "weight_teacher": 0.0,
    "perceptual": "lpips",
    "weight_perceptual": 1.0,
    "weight_feature": 1.0,
    "optimizer": "adamw",
}
RECIPES: dict[str, dict[str, Any]] = {
    "published_fp32": {"precision": "fp32", "compile": "off"},
    "eager": {"precision": "bf16", "compile": "off"},
    "compiled": {"precision": "bf16", "compile": "on"},
    "with_discriminator": {
        "precision": "bf16",
        "compile": "off",
        "weight_adversarial": 0.05,
        "adversarial_start": 0,
    },
}
PUBLISHED_BUDGET_USD = 95


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    arguments.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated")
    arguments.add_argument("--steps", type=int, default=32)
    arguments.add_argument("--usd-per-hour", type=float, required=True, help="of that GPU, spot")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--frames", type=int, help="of a smaller clip, to try it out")
    arguments.add_argument("--side", type=int, default=SIDE)
    arguments.add_argument("--out", type=Path, default=ROOT / "bench/results/distill_gpu.json")
    given = arguments.parse_args()
    device = torch.device(given.device)
    is_cuda = device.type == "cuda"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if is_cuda else "CPU",
        "usd_per_hour": given.usd_per_hour,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    given.out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "lpips.safetensors"
        save_file(made_up_lpips(), weights)
        for case in given.cases.split(","):
            frames = given.frames or FRAMES.get(case, 17)
            recipes = given.recipes.split(",")
            row = one(case, recipes, frames, given.side, given.steps, device, weights)
            result[case] = row | priced(row, given.usd_per_hour)
            print(f"{case}: {json.dumps(result[case])}", file=sys.stderr, flush=True)
            given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def made_up_lpips() -> dict[str, torch.Tensor]:
    """Random weights whose features neither vanish nor grow."""
    torch.manual_seed(0)
    made = Lpips().state_dict()
    for name, value in made.items():
        spread = 0.1 if value.dim() == 1 else (2 / value[0].numel()) ** 0.5
        made[name] = (spread * torch.randn_like(value)).contiguous()
        if name.startswith("heads"):
            made[name].abs_()
    return made


def one(
    case: str,
    recipes: list[str],
    frames: int,
    side: int,
    steps: int,
    device: torch.device,
    weights: Path,
) -> dict[str, Any]:
    """Steps per second and memory of a student's recipes, and seconds of its teacher."""
    row: dict[str, Any] = {"frames": frames, "side": side, "micro_batch": 1}
    row["teacher_seconds"] = teacher_seconds(case, frames, side, device)
    for name in recipes:
        changes = RECIPES[name]
        free(device)
        with tempfile.TemporaryDirectory() as folder:
            job = random_job(
                case,
                frames,
                side,
                Path(folder),
                **PUBLISHED | {"perceptual_weights": str(weights), "steps": steps} | changes,
            )
            began = time.perf_counter()
            loop, seconds = steps_of(job, device)
            took = time.perf_counter() - began
        row[name] = {
            "precision": loop.precision,
            "seconds_per_step": statistics.median(seconds),
            "steps_per_second": round(1 / statistics.median(seconds), 2),
            "seconds_in_all": round(took, 1),
            "loss_is_finite": all(torch.tensor(each["loss"]).isfinite() for each in loop.history),
        }
        if device.type == "cuda":
            row[name]["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        del loop
        print(f"  {case} {name}: {row[name]}", file=sys.stderr, flush=True)
    return row


@torch.no_grad()
def teacher_seconds(
    case: str, frames: int, side: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Of encoding and decoding a clip, by precision."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        free(device)
        encode, decode = teacher(case, dtype, device)
        video = torch.rand(1, 3, frames, side, side, device=device, dtype=dtype) * 2 - 1
        latents = encode(video)
        found[str(dtype).removeprefix("torch.")] = {
            "encode": seconds_of(lambda video=video, encode=encode: encode(video), device),
            "decode": seconds_of(lambda z=latents, decode=decode: decode(z), device),
        }
        del encode, decode
    return found


def teacher(
    case: str, dtype: torch.dtype, device: torch.device
) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """What encodes and decodes in the teacher, at its published width, weights random."""
    import diffusers

    from turbo_vaed.models.dc_ae import PUBLISHED as DC_AE
    from turbo_vaed.models.dc_ae import DcAe

    name = CASES[case][1]
    if not name:
        ours = DcAe(DC_AE["dc-ae-f32t4c128"]).eval().requires_grad_(False).to(device, dtype)
        return ours.encode, ours.decode
    module = getattr(diffusers, name)().eval().requires_grad_(False).to(device, dtype)
    return (
        lambda video: module.encode(video, return_dict=False)[0].mode(),
        lambda latents: module.decode(latents, return_dict=False)[0],
    )


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken[1:]), 4)


def priced(row: dict[str, Any], usd_per_hour: float) -> dict[str, Any]:
    """Ratios against the published loop's step, and dollars."""
    fp32 = row["teacher_seconds"]["float32"]
    plain = fp32["encode"] + fp32["decode"] + row["published_fp32"]["seconds_per_step"]
    ours = row["compiled" if "compiled" in row else "eager"]["seconds_per_step"]
    targets = sum(row["teacher_seconds"]["bfloat16"].values())
    return {
        "published_loop_seconds_per_step": round(plain, 4),
        "ratio_vs_published_loop": round(plain / ours, 2),
        "projected": {
            "usd_per_1000_clips_encoded_and_decoded_once": round(usd_per_hour * targets / 3.6, 4),
            "usd_per_1000_steps": round(usd_per_hour * ours / 3.6, 4),
            "published_loop_usd_per_1000_steps": round(usd_per_hour * plain / 3.6, 4),
            "steps_for_95_usd": int(PUBLISHED_BUDGET_USD / usd_per_hour * 3600 / ours),
        },
    }


def free(device: torch.device) -> None:
    """What the last measurement has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
