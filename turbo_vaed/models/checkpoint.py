"""A decoder on disk: config.json and model.safetensors, the Hugging Face layout."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.decoder import TurboVaedDecoder
from turbo_vaed.runtime.files import atomic_file

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_DIFFUSERS_NAME = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that can run code when they are read; refused."""


def save_decoder(decoder: TurboVaedDecoder, folder: Path) -> None:
    """Write both files (published names and layouts, float32), each in full or not at all.

    The weights carry the config in their metadata, so that a crash between the two
    renames (new weights with an old config) is found on reading.

    Raises:
        ValueError: the decoder was made for inference, and has the published weights no more.
    """
    text = json.dumps(decoder.config.to_published(), indent=1)
    weights = decoder.published_state_dict()
    tensors = {k: v.to("cpu", torch.float32).contiguous() for k, v in weights.items()}
    with (  # the last one is renamed first
        atomic_file(folder / CONFIG_NAME) as config_path,
        atomic_file(folder / WEIGHTS_NAME) as weights_path,
    ):
        save_file(tensors, weights_path, metadata={"config": text})
        config_path.write_text(text + "\n", encoding="utf-8")


def load_decoder(folder: Path | str) -> TurboVaedDecoder:
    """Read a folder that `save_decoder` wrote, or one with published files so named.

    Raises:
        FileNotFoundError: config.json or model.safetensors is not there.
        ValueError: one of them is damaged or pickled, or the two do not belong together.
    """
    config, weights = _read(Path(folder))
    decoder = TurboVaedDecoder(config)
    try:
        decoder.load_published(weights)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return decoder


def _read(folder: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """The config, and the weights under their published names."""
    config_path, weights_path = folder / CONFIG_NAME, _weights_path(folder)
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
