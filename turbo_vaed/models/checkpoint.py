"""A decoder on disk: config.json and model.safetensors, the Hugging Face layout."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from turbo_vaed.models.config import DecoderConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_DIFFUSERS_NAME = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that can run code when they are read; refused."""


def write_folder(folder: Path, config: DecoderConfig, weights: Mapping[str, Tensor]) -> None:
    """Write both files, each in full or not at all.

    The weights carry the config in their metadata, so that a crash between the two
    renames (new weights beside an old config) is found on reading.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_published(), indent=1)
    tensors = {k: v.to("cpu", torch.float32).contiguous() for k, v in weights.items()}
    marker = uuid4().hex
    files = [(folder / f".{name}.{marker}", folder / name) for name in (WEIGHTS_NAME, CONFIG_NAME)]
    try:
        save_file(tensors, files[0][0], metadata={"config": text})
        files[1][0].write_text(text + "\n")
        for temporary, final in files:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(final)
    finally:
        for temporary, _ in files:
            temporary.unlink(missing_ok=True)


def read_folder(folder: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """The config, and the weights under their published names.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged or pickled, or the weights were saved with another config.
    """
    config_path, weights_path = Path(folder) / CONFIG_NAME, _weights_path(Path(folder))
    for path in (config_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; a decoder is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}"
            )
    try:
        config = DecoderConfig.from_published(json.loads(config_path.read_text()))
    except (ValueError, UnicodeDecodeError) as error:  # JSONDecodeError is a ValueError
        raise ValueError(f"{config_path}: {error}") from error
    try:
        with safe_open(weights_path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        saved_with = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{weights_path}: not a whole safetensors file ({error}); copy or train it again"
        ) from error
    if saved_with is not None and DecoderConfig.from_published(saved_with) != config:
        raise ValueError(f"{weights_path}: saved with another config than {config_path} holds")
    return config, weights


def _weights_path(folder: Path) -> Path:
    """Where the weights are, or should be; diffusers' name for them is taken too."""
    paths = [folder / WEIGHTS_NAME, folder / _DIFFUSERS_NAME]
    for path in paths:
        if path.is_file():
            return path
    for pickle in sorted(folder.glob("*")):
        if pickle.suffix in PICKLES:
            raise ValueError(
                f"{pickle}: pickled weights are refused, they can run code; load them where you "
                f"trust them and write {WEIGHTS_NAME} with safetensors.torch.save_file"
            )
    return paths[0]
