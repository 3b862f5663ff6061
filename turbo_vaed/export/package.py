"""A package: a program for a device, what it takes and gives, and the hash of every file.

A package is a folder with the program (decoder.pte; a folder for .mlpackage) and
package.json: I/O spec, files with size and sha256, tool versions, digest.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

if TYPE_CHECKING:
    from turbo_vaed.models import DecoderConfig

MANIFEST_NAME = "package.json"
_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class IoSpec:
    """What a program takes and gives."""

    latent_shape: tuple[int, ...]
    """(B, C, t, h, w), fixed."""
    video_shape: tuple[int, ...]
    """(B, 3, T, H, W)."""
    frames_per_latent: int
    """Video frames that a latent frame becomes."""
    first_latent_frames: int
    """Video frames that the first latent frame becomes: 1, or as many as any other."""
    halo_frames: tuple[int, int]
    """Of a longer video that is decoded window by window: frames at the start and at the end of
    what the program puts out that depend on latents outside of the window (docs/on-device.md)."""
    latent_mean: tuple[float, ...] | None = None
    """With `latent_std`: the program takes normalised latents and computes z * std + mean.
    Without: it takes latents in the teacher's own scale."""
    latent_std: tuple[float, ...] | None = None
    latent_dtype: str = "float32"
    latent_layout: str = "BCtHW"
    video_dtype: str = "float32"
    video_layout: str = "BCTHW"
    video_range: tuple[float, float] = (-1.0, 1.0)
    """Black and white; the raw output may overshoot: clamp it before showing it."""

    @classmethod
    def of(
        cls,
        config: "DecoderConfig",
        latent_shape: tuple[int, int, int, int, int],
        *,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
    ) -> Self:
        """The spec of a decoder exported for latents of `latent_shape`.

        Raises:
            ValueError: the shape or the scaling does not fit the config.
        """
        check_latent_scaling(config.latent_channels, latent_mean, latent_std)
        time = config.time_spec
        return cls(
            latent_shape=tuple(latent_shape),
            video_shape=config.video_shape(latent_shape),
            frames_per_latent=time.frames_per_latent,
            first_latent_frames=time.first_latent_frames,
            halo_frames=time.halo_frames,
            latent_mean=None if latent_mean is None else tuple(float(v) for v in latent_mean),
            latent_std=None if latent_std is None else tuple(float(v) for v in latent_std),
        )


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """One file of a package; `name` is its path inside, with slashes."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package on disk whose files are what they were when it was written."""

    folder: Path
    target: str
    """The runtime and the precision that it is for: `executorch-xnnpack/fp32`."""
    program: str
    io: IoSpec
    files: tuple[PackageFile, ...]
    tools: Mapping[str, str]
    """Name -> version of what made the program."""

    @property
    def runtime(self) -> str:
        """What runs the program: `executorch-xnnpack`."""
        return self.target.partition("/")[0]

    @property
    def program_path(self) -> Path:
        """Where the program is."""
        return self.folder / self.program

    @property
    def size_bytes(self) -> int:
        """Size of the program, all its files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Digest of the whole: sha256 over the sorted lines `HASH  NAME`.

        There is a line for each file, and one for what package.json says beyond them, so
        that an I/O spec cannot change under a verdict.
        """
        said = json.dumps(self._said(), sort_keys=True, separators=(",", ":"))
        lines = [f"{file.sha256}  {file.name}" for file in self.files]
        lines.append(f"{hashlib.sha256(said.encode()).hexdigest()}  {MANIFEST_NAME}")
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def _said(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "program": self.program,
            "io": asdict(self.io),
            "tools": dict(self.tools),
        }


