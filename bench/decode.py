"""Time and memory of decoding: students, the plain formulation of them, and their teachers.

Run: python bench/decode.py [--help]. Its last line is JSON, also written to bench/results.
Weights are random, at the published widths; both sides of a ratio run in one process, in turns.
Quality against the plain float32 is PSNR for a range of 2, and the ratio of signal to noise: the
random weights' videos are fainter than real ones. Memory is the peak resident size above that of
the loaded weights, each in a process of its own.

Shapes: B batch, C channels, T frames, t latent frames, H W pixels.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.plain_decoder import PlainDecoder  # noqa: E402
from turbo_vaed.models import PRESETS, TurboVaedDecoder, stream  # noqa: E402

# Student, its teacher's class in diffusers (none: ours), frames, side of a frame in pixels.
CASES = {
    "ltx": ("turbo-vaed-ltx", "AutoencoderKLLTXVideo", 17, 256),
    "hunyuan": ("turbo-vaed-hunyuan", "AutoencoderKLHunyuanVideo", 17, 128),
    "cogvideox": ("turbo-vaed-cogvideox", "AutoencoderKLCogVideoX", 17, 128),
    "dc": ("turbo-vaed-dc", "", 16, 128),
}
GPU_SIZES = ((512, 512), (720, 1280))
STREAM_SIZE = (736, 1280)  # 720p, in whole latents of 32 pixels


def student(case: str) -> TurboVaedDecoder:
    torch.manual_seed(0)
    return TurboVaedDecoder(PRESETS[CASES[case][0]]).eval().requires_grad_(False)


def plain(decoder: TurboVaedDecoder) -> PlainDecoder:
    state = decoder.published_state_dict()
    other = PlainDecoder(decoder.config).eval().requires_grad_(False)
    other.load_state_dict({key.removeprefix("decoder."): state[key] for key in state})
    return other


def latents_for(decoder: TurboVaedDecoder, frames: int, height: int, width: int) -> Tensor:
    config = decoder.config
    lone = 0 if config.is_video_dc_ae else 1
    t = (frames - lone) // config.temporal_compression + lone
    scale = config.spatial_compression
    torch.manual_seed(1)
    return torch.randn(1, config.latent_channels, t, -(-height // scale), -(-width // scale))


def teacher_decode(
    case: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """What decodes in the teacher, at its published width."""
    import diffusers

    from turbo_vaed.models.dc_ae import PUBLISHED, DcAe

    name = CASES[case][1]
    if name:
        module = getattr(diffusers, name)().eval().requires_grad_(False).to(device, dtype)
        return lambda latents: module.decode(latents, return_dict=False)[0]
    ours = DcAe(PUBLISHED["dc-ae-f32t4c128"]).eval().requires_grad_(False)
    return ours.to(device, dtype).decode


def seconds_in_turns(forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()  # oneDNN makes its kernels
    for round_ in range(rounds):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            taken[name].append(time.perf_counter() - began)
        print(f"  round {round_ + 1} of {rounds}", file=sys.stderr)
    return {name: round(statistics.median(each), 4) for name, each in taken.items()}


def psnr(found: Tensor, expected: Tensor) -> float:
    mse = (found.float() - expected).square().mean().item()
    return round(-10 * torch.log10(torch.tensor(max(mse, 1e-20) / 4)).item(), 1)


def formulations(case: str, rounds: int, is_compiled: bool) -> dict[str, Any]:
    """Plain 5-D in float32 against ours, and against the teacher in float32."""
    _, _, frames, side = CASES[case]
    decoder = student(case)
    latents = latents_for(decoder, frames, side, side)
    half = latents.bfloat16()
    fp32, bf16 = decoder.for_inference(), decoder.for_inference(torch.bfloat16)
    direct = decoder.for_inference(form="taps")
    baseline, teacher = plain(decoder), teacher_decode(case)
    expected = baseline(latents)
    forms: dict[str, Callable[[], object]] = {
        "plain_fp32": lambda: baseline(latents),
        "direct_fp32": lambda: direct(latents),
        "fp32": lambda: fp32(latents),
        "bf16": lambda: bf16(half),
        "teacher_fp32": lambda: teacher(latents),
    }
    if is_compiled:
        compiled = torch.compile(bf16)
        forms["bf16_compiled"] = lambda: compiled(half)
    seconds = seconds_in_turns(forms, rounds)
    best = min(seconds[name] for name in seconds if name.startswith(("fp32", "bf16")))
    return {
        "frames": frames,
        "side": side,
        "seconds": seconds,
        "fp32_vs_plain": round(seconds["plain_fp32"] / seconds["fp32"], 2),
        "best_vs_plain": round(seconds["plain_fp32"] / best, 2),
        "best_vs_teacher": round(seconds["teacher_fp32"] / best, 1),
        "fp32_max_error": float((fp32(latents) - expected).abs().max()),
        "bf16_psnr_db": psnr(bf16(half), expected),
        "bf16_snr_db": round(psnr(bf16(half), expected) - psnr(torch.zeros(()), expected), 1),
    }


def streamed(rounds: int) -> dict[str, Any]:
    """Seconds per frame of `stream` against one-shot at 720p, where one-shot fits."""
    decoder = student("ltx").for_inference(torch.bfloat16)
    frames = 25
    latents = latents_for(decoder, frames, *STREAM_SIZE).bfloat16()

    def decode_all() -> None:
        for _ in stream(decoder, latents):
            pass

    seconds = seconds_in_turns({"one_shot": lambda: decoder(latents), "stream": decode_all}, rounds)
    return {
        "frames": frames,
        "size": STREAM_SIZE,
        "seconds": seconds,
        "stream_vs_one_shot": round(seconds["stream"] / seconds["one_shot"], 3),
    }


def resident_bytes(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def memory_of(what: str) -> int:
    """Peak bytes above the weights of one decoding, in this very process."""
    form, case, frames = what.split(":")
    decoder: nn.Module = student(case)
    height, width = STREAM_SIZE if form.startswith("stream") else (CASES[case][3],) * 2
    latents = latents_for(student(case), int(frames), height, width)
    if form == "plain":
        decoder = plain(student(case))
    else:
        dtype = torch.bfloat16 if form.endswith("bf16") else torch.float32
        decoder = student(case).for_inference(dtype)
        latents = latents.to(dtype)
    # What making the weights has left behind is given back, and the peak so far forgotten.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    if form.startswith("stream"):
        for _ in stream(decoder, latents):  # type: ignore[operator]
            pass
    else:
        decoder(latents)
    return resident_bytes("VmHWM") - before


def memory(what: str, threads: int) -> float:
    """MB (1e6 bytes), from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--threads", str(threads), "--memory-of", what],
        check=True,
        capture_output=True,
        text=True,
    )
    return round(int(done.stdout.split()[-1]) / 1e6, 1)


