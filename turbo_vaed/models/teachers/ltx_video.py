"""The LTX-Video family: diffusers' `AutoencoderKLLTXVideo` from a local folder."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.teachers import LatentSpec, TeacherFacts
from turbo_vaed.quiet import quiet_imports

FAMILY = "ltx-video"
CLASS_NAME = "AutoencoderKLLTXVideo"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
NEEDED = ("latent_channels", "patch_size", "patch_size_t", "spatio_temporal_scaling")
REMEDY = "restore the teacher's folder, or point encode.teacher_weights at another"


class LtxTeacher:
    """A loaded LTX-Video VAE; see `turbo_vaed.models.teachers.Teacher`."""

    def __init__(self, module: Any, facts: TeacherFacts) -> None:
        self.module = module
        self.latent_spec = facts.latent_spec
        self.decoder_parameters = facts.decoder_parameters
        self.sha256 = facts.sha256

    @torch.inference_mode()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Video BCTHW in [-1,1] -> raw latents BCthw: the mean of the posterior."""
        latents: torch.Tensor = self.module.encode(self._place(video)).latent_dist.mean
        return latents

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents BCthw -> video BCTHW, about [-1,1] and not clamped."""
        video: torch.Tensor = self.module.decode(self._place(latents)).sample
        return video

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.module.device, dtype=self.module.dtype)


def describe(folder: Path) -> TeacherFacts:
    """The facts of the teacher in `folder`, from its config and the header of its weights."""
    from safetensors import SafetensorError, safe_open

    config = _read_config(folder)
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
            mean, std = (weights.get_tensor(n) for n in ("latents_mean", "latents_std"))
            decoder_parameters = sum(
                math.prod(weights.get_slice(n).get_shape())
                for n in names
                if n.startswith("decoder.")
            )
    except (OSError, SafetensorError) as error:
        raise CorruptFile(
            f"the teacher's weights {path} cannot be read ({error}); {REMEDY}"
        ) from None
    scaling = sum(config["spatio_temporal_scaling"])
    spatial = config.get("spatial_compression_ratio") or config["patch_size"] * 2**scaling
    temporal = config.get("temporal_compression_ratio") or config["patch_size_t"] * 2**scaling
    return TeacherFacts(
        family=FAMILY,
        latent_spec=LatentSpec(
            channels=config["latent_channels"],
            compression_t=temporal,
            compression_h=spatial,
            compression_w=spatial,
            mean=tuple(mean.double().tolist()),
            std=tuple(std.double().tolist()),
        ),
        decoder_parameters=decoder_parameters,
        sha256=sha256,
    )


def load(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LtxTeacher:
    """The teacher in `folder`; safetensors only, every weight must fit."""
    from safetensors.torch import load_file

    facts = describe(folder)
    config = _read_config(folder)
    try:
        with quiet_imports():
            from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo

            module = AutoencoderKLLTXVideo.from_config(config)
            module.load_state_dict(load_file(folder / WEIGHTS))
            module.to(device=device, dtype=dtype or torch.float32)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise CorruptFile(
            f"{folder / CONFIG} and {folder / WEIGHTS} do not make a {CLASS_NAME}: "
            f"{str(error)[:500]}; {REMEDY}"
        ) from None
    module.eval().requires_grad_(False)
    return LtxTeacher(module, facts)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"the teacher's {path} cannot be read ({error}); {REMEDY}") from None
    if not isinstance(config, dict) or config.get("_class_name") != CLASS_NAME:
        raise CorruptFile(f"{path} is not the config of a {CLASS_NAME}; {REMEDY}")
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise CorruptFile(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    if config.get("timestep_conditioning") or any(config.get("decoder_inject_noise") or ()):
        raise UserError(
            f"{path}: a decoder with timestep conditioning or injected noise cannot be a teacher; "
            "use a variant without (LTX-Video 0.9.0)"
        )
    return config
