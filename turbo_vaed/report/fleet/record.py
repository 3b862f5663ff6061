"""What is kept of a customer's last run, beside its pages: the fleet page is made from it.

Each document has one writer at a time, and is written whole: two runs that end at once do not lose
each other's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Self, TypeVar

from turbo_vaed.errors import CorruptFile

FOLDER = "records/"
_FORMAT = 1
UNRECORDED = "Unrecorded"
"""The outcome of a run that ended before outcomes were recorded, or without being able to."""
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class GateValue:
    """A check of the verdict."""

    name: str
    measured: float | None
    limit: float
    unit: str
    result: str


@dataclass(frozen=True, kw_only=True)
class LastRun:
    """How a customer's last run ended, which was neither skipped nor refused for another one."""

    customer: str
    outcome: str
    """The name of the flow's state: Passed, Unchanged, GateFailed, Inconclusive, Refused, Fault,
    Stopped; or `UNRECORDED`."""
    ended: datetime
    began: datetime | None = None
    """When it took the customer; None where it did not come that far."""
    run: str = ""
    """Empty where it ended before it had an id."""
    sentence: str = ""
    result: str = ""
    """That of the verdict that stands for the customer now; empty where there is none."""
    judged: str = ""
    """When that was, ISO 8601."""
    checks: tuple[GateValue, ...] = ()
    usd: Decimal | None = None
    """What the whole run has cost; None where it is not known."""
    budget_usd: Decimal | None = None
    """What it may cost."""
    page: str = ""
    """The run's own page on the site; empty where it wrote none."""
    report: str = ""
    """The newest page of a run that began; that of an earlier one where this one wrote none."""

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        return None if self.began is None else (self.ended - self.began).total_seconds()

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes."""
        return _plain(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        found = dict(document)
        found["checks"] = tuple(GateValue(**check) for check in found["checks"])
        for name in ("usd", "budget_usd"):
            found[name] = None if found[name] is None else Decimal(found[name])
        return _made(cls, found, times=("began", "ended"))


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A run that was due and did not start."""

    customer: str
    at: datetime
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes."""
        return _plain(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return _made(cls, document, times=("at",))


@dataclass(frozen=True, kw_only=True)
class Champion:
    """What the registry said."""

    customer: str
    version: int | None
    """None where no version is champion."""
    at: datetime
    """When it was asked."""

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes."""
        return _plain(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return _made(cls, document, times=("at",))


Document = LastRun | Skipped | Champion
_KINDS: dict[type[Document], str] = {LastRun: "last", Skipped: "skipped", Champion: "champion"}


def name_of(kind: type[Document], customer: str) -> str:
    """Where a customer's document lies on the site."""
    return f"{FOLDER}{customer}.{_KINDS[kind]}.json"


def customer_of(name: str) -> tuple[str, str]:
    """The customer and the kind of a document, by its name."""
    customer, _, kind = name.removeprefix(FOLDER).removesuffix(".json").partition(".")
    return customer, kind


def encoded(document: Document) -> bytes:
    """A document as the bytes of its object."""
    content = document.to_json()
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def decoded(name: str, content: bytes) -> Document:
    """The document in an object.

    Raises:
        CorruptFile: it is none, or a newer version wrote it.
    """
    kind = customer_of(name)[1]
    read: dict[str, Callable[[Mapping[str, Any]], Document]] = {
        _KINDS[LastRun]: LastRun.from_json,
        _KINDS[Skipped]: Skipped.from_json,
        _KINDS[Champion]: Champion.from_json,
    }
    try:
        return read[kind](json.loads(content))
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise CorruptFile(
            f"{name} is no record of a run ({type(error).__name__}: {error}); the customer's next "
            "run writes it again"
        ) from error


def _plain(value: Document) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(value), default=_text))
    return {"format": _FORMAT, **found}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    assert isinstance(value, Decimal), value
    return format(value, "f")


def _made(kind: Callable[..., _T], document: Mapping[str, Any], *, times: tuple[str, ...]) -> _T:
    found = dict(document)
    if (version := found.pop("format", None)) != _FORMAT:
        raise ValueError(f"found format {version!r}, expected {_FORMAT}")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in times:
        if isinstance(found[name], str):
            found[name] = datetime.fromisoformat(found[name])
    return kind(**{key: value for key, value in found.items() if key in known})
