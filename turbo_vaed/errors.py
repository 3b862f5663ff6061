"""The error tree: what a person did, what was refused, what broke.

The command line maps a class to its exit code: 1 refused, 2 a user's mistake, 3 a fault,
130 interrupted.
Messages say what was found, what was expected and what to do.
"""

from __future__ import annotations


class TurboVaedError(Exception):
    """Root of every error that the project raises on purpose."""

    exit_code = 3


class UserError(TurboVaedError, ValueError):
    """A user's mistake: a bad name, an unknown key, an impossible value."""

    exit_code = 2


class Refused(TurboVaedError):
    """The system works and says no: a gate, a budget, data that is not good enough."""

    exit_code = 1


class Busy(Refused):
    """A run of the customer is going on already."""


class DataRefused(Refused):
    """Too little usable data is left to go on."""


class BudgetRefused(Refused):
    """A paid step cannot fit the budget, or its price is unknown."""


class GateRefused(Refused):
    """A version cannot be promoted: no passing verdict over exactly its bytes."""


class Fault(TurboVaedError):
    """Something broke that no user did: a crash, an unreachable server, a full disk."""


class CorruptFile(Fault):
    """A file is cut short, altered or not what its name says."""


class TimedOut(Fault):
    """A stage took longer than it may; another try would most likely take as long."""


class Stopped(TurboVaedError):
    """A person or a supervisor ended it: Ctrl-C, SIGTERM, SIGHUP, an abort, a cancel in Prefect. It
    can be resumed."""

    exit_code = 130


class Unreachable(Fault):
    """A server did not answer."""
