"""A package: a decoder for a device, what it takes and gives, and the hash of every file.

A package is a folder with a program for each shape (decoder.pte; a folder for .mlpackage) and
package.json: I/O specs, files with size and sha256, tool versions, digest.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from turbo_vaed.runtime.files import atomic_folder, sha256_file, write_json

if TYPE_CHECKING:
    from turbo_vaed.models import DecoderConfig

MANIFEST_NAME = "package.json"
_FORMAT = 4


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
class Program:
    """The decoder for one shape; `name` is that of a file in the package, or a folder."""

    name: str
    io: IoSpec

    @property
    def shape(self) -> str:
        """Of its video: `9x720x1280`."""
        return "x".join(map(str, self.io.video_shape[2:]))


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package on disk whose files are what they were when it was written, and one of its
    programs that is looked at."""

    folder: Path
    target: str
    """The runtime and the precision that it is for: `executorch-xnnpack/fp32`."""
    programs: tuple[Program, ...]
    """One at least, each for another shape; the first is for the clips that it is judged on."""
    files: tuple[PackageFile, ...]
    tools: Mapping[str, str]
    """Name -> version of what made the programs."""
    at: int = 0
    """Which of `programs` is looked at."""

    @property
    def program(self) -> str:
        """The name of the program."""
        return self.programs[self.at].name

    @property
    def io(self) -> IoSpec:
        """What the program takes and gives."""
        return self.programs[self.at].io

    def shaped(self, shape: str) -> "Package":
        """The same package, looked at as its program for such a video, `9x720x1280`.

        Raises:
            ValueError: it has none; says which it has.
        """
        shapes = [program.shape for program in self.programs]
        if shape not in shapes:
            raise ValueError(f"shape: found {shape}, the package has {', '.join(shapes)}")
        return replace(self, at=shapes.index(shape))

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
        """Of all programs: what ships."""
        return sum(file.size_bytes for file in self.files)

    @property
    def program_bytes(self) -> int:
        """Of the program that is looked at, all its files together."""
        return sum(
            file.size_bytes
            for file in self.files
            if PurePosixPath(file.name).parts[0] == self.program
        )

    @property
    def sha256(self) -> str:
        """Digest of the whole: sha256 over the sorted lines `HASH  NAME`.

        There is a line for each file, and one for what package.json says beyond them, so
        that an I/O spec cannot change under a verdict.
        """
        contents = json.dumps(self._contents(), sort_keys=True, separators=(",", ":"))
        lines = [f"{file.sha256}  {file.name}" for file in self.files]
        lines.append(f"{hashlib.sha256(contents.encode()).hexdigest()}  {MANIFEST_NAME}")
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def _contents(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "program": self.programs[0].name,
            "io": asdict(self.programs[0].io),
            "further": [asdict(program) for program in self.programs[1:]],
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
    further: Sequence[tuple[Path, IoSpec]] = (),
    target: str = "executorch-xnnpack/fp32",
    tools: Sequence[str] = ("torch", "executorch"),
    other_tools: Mapping[str, str] = MappingProxyType({}),
) -> Package:
    """Copy `program` (a file, or a folder such as .mlpackage) into a new package `folder`.

    The package is made next to its place and renamed into it; one that was there before
    is replaced.

    Args:
        further: programs of the same decoder for other shapes, each named by its own:
            `decoder-9x720x1280.pte`.
        tools: distributions whose installed versions are recorded.
        other_tools: versions by name of those that are installed elsewhere.

    Raises:
        FileNotFoundError: a program is not there.
        ValueError: a tool is not installed, the program's name is taken, or two have one shape.
    """
    folder, program = Path(folder), Path(program)
    if program.name == MANIFEST_NAME:
        raise ValueError(f"{program}: a program cannot be named {MANIFEST_NAME}")
    programs, sources = [Program(name=program.name, io=io)], [program]
    for path, other in further:
        shape = Program(name="", io=other).shape
        name = f"{program.stem}-{shape}{program.suffix}"
        programs.append(Program(name=name, io=other))
        sources.append(Path(path))
    if missing := [source for source in sources if not source.exists()]:
        raise FileNotFoundError(f"{missing[0]}: no such program")
    if len({one.shape for one in programs}) < len(programs):
        raise ValueError(f"shapes: found {', '.join(one.shape for one in programs)}, two are one")
    versions = {name: _version(name) for name in tools} | dict(other_tools)
    with atomic_folder(folder) as temporary:
        for one, source in zip(programs, sources, strict=True):
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, temporary / one.name)
        paths = [path for path in temporary.rglob("*") if path.is_file()]
        package = Package(
            folder=folder,
            target=target,
            programs=tuple(programs),
            files=tuple(
                PackageFile(
                    name=path.relative_to(temporary).as_posix(),
                    size_bytes=path.stat().st_size,
                    sha256=sha256_file(path),
                )
                for path in sorted(paths)
            ),
            tools=versions,
        )
        manifest = {
            "format": _FORMAT,
            **package._contents(),
            "files": [asdict(file) for file in package.files],
            "size_bytes": package.size_bytes,
            "sha256": package.sha256,
        }
        write_json(temporary / MANIFEST_NAME, manifest)
    return package


def _io_spec(document: Mapping[str, Any]) -> IoSpec:
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in document.items()
    }
    return IoSpec(**values)


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
        further = [(one["name"], one["io"]) for one in manifest["further"]]
        package = Package(
            folder=folder,
            target=manifest["target"],
            programs=tuple(
                Program(name=name, io=_io_spec(io))
                for name, io in ((manifest["program"], manifest["io"]), *further)
            ),
            files=tuple(PackageFile(**entry) for entry in manifest["files"]),
            tools=manifest["tools"],
        )
        programs = [program.name for program in package.programs]
        names = [*programs, *(file.name for file in package.files)]
        if any(PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts for n in names):
            raise ValueError(f"file names that leave the package: {names}")
        hashed = {PurePosixPath(file.name).parts[0] for file in package.files}
        if missing := [name for name in programs if name not in hashed]:
            raise ValueError(f"no hash for the program {missing[0]}")
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
    if (found := sha256_file(path)) != expected.sha256:
        raise ValueError(f"{path}: found sha256 {found}, expected {expected.sha256}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise ValueError(f"tools: found {name!r}, which is not installed") from error
