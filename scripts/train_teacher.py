"""Train the small LTX-Video teacher in assets/teachers/tiny-ltx on the demo's training frames.

An `AutoencoderKLLTXVideo` of diffusers with a small config (space 8x8, time 4x, 32 latent
channels). It starts from a closed-form linear code (turbo_vaed.distill.linear_start) and is
then trained as a VAE: L1 + MSE on the video, a small KL term, AdamW, one cycle, EMA.

Run: make teacher (or: python scripts/train_teacher.py --help).
Shapes: B batch, C channels, T frames, t latent frames, H W pixels.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from turbo_vaed.config.load import load
from turbo_vaed.dataset.clips import time_ranges
from turbo_vaed.distill.linear_start import (
    capture_input,
    fit_conv,
    hold_constant,
    pixel_blocks,
    representation,
)
from turbo_vaed.models.teachers import load_teacher

ROOT = Path(__file__).resolve().parents[1]
DEMO_VIDEOS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
WIDTHS, DECODER_WIDTHS, LATENT_CHANNELS, PATCH = (48, 64, 96), (48, 96, 128), 32, 2
CONFIG: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": WIDTHS,
    "decoder_block_out_channels": DECODER_WIDTHS,
    "layers_per_block": (1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "down_block_types": ("LTXVideoDownBlock3D",) * 3,
    "downsample_type": ("conv",) * 3,
    "spatio_temporal_scaling": (True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, False),
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (False,) * 3,
    "upsample_factor": (1,) * 3,
    "patch_size": PATCH,
}
POSTERIOR_LOGVAR = -8.0


def read_frames(path: Path) -> Tensor:
    """Every frame of a video, uint8 (T, H, W, 3)."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames))


