"""`devices` of devices.yaml: a profile by name, typed by its kind.

A profile says where a package is measured and what is needed to get there. `parse_profile` takes
one as it stands in the file, with its `name` added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from turbo_vaed.config.explain import explain
from turbo_vaed.config.types import STRICT, Count, Money, Positive
from turbo_vaed.config.yaml_file import Keys, dotted
from turbo_vaed.errors import UserError

Text = Annotated[str, Field(min_length=1)]
AppleRuntime = Literal["coreml", "executorch-coreml", "executorch-xnnpack"]
Shape = tuple[Count, Count, Count] | None
"""Frames, height and width that an app decodes per call on the device. Packages get a program for
this shape, and the gate judges its speed and memory on the device. None: the clips' shape."""
ComputeUnit = Literal["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HostProfile:
    """This machine."""

    name: Text
    kind: Literal["host"]
    shape: Shape = None
    most_usd_per_package: ClassVar[Decimal] = Decimal(0)


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
    shape: Shape = None
    most_usd_per_package: ClassVar[Decimal] = Decimal(0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AppleProfile:
    """A Mac that `ssh` reaches, with Python, numpy and coremltools; or an iPhone attached to it,
    with Xcode there."""

    name: Text
    kind: Literal["apple"]
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@:-]+$")]
    """As ssh takes it: USER@NAME, or a name in its configuration."""
    compute_unit: ComputeUnit = "CPU_AND_NE"
    """What Core ML may use: NE is the neural engine."""
    python: Text = "python3"
    folder: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]+$")] = "/tmp/turbo-vaed"
    """There; a folder of its own below it is made and removed."""
    command_seconds: Positive = 120.0
    """Of one command that does not run the program."""
    iphone: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """As `xcrun devicectl list devices` of the Mac names it; None: the Mac itself is measured."""
    app: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] | None = None
    """Bundle id of the app on the iPhone that runs packages: docs/on-device.md says how."""
    app_runs: Annotated[tuple[AppleRuntime, ...], Field(min_length=1)] = ("coreml",)
    """The packages that it was built for."""
    shape: Shape = None
    most_usd_per_package: ClassVar[Decimal] = Decimal(0)

    def __post_init__(self) -> None:
        if (self.iphone is None) != (self.app is None):
            raise ValueError("iphone and app belong together: give both, or neither for the Mac")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FarmProfile:
    """An Android phone of AWS Device Farm."""

    name: Text
    kind: Literal["device-farm"]
    project: Annotated[str, Field(pattern=r"^arn:aws:devicefarm:")]
    """Its ARN."""
    device: Annotated[str, Field(pattern=r"^arn:aws:devicefarm:.*device")]
    """ARN of the model of phone: aws devicefarm list-devices."""
    runner: Text
    """ExecuTorch's `executor_runner` built for the phone's ABI; below the checkout or absolute."""
    usd_per_device_minute: Annotated[Money, Field(ge=0, lt=100)] = Decimal("0.17")
    """The list price; 0 for slots that are paid by the month."""
    job_minutes: Annotated[int, Field(ge=5, le=150)] = 30
    """After which Device Farm stops the phone; one process of the program has half of them."""
    wait_minutes: Positive = 120.0
    """For a phone to be free and to be done; then the run is stopped."""
    shape: Shape = None

    @property
    def most_usd_per_package(self) -> Decimal:
        """The most that measuring one package on the device can cost."""
        jobs = 1 if self.shape is None else 2  # the clips' shape and its own
        return self.usd_per_device_minute * self.job_minutes * jobs


DeviceProfile = HostProfile | AdbProfile | AppleProfile | FarmProfile


_PROFILE: TypeAdapter[DeviceProfile] = TypeAdapter(
    Annotated[DeviceProfile, Field(discriminator="kind")]
)


def parse_profile(document: object, where: Callable[[Keys], str] | None = None) -> DeviceProfile:
    """The profile that a mapping of devices.yaml with its `name` describes.

    Args:
        where: the file and line of a key; by default its path below `devices`.

    Raises:
        UserError: an unknown kind or key, or an impossible value, with its path.
    """
    name = document.get("name") if isinstance(document, Mapping) else document
    try:
        return _PROFILE.validate_python(document)
    except ValidationError as error:
        named = where or (lambda keys: dotted(("devices", str(name), *keys)))
        raise UserError(explain(error, DeviceProfile, named)) from None
