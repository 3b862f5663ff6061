"""The `adb` command, and which phone it is to reach."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_vaed.config.devices import AdbProfile
from turbo_vaed.devices._command import Says, call
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.settings import android_serial

_SAYS: Says = (
    ("unauthorized", UserError, "unlock the phone and allow USB debugging for this computer"),
    ("more than one device", UserError, "name one: serial in its profile in params.yaml"),
    ("No space left", UserError, "free some space on the phone"),
    ("no devices", UserError, "connect a phone and turn USB debugging on"),
    ("offline", Fault, "pull the cable and plug it in again, or: adb reconnect"),
    ("device '", Fault, "it is not connected (any more): look at the cable, and adb devices"),
    ("device disconnected", Fault, "it was unplugged: plug it in and start again"),
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which of the phones that may be there a profile means."""

    serial: str | None
    """None: the only one."""
    by: str
    """What decided it, for a person."""
    by_environment: bool = False


def chosen_phone(profile: AdbProfile) -> Chosen:
    """The profile's serial, else that of ANDROID_SERIAL, else the only phone.

    Raises:
        UserError: the environment names another phone than the profile.
    """
    named, environment = profile.serial, android_serial()
    if named is None and environment is None:
        return Chosen(serial=None, by="the only one that is connected")
    if named is None:
        return Chosen(
            serial=environment, by=f"ANDROID_SERIAL={environment}, the profile names none",
            by_environment=True,
        )  # fmt: skip
    if environment not in (None, named):
        raise UserError(
            f"ANDROID_SERIAL is {environment}, devices.{profile.name}.serial in params.yaml is "
            f"{named}: expected the same phone; unset ANDROID_SERIAL, or correct the profile"
        )
    return Chosen(serial=named, by=f"serial {named} of the profile")


@dataclass(frozen=True, kw_only=True)
class Adb:
    """A phone behind `adb`."""

    serial: str | None
    seconds: float
    """Of one command."""

    def __call__(self, *arguments: str, seconds: float | None = None) -> str:
        """Run `adb ARGUMENTS`; its stdout.

        Raises:
            UserError: adb is not installed, or a person has to act.
            Fault: the phone is gone or does not answer.
        """
        chosen = [] if self.serial is None else ["-s", self.serial]
        return call(
            ["adb", *chosen, *arguments],
            what=f"adb {' '.join(arguments)[:80]}",
            seconds=self.seconds if seconds is None else seconds,
            says=_SAYS,
            if_not_installed="adb is not installed; get it with Android's platform-tools "
            "(apt install adb, or brew install android-platform-tools)",
        )
