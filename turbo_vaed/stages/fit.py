"""Whether student, teacher and clips fit together: asked before anything is paid."""

from __future__ import annotations

from turbo_vaed.errors import UserError
from turbo_vaed.poc import Poc


def check_student(poc: Poc) -> None:
    """Refuse params under which `encode` or `distill` could only fail.

    Raises:
        UserError: an unknown preset, another latent space, a crop or clip that does not divide.
        CorruptFile: the teacher's files are broken.
    """
    from turbo_vaed.models import PRESETS
    from turbo_vaed.models.teachers import describe_teacher

    params = poc.params
    spec = describe_teacher(params.encode.teacher_family, poc.teacher_weights()).latent_spec
    if params.distill.student not in PRESETS:
        raise UserError(
            f"distill.student is {params.distill.student!r}; allowed: {', '.join(PRESETS)}"
        )
    student = PRESETS[params.distill.student]
    ours = (student.latent_channels, student.temporal_compression, student.spatial_compression)
    theirs = (spec.channels, spec.compression_t, spec.compression_h)
    if ours != theirs:
        raise UserError(
            f"distill.student {params.distill.student} decodes {ours[0]} channels at compression "
            f"{ours[1]} in time and {ours[2]} in space; the teacher's latents have {theirs[0]}, "
            f"{theirs[1]} and {theirs[2]}"
        )
    for name, size in (("clip.size", params.clip.size), ("distill.crop", params.distill.crop)):
        if size % spec.compression_h:
            raise UserError(
                f"{name} is {size}; the teacher takes multiples of {spec.compression_h} pixels"
            )
    if not spec.legal_frames(params.clip.frames):
        raise UserError(
            f"clip.frames is {params.clip.frames}; the teacher takes {spec.compression_t}k + 1"
        )
