"""`turbo-vaed teacher …`: what a teacher is, and how to get one."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbo_vaed.cli.tables import Format, show
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_USUAL_FRAMES = 17
"""Long enough for motion, short enough for a small machine."""
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}"
"""Of a teacher's folder."""

app = typer.Typer(no_args_is_help=True, help="The heavy video VAEs that students learn from.")
Family = Annotated[str, typer.Option("--family", help="ltx-video, hunyuan-video, cogvideox, …")]


@app.command("show")
def show_teacher(
    weights: Annotated[
        str, typer.Argument(help="a folder, ORG/NAME@COMMIT or ORG/NAME/SUBFOLDER@COMMIT")
    ],
    family: Family,
    fraction: Annotated[float, typer.Option(help="student's share of the parameters")] = 0.175,
    form: Format = "table",
) -> None:
    """A teacher's latents, the clips that it takes, and the student that `auto` derives."""
    facts = describe(weights, family, fraction)
    if form == "json":
        print(json.dumps(facts))
        return
    rows = [
        {"what": f"{key} {leaf}".replace("_", " "), "value": value}
        for key, part in facts.items()
        for leaf, value in (part.items() if isinstance(part, dict) else [("", part)])
        if leaf not in ("mean", "std", "config")
    ]
    show(rows, form, weights)


@app.command("fetch")
def fetch_teacher(
    hub_id: Annotated[
        str, typer.Argument(help="ORG/NAME@COMMIT or ORG/NAME/SUBFOLDER@COMMIT, all 40 digits")
    ],
    family: Family,
    name: Annotated[str, typer.Option(help="of the new folder in assets/teachers")],
) -> None:
    """Download a teacher from the hub into assets/teachers, and say what to put in params.yaml."""
    print(fetch(Settings.from_environment().root, hub_id, family, name))


@app.command("encode")
def encode_with_teacher(
    weights: Annotated[str, typer.Argument(help="as of `teacher show`")],
    video: Annotated[Path, typer.Argument(help="what to encode")],
    out: Annotated[Path, typer.Argument(help="a .npy for the latents, float32 (C, t, h, w)")],
    family: Family,
    frames: Annotated[int, typer.Option(help="from the start; `teacher show` lists legal counts")],
    size: Annotated[int, typer.Option(help="pixels, of a square crop from the middle")],
) -> None:
    """Latents of a video, in the teacher's own scale: what a package decodes on a phone."""
    import numpy as np

    latents = encode_video(weights, family, video, frames=frames, size=size)
    np.save(out.with_suffix(".npy"), latents)
    print(f"{out.with_suffix('.npy')}: {latents.dtype} {latents.shape}")


def describe(weights: str, family: str, fraction: float) -> dict[str, Any]:
    """A teacher's latent space, the clips that it takes, its size, and the student for it.

    Raises: as `turbo_vaed.models.teachers.describe_teacher`; and UserError for a fraction that is
        not in (0, 1].
    """
    if not 0 < fraction <= 1:  # NaN neither
        raise UserError(f"--fraction is {fraction}; allowed: above 0, at most 1")
    from turbo_vaed.models.sizing import count_parameters, student_for
    from turbo_vaed.models.teachers import describe_teacher

    facts = describe_teacher(family, weights)
    spec = facts.latent_spec
    student: dict[str, Any] = {"budget_fraction": fraction}
    try:
        config = student_for(spec, fraction)
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
            "frames": spec.legal_frames_text,
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
        f"# or another of {spec.legal_frames_text}\n"
        f"  encode: {{teacher_family: {family}, teacher_weights: assets/teachers/{name}}}\n"
        "  distill: {student: auto}"
    )


def encode_video(
    weights: str, family: str, video: Path, *, frames: int, size: int
) -> NDArray[np.float32]:
    """Latents (C, t, h, w) in the teacher's own scale, as a package takes them.

    Of the video's first `frames` frames, a square of `size` pixels out of their middle.

    Raises:
        UserError: not a readable video, too short or too small, or a clip that the teacher does
            not take; and as `turbo_vaed.models.teachers.load_teacher`.
    """
    import av
    import numpy as np

    from turbo_vaed.dataset.latents import to_network
    from turbo_vaed.dataset.video import frames_of, open_video
    from turbo_vaed.models.teachers import load_teacher

    teacher = load_teacher(family, weights)
    try:
        teacher.latent_spec.check_video((1, 3, frames, size, size))
        with open_video(video) as (container, stream):
            whole = islice(frames_of(container, stream), frames)
            pictures = [
                _middle(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), size)
                for frame in whole
            ]
    except (OSError, LookupError, ValueError, av.error.FFmpegError) as error:
        raise UserError(f"{video}: {error}") from None
    if len(pictures) < frames:
        raise UserError(f"{video}: found {len(pictures)} frames, --frames asks for {frames}")
    latents: NDArray[np.float32] = teacher.encode(to_network(np.stack(pictures)[None]))[0].numpy()
    return latents


def _middle(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The square in the middle of a picture (H, W, 3)."""
    height, width, _ = picture.shape
    if min(height, width) < size:
        raise ValueError(f"found {width}x{height} pixels, --size asks for {size}x{size}")
    y, x = (height - size) // 2, (width - size) // 2
    return picture[y : y + size, x : x + size]
