"""`devices` of params.yaml: a profile by name, typed by its kind.

A profile says where a package is measured and what is needed to get there. `parse_profile` takes
one as it stands in the file, with its `name` beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from turbo_vaed.errors import UserError
from turbo_vaed.param_types import STRICT, Positive

Text = Annotated[str, Field(min_length=1)]
ComputeUnit = Literal["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HostProfile:
    """This machine."""

    name: Text
    kind: Literal["host"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdbProfile:
    """An Android phone on a cable, or on the network after `adb connect`."""

    name: Text
    kind: Literal["adb"]
    runner: Text
    """ExecuTorch's `executor_runner` built for the phone's ABI; below the checkout or absolute."""
    serial: Text | None = None
    """As `adb devices` shows it; None: the only one that is there."""
    folder: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]+$")] = "/data/local/tmp/turbo-vaed"
    """On the phone, where files may be executed."""
    command_seconds: Positive = 120.0
    """Of one adb command that does not run the program: a push, say."""


DeviceProfile = HostProfile | AdbProfile
KINDS: dict[str, type[DeviceProfile]] = {
    "host": HostProfile,
    "adb": AdbProfile,
}


def parse_profile(document: Any) -> DeviceProfile:
    """The profile that a mapping of params.yaml with its `name` describes.

    Raises:
        UserError: an unknown kind or key, or an impossible value, with its path.
    """
    if isinstance(document, HostProfile | AdbProfile):
        return document
    if not isinstance(document, Mapping):
        raise UserError(f"devices: found {document!r}, expected a mapping")
    where = f"devices.{document.get('name')}"
    kind = KINDS.get(str(document.get("kind")))
    if kind is None:
        raise UserError(
            f"{where}.kind: found {document.get('kind')!r}; allowed: {', '.join(KINDS)}"
        )
    try:
        return TypeAdapter(kind).validate_python(dict(document))
    except ValidationError as error:
        allowed = ", ".join(f.name for f in dataclasses.fields(kind) if f.name != "name")
        lines = [_line(found, where, allowed) for found in error.errors()]
        raise UserError("\n".join(lines)) from None


def _line(found: Any, where: str, allowed: str) -> str:
    path = ".".join([where, *(str(part) for part in found["loc"])])
    if found["type"] == "unexpected_keyword_argument":
        return f"{path}: unknown key; allowed: {allowed}"
    if found["type"] in ("missing", "missing_argument"):
        return f"{path}: missing"
    return f"{path}: found {found['input']!r}; {found['msg'].removeprefix('Value error, ')}"