def random_crops(
    videos: list[Tensor], count: int, frames: int, size: int, rng: np.random.Generator
) -> Tensor:
    """Crops of random videos, places and times: (count, 3, frames, size, size) in [-1, 1]."""
    crops = []
    for _ in range(count):
        video = videos[rng.integers(len(videos))]
        t = rng.integers(video.shape[0] - frames + 1)
        y, x = (rng.integers(side - size + 1) for side in video.shape[1:3])
        crops.append(video[t : t + frames, y : y + size, x : x + size])
    return torch.stack(crops).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def posterior(encoder: nn.Module, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (shared) log variance of the latents of a video."""
    moments = encoder(video)
    return moments[:, :LATENT_CHANNELS], moments[:, LATENT_CHANNELS : LATENT_CHANNELS + 1]


@torch.no_grad()
def start_linear(vae: Any, video: Tensor) -> None:
    """Fit encoder and decoder in place to a linear code of `video` (B, 3, T, H, W)."""
    encoder, decoder = vae.encoder, vae.decoder
    for module in vae.modules():
        if type(module).__name__ == "LTXVideoResnetBlock3d":
            module.conv2.conv.weight.zero_()
            module.conv2.conv.bias.zero_()

    def fit(net: nn.Module, given: tuple[Any, ...], conv: nn.Conv3d, target: Tensor) -> None:
        fit_conv(conv, capture_input(conv, lambda: net(*given)), target, rows_per_unknown=8)

    # Encoder: patches, then blocks twice and four times as large in time and space.
    latents_code = representation(pixel_blocks(video, 4, 4 * PATCH), LATENT_CHANNELS + 1)
    latents_code = latents_code / latents_code.std((0, 2, 3, 4), keepdim=True).sqrt()
    latents_code = latents_code / latents_code.std()
    stem = encoder.conv_in.conv
    stem.weight.mul_(0.1)
    fit(encoder, (video,), stem, representation(pixel_blocks(video, 1, PATCH), stem.out_channels))
    hold_constant(stem, -1)
    for level, down in enumerate(encoder.down_blocks[:2], start=1):
        code = pixel_blocks(video, 2**level, PATCH * 2**level)
        convs = [down.downsamplers[0].conv]
        if down.conv_out is not None:
            convs.append(down.conv_out.conv_shortcut.conv)
        for conv in convs:
            target = representation(code, conv.out_channels)
            if level == 2 and conv is convs[-1]:
                target = representation(latents_code, conv.out_channels)
            fit(encoder, (video,), conv, target)
            hold_constant(conv, -1)
    fit(encoder, (video,), encoder.conv_out.conv, latents_code)
    encoder.conv_out.conv.weight[LATENT_CHANNELS:] = 0
    encoder.conv_out.conv.bias[LATENT_CHANNELS:] = POSTERIOR_LOGVAR

    # Decoder: the same way back.
    latents, _ = posterior(encoder, video)
    stem = decoder.conv_in.conv
    stem.weight.mul_(0.1)
    carried = representation(latents, stem.out_channels)
    fit(decoder, (latents, None), stem, carried)
    hold_constant(stem, -1)
    level = 2
    for i, up in enumerate(decoder.up_blocks):
        if up.conv_in is not None:
            conv = up.conv_in.conv_shortcut.conv
            carried = representation(carried, conv.out_channels)
            fit(decoder, (latents, None), conv, carried)
            hold_constant(conv, -1)
        if up.upsamplers is None:
            continue
        level -= 1
        conv = up.upsamplers[0].conv.conv
        channels = conv.out_channels // 8
        after = decoder.up_blocks[i + 1] if i + 1 < len(decoder.up_blocks) else None
        room = channels if after is None else DECODER_WIDTHS[::-1][i + 1]
        carried = representation(pixel_blocks(video, 2**level, PATCH * 2**level), room)
        full = torch.cat([carried[:, :, :1], carried], dim=2)
        full = F.pad(full, (0, 0, 0, 0, 0, 0, 0, channels - full.shape[1]))
        b, c, t, h, w = full.shape
        split = full.reshape(b, c, t // 2, 2, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
        fit(decoder, (latents, None), conv, split.reshape(b, c * 8, t // 2, h // 2, w // 2))
        hold_constant(conv, slice(-8, None))
    b, c, t, h, w = video.shape
    patches = video.reshape(b, c, t, 1, h // PATCH, PATCH, w // PATCH, PATCH)
    patches = patches.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)
    fit(decoder, (latents, None), decoder.conv_out.conv, patches)


def clip_psnr(vae: Any, video: Tensor) -> Tensor:
    """PSNR in dB of each clip through encoder and decoder, (B,)."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = [vae.decoder(posterior(vae.encoder, v[None])[0], None) for v in video]
    error = (torch.cat(out).float().clamp(-1, 1) - video) / 2
    return -10 * torch.log10(error.pow(2).mean((1, 2, 3, 4)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=3000, help="of training")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--batch-size", type=int, default=4)
    arguments.add_argument("--size", type=int, default=64, help="side of a crop, pixels")
    arguments.add_argument("--learning-rate", type=float, default=1e-4)
    arguments.add_argument("--kl", type=float, default=1e-6)
    arguments.add_argument("--videos", type=Path, default=ROOT / "data" / "demo")
    arguments.add_argument("--out", type=Path, default=ROOT / "assets/teachers/tiny-ltx")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    clip = load(ROOT, "demo").clip
    train, test_split = [], []
    for name in DEMO_VIDEOS:
        video = read_frames(given.videos / name)
        ranges = time_ranges(
            len(video), frames=clip.frames, train_share=clip.train_share, val_share=clip.val_share
        )
        train.append(video[slice(*ranges["train"])])
        test_split.append(video[slice(*ranges["test"])])
    held_out_rng = np.random.default_rng(1)
    tests = [random_crops([v], 6, clip.frames, clip.size, held_out_rng) for v in test_split]

    from diffusers import AutoencoderKLLTXVideo

    vae: Any = AutoencoderKLLTXVideo(**CONFIG)
    started = time.monotonic()
    start_linear(vae, random_crops(train, 48, clip.frames, given.size, rng))
    start_psnr = [clip_psnr(vae, test).mean().item() for test in tests]
    print(f"linear start: {np.mean(start_psnr):.2f} dB after {time.monotonic() - started:.0f} s")

    vae = vae.to(memory_format=torch.channels_last_3d)
    weights = list(vae.parameters())
    averaged = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=given.learning_rate, betas=(0.9, 0.99), eps=1e-8)
    steps, began = 0, time.monotonic()
    with Progress() as progress:
        bar = progress.add_task("training", total=given.seconds)
        while (elapsed := time.monotonic() - began) < given.seconds:
            share = elapsed / given.seconds
            rate = given.learning_rate * min(1, share / 0.1)
            rate *= 1 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))
            optimizer.param_groups[0]["lr"] = rate
            video = random_crops(train, given.batch_size, clip.frames, given.size, rng)
            with torch.autocast("cpu", torch.bfloat16):
                mean, logvar = posterior(vae.encoder, video)
                latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
                out = vae.decoder(latents, None).float()
            kl = 0.5 * (mean.float().pow(2) + logvar.float().exp() - 1 - logvar.float()).mean()
            loss = F.l1_loss(out, video) + 2 * F.mse_loss(out, video) + given.kl * kl
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 0.5)
            optimizer.step()
            steps += 1
            decay = min(0.998, steps / (steps + 10))
            torch._foreach_lerp_(averaged, [w.detach() for w in weights], 1 - decay)
            progress.update(bar, completed=elapsed, description=f"step {steps} {loss.item():.4f}")
            if steps % 200 == 0:
                scores = [clip_psnr(vae, test).mean().item() for test in tests]
                print(
                    f"step {steps} {elapsed:.0f} s: test split {np.mean(scores):.2f} dB", flush=True
                )
    with torch.no_grad():
        for weight, average in zip(weights, averaged, strict=True):
            weight.copy_(average)
        means = posterior(vae.encoder, random_crops(train, 64, clip.frames, given.size, rng))[0]
        vae.latents_mean.copy_(means.mean((0, 2, 3, 4)))
        vae.latents_std.copy_(means.std((0, 2, 3, 4)))
    vae = vae.to(memory_format=torch.contiguous_format).half()  # half the file, the same picture
    vae.save_pretrained(given.out, safe_serialization=True)
    vae = vae.float()
    teacher = load_teacher("ltx-video", given.out)
    scores = {
        name: [round(clip_psnr(vae, test).mean().item(), 2), round(first, 2)]
        for name, test, first in zip(DEMO_VIDEOS, tests, start_psnr, strict=True)
    }
    figures = {
        "held_out_psnr_db": round(float(np.mean([s[0] for s in scores.values()])), 2),
        "linear_start_psnr_db": round(float(np.mean([s[1] for s in scores.values()])), 2),
        "held_out_psnr_db_by_video": {name: s[0] for name, s in scores.items()},
        "steps": steps,
        "seconds": round(time.monotonic() - started),
        "threads": given.threads,
        "batch_size": given.batch_size,
        "crop": [clip.frames, given.size, given.size],
        "learning_rate": given.learning_rate,
        "kl": given.kl,
        "encoder_parameters": sum(p.numel() for p in vae.encoder.parameters()),
        "decoder_parameters": teacher.latent_spec.decoder_parameters,
        "sha256": teacher.sha256,
        "hardware": f"{platform.machine()} CPU, {given.threads} thread(s)",
        "torch": torch.__version__,
    }
    (given.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