def check_latent_scaling(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Raise ValueError where the two are not both absent, or both finite with std > 0."""
    if mean is None and std is None:
        return
    for name, values in (("latent_mean", mean), ("latent_std", std)):
        if values is None or len(values) != channels:
            found = None if values is None else f"{len(values)} values"
            raise ValueError(
                f"{name}: found {found}, allowed: {channels} values, one per channel, "
                f"or neither mean nor std"
            )
        for value in values:
            if not math.isfinite(value) or (name == "latent_std" and value <= 0):
                raise ValueError(
                    f"{name}: found {value}, allowed: finite numbers"
                    f"{' > 0' if name == 'latent_std' else ''}"
                )


def write_package(
    folder: Path,
    program: Path,
    io: IoSpec,
    *,
    target: str = "executorch-xnnpack/fp32",
    tools: Sequence[str] = ("torch", "executorch"),
    other_tools: Mapping[str, str] = MappingProxyType({}),
) -> Package:
    """Copy `program` (a file, or a folder such as .mlpackage) into a new package `folder`.

    The package is made beside its place and renamed into it; one that was there before
    is replaced. `tools` are distributions whose installed versions are recorded, `other_tools`
    versions by name of those that are installed elsewhere.

    Raises:
        FileNotFoundError: the program is not there.
        ValueError: a tool is not installed, or the program's name is taken.
    """
    folder, program = Path(folder), Path(program)
    if not program.exists():
        raise FileNotFoundError(f"{program}: no such program")
    if program.name == MANIFEST_NAME:
        raise ValueError(f"{program}: a program cannot be named {MANIFEST_NAME}")
    versions = {name: _version(name) for name in tools} | dict(other_tools)
    with _replacing(folder) as temporary:
        copied = temporary / program.name
        if program.is_dir():
            shutil.copytree(program, copied)
        else:
            shutil.copyfile(program, copied)
        paths = [copied] if copied.is_file() else [p for p in copied.rglob("*") if p.is_file()]
        package = Package(
            folder=folder,
            target=target,
            program=program.name,
            io=io,
            files=tuple(
                PackageFile(
                    name=path.relative_to(temporary).as_posix(),
                    size_bytes=path.stat().st_size,
                    sha256=_sha256(path),
                )
                for path in sorted(paths)
            ),
            tools=versions,
        )
        manifest = {
            "format": _FORMAT,
            **package._said(),
            "files": [asdict(file) for file in package.files],
            "size_bytes": package.size_bytes,
            "sha256": package.sha256,
        }
        (temporary / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n")
    return package


def load_package(folder: Path) -> Package:
    """Read a package and verify every file.

    Raises:
        FileNotFoundError: there is no package.json.
        ValueError: a file is missing, changed or described wrongly; it names the file.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a package is what write_package made")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']!r}, this version reads {_FORMAT}")
        io: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in manifest["io"].items()
        }
        package = Package(
            folder=folder,
            target=manifest["target"],
            program=manifest["program"],
            io=IoSpec(**io),
            files=tuple(PackageFile(**entry) for entry in manifest["files"]),
            tools=manifest["tools"],
        )
        names = [package.program, *(file.name for file in package.files)]
        if any(PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts for n in names):
            raise ValueError(f"file names that leave the package: {names}")
        if not any(PurePosixPath(n).parts[:1] == (package.program,) for n in names[1:]):
            raise ValueError(f"no hash for the program {package.program}")
        if manifest["sha256"] != package.sha256:
            raise ValueError("its contents do not match its own sha256")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not a valid package description ({error})") from error
    for file in package.files:
        _verify(folder / file.name, file)
    return package


def _verify(path: Path, expected: PackageFile) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: missing from the package")
    if (size := path.stat().st_size) != expected.size_bytes:
        raise ValueError(f"{path}: found {size} bytes, expected {expected.size_bytes}")
    if (found := _sha256(path)) != expected.sha256:
        raise ValueError(f"{path}: found sha256 {found}, expected {expected.sha256}")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    marker = uuid4().hex
    temporary = folder.with_name(f".{folder.name}.new-{marker}")
    old = folder.with_name(f".{folder.name}.old-{marker}")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)  # a folder that is not empty cannot be renamed over
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise ValueError(f"tools: found {name!r}, which is not installed") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
