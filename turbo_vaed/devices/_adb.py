"""The `adb` command: one call with a time limit, and its failures in words."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from turbo_vaed.errors import Fault, UserError

_SAYS = (
    ("unauthorized", UserError, "unlock the phone and allow USB debugging for this computer"),
    ("more than one device", UserError, "name one: serial in its profile in params.yaml"),
    ("No space left", UserError, "free some space on the phone"),
    ("no devices", UserError, "connect a phone and turn USB debugging on"),
    ("offline", Fault, "pull the cable and plug it in again, or: adb reconnect"),
    ("not found", Fault, "it is not connected (any more): look at the cable, and adb devices"),
    ("device disconnected", Fault, "it was unplugged: plug it in and start again"),
)


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
        limit = self.seconds if seconds is None else seconds
        chosen = [] if self.serial is None else ["-s", self.serial]
        what = f"adb {' '.join(arguments)[:80]}"
        try:
            done = subprocess.run(
                ["adb", *chosen, *arguments],
                capture_output=True, text=True, errors="replace", timeout=limit,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            raise UserError(
                "adb is not installed; get it with Android's platform-tools "
                "(apt install adb, or brew install android-platform-tools)"
            ) from None
        except subprocess.TimeoutExpired:
            raise Fault(f"{what} was stopped after {limit:g} s without an answer") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-500:]
            for words, kind, advice in _SAYS:
                if words in said:
                    raise kind(f"{what}: {said}; {advice}")
            raise Fault(f"{what} failed with exit code {done.returncode}: {said or 'no words'}")
        return done.stdout