def memories(threads: int) -> dict[str, Any]:
    found = {
        what: memory(what, threads)
        for what in (
            "plain:ltx:17",
            "fp32:ltx:17",
            "bf16:ltx:17",
            "plain:hunyuan:17",
            "fp32:hunyuan:17",
            "bf16:hunyuan:17",
            "stream_fp32:ltx:33",
            "stream_bf16:ltx:33",
            "stream_fp32:ltx:65",
            "stream_bf16:ltx:65",
        )
    }
    return {
        "mb_above_weights": found,
        "ltx_fp32_vs_plain": round(found["fp32:ltx:17"] / found["plain:ltx:17"], 3),
        "ltx_bf16_vs_plain": round(found["bf16:ltx:17"] / found["plain:ltx:17"], 3),
    }


def on_cpu(cases: list[str], rounds: int, threads: int, is_compiled: bool) -> dict[str, Any]:
    """All of it on this machine's processor."""
    result: dict[str, Any] = {}
    for case in cases:
        print(case, file=sys.stderr)
        result[case] = formulations(case, rounds, is_compiled)
        print(json.dumps(result[case]), file=sys.stderr)
    print("memory and stream", file=sys.stderr)
    return result | {"memory": memories(threads), "stream": streamed(min(3, rounds))}


def on_gpu(
    device: str,
    cases: list[str],
    rounds: int,
    sizes: tuple[tuple[int, int], ...],
    is_compiled: bool,
) -> dict[str, Any]:
    """Frames per second of students and teachers in bfloat16."""
    result: dict[str, Any] = {}
    for case in cases:
        frames = CASES[case][2]
        decoder = student(case).to(device).for_inference(torch.bfloat16)
        forms = {"student": decoder, "teacher": teacher_decode(case, torch.bfloat16, device)}
        if is_compiled:
            forms |= {f"{name}_compiled": torch.compile(form) for name, form in forms.items()}
        for height, width in sizes:
            latents = latents_for(decoder, frames, height, width).to(device, torch.bfloat16)

            def timed(form: Callable[[Tensor], object], latents: Tensor = latents) -> None:
                form(latents)
                if device == "cuda":
                    torch.cuda.synchronize()

            seconds = seconds_in_turns(
                {name: partial(timed, form) for name, form in forms.items()}, rounds
            )
            result[f"{case}:{height}x{width}"] = {
                "fps": {name: round(frames / each, 1) for name, each in seconds.items()},
                "student_vs_teacher": {
                    suffix.removeprefix("_") or "eager": round(
                        seconds[f"teacher{suffix}"] / seconds[f"student{suffix}"], 1
                    )
                    for suffix in ("", "_compiled")
                    if f"student{suffix}" in seconds
                },
            }
            print(f"{case} {height}x{width}: {result[f'{case}:{height}x{width}']}", file=sys.stderr)
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--cases", default="ltx,hunyuan,cogvideox", help="comma-separated")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--compiled", action="store_true", help="torch.compile too (minutes)")
    arguments.add_argument("--gpu", action="store_true", help="frames per second on CUDA instead")
    arguments.add_argument("--out", type=Path, help="bench/results/decode.json, or decode_gpu.json")
    arguments.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(given.threads)
    if given.memory_of:
        print(memory_of(given.memory_of))
        return
    cases = given.cases.split(",")
    out = given.out or ROOT / f"bench/results/decode{'_gpu' if given.gpu else ''}.json"
    if given.gpu:
        result = {"gpu": torch.cuda.get_device_name()}
        result |= on_gpu("cuda", cases, given.rounds, GPU_SIZES, given.compiled)
    else:
        result = on_cpu(cases, given.rounds, given.threads, given.compiled)
    result |= {
        "threads": given.threads,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    bf16 = "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no bf16"
    return f"{name or platform.machine()}, {bf16}"


if __name__ == "__main__":
    main()
