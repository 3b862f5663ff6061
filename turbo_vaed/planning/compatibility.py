"""Checks that student, teacher and clips fit together, before anything is paid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from turbo_vaed.errors import UserError
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:
    from turbo_vaed.export import Target
    from turbo_vaed.models import DecoderConfig
    from turbo_vaed.models.teachers import LatentSpec

AUTO = "auto"


def student_config(workspace: Workspace) -> DecoderConfig:
    """The student of a run: the preset that `distill.student` names, or one for its teacher.

    Raises:
        UserError: an unknown preset, another latent space, a teacher without such a student, a
            crop or clip that the teacher does not take.
        CorruptFile: the teacher's files are broken.
    """
    from turbo_vaed.models import PRESETS
    from turbo_vaed.models.sizing import student_for
    from turbo_vaed.models.teachers import read_spec

    params = workspace.params
    spec = read_spec(params.encode.teacher_family, workspace.teacher_weights())
    name = params.distill.student
    if name != AUTO and name not in PRESETS:
        raise UserError(f"distill.student is {name!r}; allowed: {', '.join((AUTO, *PRESETS))}")
    check_clips(spec, params.clip.frames, params.clip.size)
    check_size(spec, "distill.crop", params.distill.crop)
    tile = params.encode.tile
    if tile is not None:
        check_tile(spec, tile, params.clip.size)
        if tile != params.distill.crop:
            raise UserError(
                f"encode.tile is {tile}, distill.crop {params.distill.crop}: a crop is one tile; "
                "set both to the same, or encode.tile to null for crops anywhere in whole clips"
            )
    if name == AUTO:
        try:
            return student_for(spec, params.distill.student_fraction)
        except ValueError as error:
            raise UserError(
                f"no student for the teacher {params.encode.teacher_weights}: {error}; set "
                "distill.student_fraction, or name a preset in distill.student"
            ) from None
    student = PRESETS[name]
    _check_preset(name, student, spec)
    return student


def check_params(workspace: Workspace) -> tuple[Target, ...]:
    """The targets of a customer's params, when student, teacher, clips and packages fit together.

    Raises:
        UserError, CorruptFile: as `student_config`, `targets_of` and `further_shapes`.
    """
    from turbo_vaed.export.shapes import further_shapes
    from turbo_vaed.export.targets import targets_of

    further_shapes(workspace.params, student_config(workspace))
    return targets_of(workspace.params.export)


def check_clips(spec: LatentSpec, frames: int, size: int) -> None:
    """Refuse clips that a teacher does not take.

    Raises:
        UserError: so many frames or such a size; it says what to set.
    """
    if frames == 1:
        least = next(n for n in spec.nearest_frames(1) if n > 1)
        raise UserError(
            "clip.frames is 1, but the gate judges flicker from frame to frame: set clip.frames "
            f"to {least} or more"
        )
    if not spec.legal_frames(frames):
        below, above = spec.nearest_frames(frames)
        raise UserError(
            f"clip.frames is {frames}; the teacher takes {spec.legal_frames_text} frames: "
            f"set clip.frames to {below} or {above}"
        )
    check_size(spec, "clip.size", size)


def check_tile(spec: LatentSpec, tile: int, size: int) -> None:
    """Refuse tiles that a teacher does not take, or that clips are not made up of.

    Raises:
        UserError: it says what to set.
    """
    check_size(spec, "encode.tile", tile)
    if size % tile:
        raise UserError(
            f"encode.tile is {tile}, which does not divide clip.size, {size}: set encode.tile to "
            "a divisor of it, or to null"
        )


def check_size(spec: LatentSpec, name: str, size: int) -> None:
    """Refuse a side of a square that a teacher's compression does not divide.

    Raises:
        UserError: it says what to set.
    """
    if not spec.legal_size(size, size):
        step = math.lcm(spec.compression_h, spec.compression_w)
        below = max(spec.fewest_latent_side, size // step) * step
        raise UserError(
            f"{name} is {size}; the teacher takes multiples of {step}: "
            f"set {name} to {below} or {below + step}"
        )


def _check_preset(name: str, student: DecoderConfig, spec: LatentSpec) -> None:
    ours = (student.latent_channels, student.temporal_compression, student.spatial_compression)
    theirs = (spec.channels, spec.compression_t, spec.compression_h)
    if ours != theirs or student.is_video_dc_ae == spec.has_lone_first_frame:
        lone = {True: "no frame", False: "the first frame"}
        raise UserError(
            f"distill.student {name} decodes {ours[0]} channels at compression {ours[1]} in time "
            f"and {ours[2]} in space with {lone[student.is_video_dc_ae]} alone; the teacher's "
            f"latents have {theirs[0]}, {theirs[1]} and {theirs[2]} with "
            f"{lone[not spec.has_lone_first_frame]} alone; set distill.student to {AUTO}"
        )
