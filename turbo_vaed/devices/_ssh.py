"""The `ssh` and `scp` commands."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_vaed.devices._command import Says, call
from turbo_vaed.errors import Fault, UserError

_SAYS: Says = (
    ("Permission denied", UserError, "let this computer's key in: ssh-copy-id, and unlock the key"),
    ("Host key verification failed", UserError, "connect once by hand and look at the key"),
    ("Could not resolve hostname", UserError, "correct host in its profile in params.yaml"),
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
    says: Says = ()
    """What the commands there say, before what ssh does."""

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
            says=(*self.says, *_SAYS),
            if_not_installed="ssh is not installed (apt install openssh-client)",
        )
