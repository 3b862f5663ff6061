"""The families at their published widths, without weights: sizes, and what follows for students.

Configs are those of diffusers 0.42.1's classes, or where the published ones differ the files in
tests/data/published-teachers (values of diffusers' own conversion scripts for Wan 2.2 and LTX-2).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.families import for_every
from turbo_vaed.models.sizing import count_parameters, student_for
from turbo_vaed.models.teachers import LatentSpec
from turbo_vaed.models.teachers.diffusers_vae import ROWS
from turbo_vaed.runtime.import_noise import quiet_imports

PUBLISHED = Path(__file__).parents[2] / "data" / "published-teachers"
# Family: decoder parameters, latent channels, compression in time and in space. The first three
# counts are published (arXiv 2508.09136: 238.8, 146.1 and 123.4 million), the others are what
# diffusers' class has.
FULL = {
    "ltx-video": (238_789_296, 128, 8, 32),
    "hunyuan-video": (146_136_067, 16, 4, 8),
    "cogvideox": (123_368_451, 16, 4, 8),
    "wan-2.1": (73_295_331, 16, 4, 8),
    "wan-2.2": (555_049_228, 48, 4, 16),
    "hunyuan-video-1.5": (871_309_571, 32, 4, 16),
    "ltx-2": (528_380_720, 128, 8, 32),
    "mochi": (362_526_595, 12, 6, 8),
    "cosmos": (62_738_560, 16, 8, 8),
}


@for_every(ROWS)
def test_the_decoder_has_as_many_parameters_as_published(family: str) -> None:
    parameters, channels, time, space = FULL[family]
    row, path = ROWS[family], PUBLISHED / f"{family}.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    with quiet_imports():
        from diffusers.models import autoencoders

        with torch.device("meta"):
            module = getattr(autoencoders, row.class_name).from_config(config)
    # As `files.parameters("decoder.")` counts them in a file's header.
    state = module.state_dict()
    assert sum(t.numel() for n, t in state.items() if n.startswith("decoder.")) == parameters
    assert row.compression(module.config) == (time, space)
    assert module.config[row.channels] == channels
    assert all(module.config.get(key) is not None for key in row.needed)
    assert row.refuse(module.config) == ""
    assert hasattr(module.get_submodule(row.mid_block), "forward")


@for_every(FULL)
def test_a_student_of_the_usual_share_is_derived_for_every_family(family: str) -> None:
    parameters, channels, time, space = FULL[family]
    spec = LatentSpec(
        channels=channels,
        compression_t=time,
        compression_h=space,
        compression_w=space,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        decoder_parameters=parameters,
    )
    student = student_for(spec)
    assert student.latent_channels == channels
    assert (student.temporal_compression, student.spatial_compression) == (time, space)
    assert 0.97 < count_parameters(student) / (0.175 * parameters) <= 1
