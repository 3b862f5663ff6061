"""What pydantic refuses, a line per key: where it stands, what was found, what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from turbo_vaed.config.past_keys import advice
from turbo_vaed.config.yaml_file import Keys

_MANY = 12
"""More allowed keys than these are not listed."""


def explain(error: ValidationError, owner: Any, where: Callable[[Keys], str]) -> str:
    """The lines.

    Args:
        owner: the dataclass that was to be made, or a union of them.
        where: names the place of a key for a person.
    """
    lines: dict[str, None] = {}
    for found in error.errors():
        keys, holders = _place(found["loc"], owner)
        lines[_line(found, keys, holders, where)] = None
    return "\n".join(lines)


def nearest(key: str, allowed: Iterable[str]) -> str:
    """`unknown key; did you mean X?`, and what is allowed where that is not too much; of a key of
    an earlier version, what to write in its place."""
    if now := advice(key):
        return f"unknown key; {now}"
    names = sorted(allowed)
    close = difflib.get_close_matches(key, names, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    listed = f"; allowed: {', '.join(names)}" if len(names) <= _MANY or not close else ""
    return f"unknown key{guess}{listed}"


def _line(found: Any, keys: Keys, holders: list[Any], where: Callable[[Keys], str]) -> str:
    place = f"{where(keys)}: "
    if found["type"] == "unexpected_keyword_argument":
        return place + nearest(str(keys[-1]), _field_names(holders))
    if found["type"] in ("missing", "missing_argument"):
        return place + "missing"
    if found["type"] == "value_error":
        return place + str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "union_tag_not_found":
        return f"{place}the key {found['ctx']['discriminator']} is missing"
    if found["type"] == "union_tag_invalid":
        return place + str(found["msg"])
    why = str(found["msg"])
    return f"{place}found {found['input']!r}; {why[:1].lower()}{why[1:]}"


def _place(loc: tuple[str | int, ...], owner: Any) -> tuple[Keys, list[Any]]:
    """The keys of a location, without the names that pydantic gives to members of unions, and the
    dataclasses that its last key is a field of."""
    keys: list[str | int] = []
    holders, below = dataclasses_in(owner), dataclasses_in(owner)
    for part in loc:
        tagged = [one for one in below if part in _tags(one)] if len(below) > 1 else []
        if tagged:
            below = tagged
            continue
        if isinstance(part, str) and not below:
            break  # a member of a union of plain types
        keys.append(part)
        if isinstance(part, str):
            holders = below
            hints = [get_type_hints(one).get(part) for one in below]
            below = [inner for hint in hints for inner in dataclasses_in(hint)]
    return tuple(keys), holders


def _field_names(holders: Iterable[Any]) -> set[str]:
    return {field.name for one in holders for field in dataclasses.fields(one)} - {"name"}


def _tags(owner: Any) -> tuple[Any, ...]:
    """The values of the field `kind`, by which pydantic names a member of a discriminated union."""
    return get_args(get_type_hints(owner).get("kind"))


def dataclasses_in(hint: Any) -> list[Any]:
    """The dataclasses in a type: itself, or those of a union or a tuple."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [inner for part in get_args(hint) for inner in dataclasses_in(part)]
