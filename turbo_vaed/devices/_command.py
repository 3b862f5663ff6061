"""A command that reaches a device: one call with a time limit, and its failures in words."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from turbo_vaed.errors import Fault, UserError

Says = Sequence[tuple[str, type[UserError] | type[Fault], str]]
"""What a failing command says, whose fault that is, and what to do; the first that fits."""


def call(
    command: Sequence[str], *, what: str, seconds: float, says: Says, if_not_installed: str
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
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        for words, kind, advice in says:
            if words in said:
                raise kind(f"{what}: {said}; {advice}")
        raise Fault(f"{what} failed with exit code {done.returncode}: {said or 'no words'}")
    return done.stdout
