"""A tiny random student, and teachers of every family, saved as they are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from turbo_vaed.models import PRESETS, TurboVaedDecoder
from turbo_vaed.runtime.import_noise import quiet_imports

CONFIGS = Path(__file__).parents[1] / "data" / "tiny-teachers"
MakeTeacher = Callable[[str], Path]


@pytest.fixture
def tiny() -> TurboVaedDecoder:
    torch.manual_seed(0)
    return TurboVaedDecoder(PRESETS["tiny-ltx"])


@pytest.fixture(scope="session")
def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> MakeTeacher:
    """`make_teacher(family)`: a folder with config.json and safetensors; do not write into it."""

    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        config = json.loads((CONFIGS / f"{family}.json").read_text())
        torch.manual_seed(0)
        if family == "dc-ae-video":
            from turbo_vaed.models.dc_ae import DcAe, DcAeConfig

            weights = DcAe(DcAeConfig.from_published(config)).state_dict()
            save_file(weights, folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(config))
            return folder
        with quiet_imports():
            from diffusers.models import autoencoders

            module = getattr(autoencoders, config["_class_name"]).from_config(config)
        if family in ("ltx-video", "ltx-2"):
            module.latents_mean.fill_(0.5)
            module.latents_std.fill_(2.0)
        module.save_pretrained(folder)
        return folder

    return make
