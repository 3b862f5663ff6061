"""JSON schemas of the four files, by which editors complete keys and mark mistakes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from turbo_vaed.config.devices import DeviceProfile
from turbo_vaed.config.explain import dataclasses_in
from turbo_vaed.config.load import DEVICES, FINANCE, OWN_KEYS, PARAMS, POLICY
from turbo_vaed.config.schema import Params, UseCase

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each file, by the file's name."""
    params = _partial(_described(Params))
    fields, defs = params["properties"], params["$defs"]
    use_case, profile = _described(UseCase), _described(DeviceProfile)
    defaults = {
        name: schema
        for name, schema in fields.items()
        if name not in (*OWN_KEYS[FINANCE], "source", "device", "thresholds")
    }
    customer = {**_mapping(fields), "required": ["source"]}
    finance = {name: fields[name] for name in OWN_KEYS[FINANCE]}
    for one in defs.values():
        one.get("properties", {}).pop("name", None)  # the key in devices.yaml
    unnamed = profile.pop("$defs")
    for one in unnamed.values():
        one.get("properties", {}).pop("name", None)
        one["required"] = [key for key in one.get("required", []) if key != "name"]
    return {
        PARAMS: _file(defaults=_mapping(defaults), customers=_by_name(customer), defs=defs),
        POLICY: _file(use_cases=_by_name(use_case), defs=use_case.pop("$defs", {})),
        DEVICES: _file(devices=_by_name(profile), defs=unnamed),
        FINANCE: _file(defs=defs, **finance),
    }


def _file(*, defs: dict[str, Any], **keys: Any) -> dict[str, Any]:
    used: dict[str, Any] = {}
    _collect(keys, defs, used)
    return {"$schema": _DIALECT, **_mapping(keys), "$defs": used}


def _collect(schema: Any, defs: dict[str, Any], used: dict[str, Any]) -> None:
    """Take over the definitions that a schema refers to."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            _collect(value, defs, used)
        elif isinstance(value, str) and value.startswith("#/$defs/"):
            name = value.removeprefix("#/$defs/")
            if name not in used:
                used[name] = defs[name]
                _collect(defs[name], defs, used)


def _mapping(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _by_name(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": schema}


def _partial(schema: Any) -> Any:
    """The schema of a part of such a value: no key of it has to be there."""
    if isinstance(schema, dict):
        return {key: _partial(value) for key, value in schema.items() if key != "required"}
    return [_partial(one) for one in schema] if isinstance(schema, list) else schema


def _described(kind: Any) -> dict[str, Any]:
    """The schema of a dataclass or a union of some, with the docstrings of their fields."""
    schema = TypeAdapter(kind).json_schema()
    owners = {one.__name__: one for one in _all_dataclasses(kind)}
    named = {**schema.get("$defs", {}), schema.get("title", ""): schema}
    for name, owner in owners.items():
        for field, text in _docstrings(owner).items():
            if name in named and field in named[name]["properties"]:
                named[name]["properties"][field]["description"] = text
    return schema


def _all_dataclasses(hint: Any) -> set[Any]:
    found: set[Any] = set()
    for one in dataclasses_in(hint):
        found.add(one)
        hints = get_type_hints(one).values()
        found |= {inner for inside in hints for inner in _all_dataclasses(inside)}
    return found


def _docstrings(owner: type) -> dict[str, str]:
    """The text below each field of a dataclass in its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef) and dataclasses.is_dataclass(owner)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found
