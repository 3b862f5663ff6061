"""Commands that reach a device, one call with a time limit each; `ssh` and `scp` among them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from turbo_vaed.errors import Fault, UserError

KnownFailures = Sequence[tuple[str, type[UserError] | type[Fault], str]]
"""Text in the output of a failing command, the error that it is, and what to do; the first that is
found counts."""


def call(
    command: Sequence[str],
    *,
    what: str,
    seconds: float,
    known_failures: KnownFailures,
    if_not_installed: str,
) -> str:
    """Run it; its stdout.

    Raises:
        UserError: it is not installed, or a person has to act.
        Fault: the device is gone or does not answer.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True, text=True, errors="replace", timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError(if_not_installed) from None
    except subprocess.TimeoutExpired:
        raise Fault(f"{what} was stopped after {seconds:g} s without an answer") from None
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip())[-500:]
        for text, kind, advice in known_failures:
            if text in output:
                raise kind(f"{what}: {output}; {advice}")
        raise Fault(f"{what} failed with exit code {done.returncode}: {output or 'no output'}")
    return done.stdout


_KNOWN_FAILURES: KnownFailures = (
    ("Permission denied", UserError, "let this computer's key in: ssh-copy-id, and unlock the key"),
    ("Host key verification failed", UserError, "connect once by hand and look at the key"),
    ("Could not resolve hostname", UserError, "correct host in its profile in devices.yaml"),
    ("No space left", UserError, "free some space there"),
    ("Connection refused", Fault, "switch on Remote Login in its settings, and wake it"),
    ("timed out", Fault, "is it awake and on this network?"),
    ("closed by remote host", Fault, "it went away: wake it and start again"),
    ("Broken pipe", Fault, "it went away: wake it and start again"),
)
_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=15",
    "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """A machine behind `ssh`."""

    host: str
    """As ssh takes it: USER@NAME, or a name in its configuration."""
    seconds: float
    """Of one command."""
    known_failures: KnownFailures = ()
    """Of the commands there; they are looked for before those of ssh."""

    def __call__(self, command: str, *, seconds: float | None = None) -> str:
        """Run a line of its shell; the stdout. Raises as `call`."""
        return self._call(["ssh", *_OPTIONS, self.host, command], f"ssh {command[:80]}", seconds)

    def push(self, source: str, target: str) -> None:
        """Copy a file or a folder there. Raises as `call`."""
        self._call(["scp", "-rq", *_OPTIONS, source, f"{self.host}:{target}"], f"scp {source}")

    def pull(self, source: str, target: str) -> None:
        """Copy a file or a folder from there. Raises as `call`."""
        self._call(["scp", "-rq", *_OPTIONS, f"{self.host}:{source}", target], f"scp {source}")

    def _call(self, command: list[str], what: str, seconds: float | None = None) -> str:
        return call(
            command,
            what=what,
            seconds=self.seconds if seconds is None else seconds,
            known_failures=(*self.known_failures, *_KNOWN_FAILURES),
            if_not_installed="ssh is not installed (apt install openssh-client)",
        )
