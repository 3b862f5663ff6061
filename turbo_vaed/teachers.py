"""Teachers for the command line: what one is, and how to get one."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from turbo_vaed.errors import UserError

_USUAL_FRAMES = 17
"""Long enough for motion, short enough for a small machine."""
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}"
"""Of a teacher's folder."""


def describe(weights: str, family: str, fraction: float) -> dict[str, Any]:
    """A teacher's latent space, the clips that it takes, its size, and the student for it.

    Raises: as `turbo_vaed.models.teachers.describe_teacher`; and UserError for a fraction that is
        not in (0, 1].
    """
    if not 0 < fraction <= 1:  # NaN neither
        raise UserError(f"--fraction is {fraction}; allowed: above 0, at most 1")
    from turbo_vaed.models import DecoderConfig
    from turbo_vaed.models.sizing import count_parameters
    from turbo_vaed.models.teachers import describe_teacher

    facts = describe_teacher(family, weights)
    spec = facts.latent_spec
    student: dict[str, Any] = {"budget_fraction": fraction}
    try:
        config = DecoderConfig.for_teacher(spec, fraction)
        student |= {
            "parameters": count_parameters(config),
            "widths": config.decoder_block_out_channels,
            "config": config.to_published(),
        }
    except ValueError as error:
        student["impossible"] = str(error)
    return {
        "family": family,
        "sha256": facts.sha256,
        "latents": asdict(spec),
        "clips": {
            "frames": spec.legal_frames_in_words,
            "height": f"multiples of {spec.compression_h}",
            "width": f"multiples of {spec.compression_w}",
        },
        "student": student,
    }


def fetch(root: Path, hub_id: str, family: str, name: str) -> str:
    """Download a teacher into assets/teachers/NAME; returns what to put into params.yaml.

    Raises: as `turbo_vaed.models.teachers.fetch_teacher`; and UserError for a name that is none.
    """
    from turbo_vaed.models.teachers import fetch_teacher

    if not re.fullmatch(_NAME, name):
        raise UserError(
            f"--name {name!r} is not allowed: give the name of a folder, no path: letters, digits, "
            "'.', '_' and '-', no dot first, at most 100"
        )
    folder = root / "assets" / "teachers" / name
    facts = fetch_teacher(family, hub_id, folder)
    spec = facts.latent_spec
    return (
        f"{folder}: {spec.decoder_parameters} decoder parameters, sha256 {facts.sha256}\n"
        "Put into params.yaml, under defaults or under a customer:\n"
        f"  clip: {{frames: {spec.nearest_frames(_USUAL_FRAMES)[0]}}}  "
        f"# or another of {spec.legal_frames_in_words}\n"
        f"  encode: {{teacher_family: {family}, teacher_weights: assets/teachers/{name}}}\n"
        "  distill: {student: auto}"
    )
